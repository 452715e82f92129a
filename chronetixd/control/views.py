"""The views of flows that verbs return: routes' counters from shared memory, workers' time and memory from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from chronetix.protocol import cbor
from chronetix.protocol.contract import Liveness, Restart, Route
from chronetixd.core.death import ExitRecord
from chronetixd.core.wiring.stages import DataRoute
from chronetixd.core.worker import Exit, WorkerState
from chronetixd.flows import attach
from chronetixd.flows.run import FlowRun
from chronetixd.loop.turns import Pace

MAX_RESULTS = 8 * 1024 * 1024
"""Bytes that all results of a flow may take in a description: the rest of the message needs room too."""

MAX_LAST_WORDS = 4 * 1024 * 1024
"""Characters of stderr that all stored exits of a flow may take in a description."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


REFRESHED = 16
"""How many workers' private memory is measured anew for one call: the kernel walks a process's memory for it."""


class ProcessFigures(TypedDict):
    """What the kernel says of one worker."""

    cpu_s: float
    """Processor time of the worker in seconds."""
    rss_bytes: int
    """Resident memory of the worker in bytes; shared memory counts, too."""
    unique_bytes: int
    """Memory of the worker that no other process shares, in bytes; measured from time to time."""


class NodeStats(ProcessFigures):
    """The figures of one node in ``top``."""

    node: str
    """Name of the node."""
    pid: int
    """Process id of the worker; 0 before it has one."""
    state: str
    """State of the worker."""
    restarts: int
    """How often the node was restarted or replaced."""
    failed_frames: dict[str, int]
    """Frames over which the plugin raised and that were tried again (``qos.retry``)."""
    dropped_messages: int
    """Messages of the event bus that were dropped, because too many bytes waited for the node."""


GONE = ProcessFigures(cpu_s=0.0, rss_bytes=0, unique_bytes=0)


class Figures:
    """Reads the figures of processes from /proc. Not for the loop: reading a process's /proc files may wait for it.

    Processor time and resident memory are current. Private memory, which takes the kernel long to measure, is measured
    when a process is first asked for, and then in turn, after the answer has been made.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._private: dict[int, int] = {}
        """Private memory in bytes by pid; the one that was measured longest ago comes first."""

    def of(self, pids: Collection[int]) -> dict[int, ProcessFigures]:
        """Return cpu_s, rss_bytes and unique_bytes (memory private to the process) of each process. All are zero for a
        process that is gone or cannot be read, because it runs as another user (setuid) or descriptors have run out."""
        wanted = frozenset(pids)
        found = {pid: self._figures(pid) for pid in wanted}
        if len(self._private) > 2 * len(wanted) + REFRESHED:
            self._private = {pid: size for pid, size in self._private.items() if (self._proc / str(pid)).exists()}
        return found

    def refresh(self, pids: Collection[int]) -> None:
        """Measure the private memory of those REFRESHED processes of ``pids`` anew that were measured longest ago."""
        wanted = frozenset(pids)
        for pid in [pid for pid in self._private if pid in wanted][:REFRESHED]:
            del self._private[pid]
            self._figures(pid)

    def _figures(self, pid: int) -> ProcessFigures:
        try:
            with open(f"{self._proc}/{pid}/stat", "rb", 0) as file:
                fields = file.read(4096).rpartition(b")")[2].split()
            private = self._private.get(pid)
            if private is None:
                private = self._private[pid] = self._look_at(pid)
        except OSError:
            self._private.pop(pid, None)
            return GONE
        cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS
        return ProcessFigures(cpu_s=cpu_s, rss_bytes=int(fields[21]) * _PAGE, unique_bytes=private)

    def _look_at(self, pid: int) -> int:
        with open(f"{self._proc}/{pid}/smaps_rollup", "rb") as file:
            rollup = dict(line.split(None, 1) for line in file if line.endswith(b"kB\n"))
        return 1024 * sum(int(rollup.get(key, b"0 kB").split()[0]) for key in (b"Private_Clean:", b"Private_Dirty:"))


Ask = Callable[[Collection[int]], Awaitable[dict[int, ProcessFigures]]]
"""A function that returns the figures of processes, read in a thread."""


async def flow_stats(runs: list[FlowRun], ask: Ask) -> cbor.Encoded:
    """Return the value of the verb ``stats``, encoded."""
    figures = await ask([worker.pid for run in runs for worker in run.workers.values() if worker.alive])
    pace = Pace()
    flows = []
    for run in runs:
        run.held_frames.note_activity()
        known = frozenset(run.failures)
        nodes = [
            cbor.dumps(_node_stats(run, name, figures)) async for name in pace.over(run.plan.nodes) if name in known
        ]
        routes = [cbor.dumps(_route_stats(run, route)) async for route in pace.over(run.wiring.routes)]
        told = {"flow": run.name, "state": str(run.state), "nodes": cbor.Encoded.list(nodes)}
        flows.append(cbor.dumps({**told, "routes": cbor.Encoded.list(routes)}))
    return cbor.Encoded(cbor.dumps({"monotonic_ns": time.monotonic_ns(), "flows": cbor.Encoded.list(flows)}))


def _state(run: FlowRun, node: str) -> str:
    """Return the state of the node's worker; ``returning`` and the like while the worker has not reattached."""
    shown, subject = None if run.recovery is None else run.recovery.state(node), run.machine.workers.get(node)
    return shown or str(subject.state if subject else WorkerState.SPAWNING)


