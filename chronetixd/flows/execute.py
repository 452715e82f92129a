"""Carries out the instructions of a flow's state machine: spawns, configures, starts, drains, signals and releases
workers.

An instruction for many workers is carried out for one worker after another, and other work of the daemon gets its turn
in between. Nothing is decided here. The result of an instruction is reported to the flow as an event, which is handled
when all present instructions have been carried out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from chronetix import shm
from chronetix.protocol import messages as wire
from chronetixd.core import flow_messages as core
from chronetixd.core import worker as worker_core
from chronetixd.core.death import ExitRecord
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow_messages import FlowEvent, FlowState, Instruction, WorkerChanged
from chronetixd.core.reason import reason
from chronetixd.core.wiring.incarnations import LostMemory
from chronetixd.core.worker import WorkerState
from chronetixd.dataplane import shm_support
from chronetixd.dataplane.held_frames import HeldFrameWatch
from chronetixd.dataplane.taps import Taps
from chronetixd.dataplane.wiring import FlowWiring, ToNode
from chronetixd.flows.context import Services
from chronetixd.flows.flow_events import FlowEvents
from chronetixd.flows.frame_failures import FrameFailures
from chronetixd.flows.liveness import Probes
from chronetixd.flows.plan import NodePlan, Plan
from chronetixd.flows.restart_timers import RestartTimers
from chronetixd.flows.worker_records import WorkerRecords
from chronetixd.loop import closing
from chronetixd.loop.alarm import due_ns, left_s
from chronetixd.store.descriptor_names import KeptDescriptors
from chronetixd.workers.process import WorkerProcess


class ExecutorRun(Protocol):
    """What the executor needs of a flow."""

    name: str
    plan: Plan
    machine: FlowMachine
    """For reading; events go to :meth:`dispatch`."""
    wiring: FlowWiring
    workers: dict[str, WorkerProcess]
    taps: Taps
    flow_events: FlowEvents
    held_frames: HeldFrameWatch
    failures: dict[str, FrameFailures]
    probes: Probes
    restart_timers: RestartTimers
    worker_records: WorkerRecords
    kept_descriptors: KeptDescriptors
    last_exits: dict[str, ExitRecord]
    reason: str
    changed_unix_ns: int

    @property
    def waits_for(self) -> str:
        """The reason why requested workers are not spawned, or an empty string."""

    def dispatch(self, event: FlowEvent) -> None:
        """Give ``event`` to the state machine."""

    def keep_descriptors(self) -> None:
        """Store new memory with the service manager."""

    def send_wiring(self, messages: Sequence[ToNode]) -> None:
        """Send workers messages about their routes."""

    def announce_relinked(self) -> None:
        """Report Relinked for each successor that all of its producers are linked to."""

    def new_worker(self, node: str) -> WorkerProcess:
        """Make the object for the next process of ``node``."""

    def standby_worker(self, node: str) -> WorkerProcess | None:
        """Return the worker that stands by for ``node``, or None."""


class Executor:
    """Carries out the instructions for ``run``."""

    def __init__(self, run: ExecutorRun, services: Services) -> None:
        self._run = run
        self._services = services
        self._deadline: asyncio.TimerHandle | None = None
        self._delayed_by = ""
        """The reason why workers were not spawned, at the time when a deadline passed."""
        self._former: dict[str, tuple[NodePlan, str]] = {}
        """Removed nodes until their worker is gone: their plan and the folder that their paths start from."""
        self._handovers: dict[str, Any] = {}
        """Results of workers that have left, for their successors."""
        self.on_bus = False
        """Whether all workers that there were at the first start have been subscribed on the bus."""

    @property
    def deadline_ns(self) -> int | None:
        """When the armed deadline is due (CLOCK_MONOTONIC, ns), or None."""
        return None if self._deadline is None else due_ns(self._services.loop, self._deadline)

    def arm(self, due_ns: int) -> None:
        """Arm the deadline that an earlier image of the daemon has armed, at ``due_ns``."""
        self._deadline = self._services.loop.call_later(left_s(due_ns), self._deadline_passed)

    def revise(self, removed: Iterable[str]) -> None:
        """Keep the plans of these nodes, which are about to be removed from the flow."""
        plan = self._run.plan
        self._former |= {node: (plan.nodes[node], plan.base_dir) for node in removed}

    def carry_out(self, instruction: Instruction) -> None:
        """Carry out ``instruction``, as far as that is possible at once."""
        match instruction:
            case core.RequestSpawn(nodes):
                self.spawn(nodes)
            case core.SendConfigure(node):
                self._configure(node)
            case core.LinkSuccessor(node):
                self._run.send_wiring(self._run.wiring.relink(node))
                self._run.announce_relinked()
            case core.SendStart(nodes):
                self._start(nodes)
            case core.SendDrain(nodes):
                self._for_each(nodes, self._drain)
            case core.SendLeave(node):
                self._leave(node)
            case core.WorkerLeft(node):
                self._handovers[node] = self._run.machine.workers[node].result
            case core.NodeRemoved(node):
                self._removed(node)
            case core.Signal(nodes, kill):
                self._for_each(nodes, lambda worker: worker.signal(kill=kill))
            case core.WakePeers(node):
                self._after_death(node, self._run.wiring.gone)
            case core.PrepareSuccessor(node):
                self._after_death(node, self._run.wiring.succeeded)
            case core.Restarting(node):
                self._run.restart_timers.restart_planned(
                    node, instruction.restart_group, instruction.after_ns, instruction.reason
                )
                self._run.flow_events.restarting(instruction, self._run.machine.restart_state.rule(node))
            case core.Restarted(node):
                self._run.restart_timers.restarted(node)
                self.start_watching(node)
                subject = self._run.machine.workers[node]
                reason = self._run.restart_timers[node].last_reason
                self._run.flow_events.restarted(node, reason, subject.incarnation, self._run.workers[node].pid)
            case core.ArmNodeDeadline(node, after_ns):
                self._run.restart_timers.arm(node, after_ns)
            case core.ArmDeadline(_, after_ns):
                self._disarm()
                self._deadline = self._services.loop.call_later(after_ns / 1e9, self._deadline_passed)
            case core.DisarmDeadline():
                self._disarm()
            case core.EnterState(state):
                self._entered(state)

    def _for_each(self, nodes: Iterable[str], act: Callable[[WorkerProcess], None]) -> None:
        """Call ``act`` for each of these workers, one at a time; other work of the daemon gets its turn in between."""
        for worker in [self._run.workers[node] for node in nodes]:
            self._services.sandboxes.turns.add(partial(act, worker))

    def _drain(self, worker: WorkerProcess) -> None:
        self._services.bus.stop_timers(worker)
        worker.send(wire.Drain())

    def spawn(self, nodes: tuple[str, ...]) -> None:
        """Request the next process of each of these nodes."""
        services = self._services
        self._run.worker_records.note_intended({node: self._run.machine.workers[node].incarnation for node in nodes})
        for node in nodes:
            worker = self._run.new_worker(node)
            worker.incarnation = self._run.machine.workers[node].incarnation
            worker.exit_pending = True
            services.sandboxes.turns.add(partial(self._spawn_one, worker))

    def _spawn_one(self, worker: WorkerProcess) -> None:
        """Spawn ``worker`` when it is its turn, unless it was told to end meanwhile."""
        node = worker.node
        if self._run.workers.get(node) is not worker or not worker.exit_pending:
            return
        if self._run.machine.workers[node].state is not WorkerState.SPAWNING:
            self._not_spawned(worker, "it was told to end before its process was requested")
            return
        plan, base_dir = self.plan_of(node)
        if plan.attach:
            worker.await_attach()
            self._run.dispatch(WorkerChanged(node, worker_core.AttachAwaited()))
            return
        try:
            self._services.start(worker, plan, base_dir)
        except OSError as refused:
            self._not_spawned(worker, str(refused))

    def _not_spawned(self, worker: WorkerProcess, why: str) -> None:
        worker.exit_pending = False
        self._run.dispatch(WorkerChanged(worker.node, worker_core.ProcessNotSpawned(why)))

    def _configure(self, node: str) -> None:
        limits = self._run.machine.limits
        message = msgspec.structs.replace(
            self._run.wiring.configure(node, self.plan_of(node)[0].configure),
            end_ns=limits.end_ns,
            terminate_ns=limits.terminate_ns,
        )
        if message.on_daemon_loss == "survive":
            message = msgspec.structs.replace(
                message, socket=self._services.socket(), token=self._run.worker_records.token(node)
            )
        self._run.workers[node].send(message)

    def _start(self, nodes: tuple[str, ...]) -> None:
        """Start these workers, which are all ready. All workers are subscribed on the bus first, so that nothing
        published from now on is missed."""
        for node in nodes if self.on_bus else self._run.workers:
            self._services.bus.subscribe(self._run.workers[node], self.plan_of(node)[0].configure.subscriptions)
        self.on_bus = True
        starting = {node: self._run.workers[node] for node in nodes}
        if self._run.plan.flow.on_daemon_loss == "survive":
            # A started worker may outlive the daemon, so the journal must have recorded its process before.
            self._services.journal.when_written(lambda: self._send_start(starting))
        else:
            self._send_start(starting)

    def _send_start(self, starting: Mapping[str, WorkerProcess]) -> None:
        """Send the start to those workers that still have to start: writing the journal may have taken long."""
        workers = self._run.machine.workers
        left = [
            node
            for node, worker in starting.items()
            if self._run.workers.get(node) is worker and node in workers and workers[node].state is WorkerState.STARTING
        ]
        for node in left:
            self._run.wiring.started(node)
        self._run.keep_descriptors()
        self._for_each(left, self._tell_start)

    def _tell_start(self, worker: WorkerProcess) -> None:
        worker.send(wire.Start(handover=self._handovers.pop(worker.node, None)))

    def plan_of(self, node: str) -> tuple[NodePlan, str]:
        """Return the plan of ``node`` and the folder that its paths start from, also for a removed node whose worker is
        not gone."""
        found = self._run.plan.nodes.get(node)
        return (found, self._run.plan.base_dir) if found is not None else self._former[node]

    def _leave(self, node: str) -> None:
        """Tell the worker of ``node`` to leave. Bus messages for it go to its successor from now on."""
        self._services.bus.hand_over(
            self._run.workers[node], self._run.standby_worker(node), self._run.plan.nodes[node].configure.subscriptions
        )
        self._run.probes.stop(node)
        self._run.workers[node].send(wire.Leave())

    def _removed(self, node: str) -> None:
        del self._run.workers[node]
        self._run.failures.pop(node, None)
        self._former.pop(node, None)
        self._run.restart_timers.forget(node)

    def _after_death(self, node: str, settle: Callable[[str], list[ToNode]]) -> None:
        """Settle the routes of ``node``, whose worker is gone. If it left memory that no successor can continue, the
        succession fails."""
        try:
            self._run.send_wiring(settle(node))
            self._run.keep_descriptors()
        except LostMemory as lost:
            self._run.dispatch(core.SuccessionFailed(lost.node, lost.what))
        except (shm.PeerFault, OSError, MemoryError) as fault:
            self._run.dispatch(core.SuccessionFailed(node, f"left a ring that no successor can continue: {fault}"))
        self._run.announce_relinked()

    def _entered(self, state: FlowState) -> None:
        self._run.changed_unix_ns = time.time_ns()
        if state is FlowState.RUNNING:
            self._run.keep_descriptors()
            self._run.held_frames.start()
            for node, worker in self._run.workers.items():
                if worker.alive:
                    self.start_watching(node)
        if self._run.machine.ended:
            self._release()
        failure = self._run.machine.failure
        why = self._run.reason or (f"node {failure.node!r} {failure.message}" if failure else "")
        self._run.flow_events.entered(state, why, len(self._run.plan.nodes))

    def start_watching(self, node: str) -> None:
        """Start the timers and the liveness probe of a node whose worker runs."""
        timers = self.plan_of(node)[0].configure.timers
        if timers:
            self._services.bus.start_timers(self._run.workers[node], timers)
        self._run.probes.start(node)

    def _release(self) -> None:
        """Compose the reason why the flow ended, and release everything, because its last worker is gone."""
        failure = self._run.machine.failure
        if failure is not None:
            worker = self._run.workers.get(failure.node)
            subject = self._run.machine.workers.get(failure.node)
            ended, tail = subject.exit if subject else None, worker.stderr_tail if worker else []
            self._run.reason = reason(failure, ended, tail, self._run.last_exits.get(failure.node))
            self._run.reason += f"; {self._delayed_by}" if self._delayed_by else ""
        elif self._run.machine.killed:
            self._run.reason = f"killed: {', '.join(self._run.machine.killed)}"
        for node in tuple(self._run.workers):
            if node not in self._run.plan.nodes:
                self._removed(node)
        self._run.restart_timers.close()
        self._run.taps.end()
        self._run.held_frames.stop()
        self._run.kept_descriptors.close()
        self._run.wiring.close(closing.beside)
        shm_support.flow_ended()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _deadline_passed(self) -> None:
        self._deadline = None
        self._delayed_by = self._run.waits_for
        self._run.dispatch(core.DeadlinePassed())
