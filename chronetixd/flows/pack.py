"""A flow as plain data, for the hand-over to the next image of the daemon, and how a flow is restored from it.

It contains only what cannot be found out anew. Unpacking arms timers and does nothing else: no message is sent.
"""

from __future__ import annotations

from chronetixd.core.death import ExitRecord
from chronetixd.core.deliveries import Deliveries
from chronetixd.core.packed import PackedFlow, PackedWatch
from chronetixd.dataplane.pack import PackedWiring
from chronetixd.flows.frame_failures import FrameFailures
from chronetixd.flows.restart_timers import PackedRestartTimer
from chronetixd.flows.run import FlowRun
from chronetixd.packing import Bag, Packed, Unbag
from chronetixd.store.descriptor_keys import Key
from chronetixd.store.journal_file import StoredWorker
from chronetixd.workers.process import PackedProcess


class PackedRun(Packed, frozen=True):
    """A flow. ``deadline_ns``: when the armed deadline is due. ``silent``: nodes whose worker has finished, or closed
    its control socket, and lives on."""

    machine: PackedFlow
    wiring: PackedWiring
    workers: dict[str, PackedProcess]
    submitted_unix_ns: int
    changed_unix_ns: int
    reason: str
    failures: dict[str, FrameFailures]
    deadline_ns: int | None
    last_deaths: dict[str, ExitRecord]
    revivals: dict[str, PackedRestartTimer]
    silent: list[str]
    on_bus: bool
    lives: list[StoredWorker]
    warned: PackedWatch
    taps: int
    deliveries: dict[str, Deliveries] = {}
    kept: list[Key] = []
    """Keys of the descriptors that the service manager stores for the flow."""


def packed_run(run: FlowRun, bag: Bag) -> PackedRun:
    """Return the whole state of ``run``; descriptors go into ``bag``. ``run`` must have no ``upgrade_blocker``. Its
    taps are not included."""
    return PackedRun(
        machine=run.machine.packed(),
        wiring=run.wiring.packed(bag),
        workers={node: worker.packed(bag) for node, worker in run.workers.items()},
        submitted_unix_ns=run.submitted_unix_ns,
        changed_unix_ns=run.changed_unix_ns,
        reason=run.reason,
        failures=run.failures,
        deliveries=run.deliveries,
        deadline_ns=run.executor.deadline_ns,
        last_deaths=run.last_exits,
        revivals=run.restart_timers.packed(),
        silent=list(run.silent),
        on_bus=run.executor.on_bus,
        lives=run.worker_records.packed(),
        warned=run.held_frames.packed(),
        taps=run.taps.next,
        kept=run.kept_descriptors.packed(),
    )


def unpack_run(run: FlowRun, packed: PackedRun, bag: Unbag) -> None:
    """Restore ``run`` from ``packed``. Raises ValueError, OSError."""
    run.machine.unpack(packed.machine)
    run.wiring.unpack(packed.wiring, bag)
    run.deliveries |= packed.deliveries
    for node, worker in packed.workers.items():
        run.new_worker(node).unpack(worker, bag)
    run.submitted_unix_ns, run.changed_unix_ns = packed.submitted_unix_ns, packed.changed_unix_ns
    run.reason = packed.reason
    run.failures |= packed.failures
    run.last_exits = dict(packed.last_deaths)
    run.executor.on_bus = packed.on_bus
    run.remember(packed.lives)
    run.held_frames.unpack(packed.warned)
    run.taps.next = packed.taps
    run.kept_descriptors.unpack(packed.kept)
    run.restart_timers.unpack(packed.revivals)
    if packed.deadline_ns is not None:
        run.executor.arm(packed.deadline_ns)
    for node in packed.silent:
        watch = run.watch_end if run.machine.workers[node].finished else run.watch_silent
        watch(node)