def _node_stats(run: FlowRun, node: str, known: Mapping[int, ProcessFigures]) -> NodeStats:
    worker, subject = run.workers.get(node), run.machine.workers.get(node)
    pid = worker.pid if worker is not None else 0
    figures = known.get(pid, GONE) if worker is not None and worker.alive else GONE
    state = _state(run, node)
    restarts = subject.incarnation if subject else 0
    return NodeStats(
        node=node,
        pid=pid,
        state=state,
        restarts=restarts,
        failed_frames=run.failures[node].figures(),
        dropped_messages=run.deliveries[node].dropped,
        **figures,
    )


def _route_stats(run: FlowRun, route: DataRoute) -> dict[str, Any]:
    taps, snapshot = run.taps.of(route.id), run.wiring.snapshot(route)
    return {"id": route.id, "from": route.source, "to": route.target, "taps": taps, **(snapshot or {})}


async def describe(run: FlowRun, contract: bytes, ask: Ask, socket: str) -> cbor.Encoded:
    """Return the value of the verb ``describe``, encoded; ``contract`` is the flow as it was submitted, in CBOR.
    ``socket`` is the control socket's path, for workers that attach."""
    run.held_frames.note_activity()
    figures = await ask([worker.pid for worker in run.workers.values() if worker.alive])
    deaths = await run.exits()
    pace = Pace()
    flow, plan = run.plan.flow, run.plan
    data = {route.id: route for route in run.wiring.routes}
    nodes = [_describe_node(run, node, figures, socket) async for node in pace.over(plan.nodes) if node in run.failures]
    await _bound_results(nodes, pace)
    await _add_deaths(nodes, deaths, pace)
    routes = [cbor.dumps(_describe_route(run, route, data.get(route.id))) async for route in pace.over(flow.routes)]
    described = {
        "name": run.name,
        "state": str(run.state),
        "reason": run.reason,
        "returning": returning(run),
        "attachable": len(run.attachable),
        "submitted_unix_ns": run.submitted_unix_ns,
        "changed_unix_ns": run.changed_unix_ns,
        "strategy": flow.strategy,
        "nodes": cbor.Encoded.list([cbor.dumps(node) async for node in pace.over(nodes)]),
        "routes": cbor.Encoded.list(routes),
        "timers": [
            {"node": manifest.node, "id": timer.id, "interval_ns": timer.schedule.interval_ns}
            for manifest in flow.manifests
            for timer in manifest.timers
        ],
        "subscriptions": [
            {"node": node, **figures}
            for node, each in plan.nodes.items()
            for figures in run.deliveries[node].figures(each.configure.subscriptions)
        ],
        "flow": cbor.Encoded(contract),
    }
    return cbor.Encoded(cbor.dumps(described))


def returning(run: FlowRun) -> int:
    """Return how many workers of the flow outlived an earlier daemon and have not reattached yet."""
    return 0 if run.recovery is None else len(run.recovery.awaited)


async def _bound_results(nodes: list[dict[str, Any]], pace: Pace) -> None:
    """Replace results that do not fit into one message together by their sizes."""
    room = MAX_RESULTS
    async for node in pace.over(nodes):
        size = len(cbor.dumps(node["result"])) if node.get("result") is not None else 0
        if size > room:
            node["result"] = None
            node["result_left_out"] = size
        else:
            room -= size


async def _add_deaths(nodes: list[dict[str, Any]], deaths: Mapping[str, list[ExitRecord]], pace: Pace) -> None:
    """Add the last exits of every node, oldest first; their lines of stderr only up to MAX_LAST_WORDS characters."""
    room = MAX_LAST_WORDS
    async for node in pace.over(nodes):
        node["deaths"] = [msgspec.to_builtins(death) for death in deaths.get(node["node"], ())]
        for death in reversed(node["deaths"]):
            size = sum(map(len, death["stderr"]))
            room -= size
            if room < 0 and size:
                death["stderr"], death["stderr_left_out"] = [], size


def _describe_node(run: FlowRun, node: str, known: Mapping[int, ProcessFigures], socket: str) -> dict[str, Any]:
    manifest = run.plan.nodes[node].manifest
    worker, subject = run.workers.get(node), run.machine.workers.get(node)
    alive = worker is not None and worker.alive
    described = {
        "node": node,
        "plugin_id": manifest.plugin_id,
        "role": manifest.role,
        "kind": manifest.artifact.kind,
        "uri": manifest.artifact.uri,
        "state": _state(run, node),
        "pid": worker.pid if worker else 0,
        "started_unix_ns": worker.started_unix_ns if worker else 0,
        "memory_bytes": known.get(worker.pid, GONE)["unique_bytes"] if worker is not None and alive else 0,
        "incarnation": subject.incarnation if subject else 0,
        "restart": _describe_restart(run, node),
        "failed_frames": run.failures[node].figures(),
        "exit": None,
    }
    if node in run.attachable:
        described["attach"] = {"name": run.attachable[node], "command": attach.command(run, node, socket)}
    if subject is not None and subject.finished:
        described["result"] = subject.result
    if worker is not None and subject is not None and (subject.exit or worker.fault):
        ended = (subject.exit or Exit())._asdict()
        described["exit"] = {**ended, "stderr_tail": worker.stderr_tail, "fault": worker.fault}
    return described


def _describe_restart(run: FlowRun, node: str) -> dict[str, Any]:
    """Return the node's restart rule, how often it was restarted and, while a restart is due, when."""
    manifest, subject, timer = run.plan.nodes[node].manifest, run.machine.workers.get(node), run.restart_timers[node]
    return {
        **_fields(manifest.restart),
        "restarts": subject.incarnation if subject else 0,
        "last_reason": timer.last_reason,
        "next_restart_unix_ns": timer.next_restart_unix_ns,
        "liveness": None if manifest.liveness is None else _fields(manifest.liveness),
    }


def _fields(rule: Restart | Liveness) -> dict[str, Any]:
    """Return the fields of a rule as a map; all values are plain."""
    return {field.name: getattr(rule, field.name) for field in fields(rule)}


def _describe_route(run: FlowRun, route: Route, data: DataRoute | None) -> dict[str, Any]:
    data = data if route.plane == "data" else None
    return {
        "id": route.id,
        "from": route.source,
        "to": route.target,
        "plane": route.plane,
        "topic": route.topic,
        "content_type": route.content_type,
        "buffer": route.buffer,
        "watermark": route.watermark,
        "policy": route.policy,
        "limit_ms": route.limit_ms,
        "taps": run.taps.of(route.id),
        "held": _held(run, data) if data is not None else None,
        "stats": run.wiring.snapshot(data) if data is not None else None,
    }


def _held(run: FlowRun, route: DataRoute) -> dict[str, Any] | None:
    """Return the frames that the route's consumer keeps; None if it keeps none."""
    kept = run.wiring.oldest_held(route)
    return None if kept is None else {"node": route.target, "count": kept[0], "seq": kept[1], "age_ns": kept[2]}
