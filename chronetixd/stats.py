"""Figures of flows: routes' counters from shared memory, workers' time and memory from /proc."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict
from typing import Any

import msgspec

from chronetixd.core.worker import WorkerState
from chronetixd.flowrun import FlowRun
from chronetixd.stages import DataRoute
from protocol import cbor
from protocol.contract import Route

MAX_RESULTS = 8 * 1024 * 1024
"""Bytes of all results of a flow that a description may have: the rest of its message needs room too."""

MAX_LAST_WORDS = 4 * 1024 * 1024
"""Characters of stderr that all remembered exits of a flow may have in a description."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def process_figures(pid: int) -> dict[str, float]:
    """cpu_s, rss_bytes and unique_bytes (private to the process) of ``pid``; zeros for one that is gone or that
    cannot be read: it has made itself so (setuid), or descriptors have run out."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            rollup = dict(line.split(None, 1) for line in file if line.endswith(b"kB\n"))
    except OSError:
        return {"cpu_s": 0.0, "rss_bytes": 0, "unique_bytes": 0}
    private = sum(int(rollup.get(key, b"0 kB").split()[0]) for key in (b"Private_Clean:", b"Private_Dirty:"))
    return {
        "cpu_s": (int(fields[11]) + int(fields[12])) / _TICKS,
        "rss_bytes": int(fields[21]) * _PAGE,
        "unique_bytes": private * 1024,
    }


async def flow_stats(runs: list[FlowRun]) -> dict[str, Any]:
    """The ``stats`` verb's value. Gives way to others between workers: memory figures cost the kernel a walk each."""
    flows = []
    for run in runs:
        run.held_frames.stir()
        nodes = []
        for name in run.plan.nodes:
            nodes.append(_node_stats(run, name))
            await asyncio.sleep(0)
        flows.append({"flow": run.name, "state": str(run.state), "nodes": nodes, "routes": _routes_stats(run)})
    return {"monotonic_ns": time.monotonic_ns(), "flows": flows}


def _node_stats(run: FlowRun, node: str) -> dict[str, Any]:
    worker, subject = run.workers.get(node), run.machine.workers.get(node)
    pid = worker.pid if worker is not None else 0
    figures = process_figures(pid if worker is not None and worker.alive else 0)
    state = str(subject.state) if subject else str(WorkerState.SPAWNING)
    restarts = subject.incarnation if subject else 0
    failed = run.failures[node].figures()
    return {"node": node, "pid": pid, "state": state, "restarts": restarts, "failed_frames": failed, **figures}


def _routes_stats(run: FlowRun) -> list[dict[str, Any]]:
    found = []
    for route in run.wiring.routes:
        snapshot = run.wiring.snapshot(route)
        taps = run.taps.of(route.id)
        found.append({"id": route.id, "from": route.source, "to": route.target, "taps": taps, **(snapshot or {})})
    return found


def describe(run: FlowRun) -> dict[str, Any]:
    """The ``describe`` verb's value."""
    run.held_frames.stir()
    flow = run.plan.flow
    return {
        "name": run.name,
        "state": str(run.state),
        "reason": run.reason,
        "submitted_unix_ns": run.submitted_unix_ns,
        "changed_unix_ns": run.changed_unix_ns,
        "strategy": flow.strategy,
        "nodes": _with_deaths(run, _describe_nodes(run)),
        "routes": [_describe_route(run, route) for route in flow.routes],
        "timers": [
            {"node": manifest.node, "id": timer.id, "interval_ns": timer.schedule.interval_ns}
            for manifest in flow.manifests
            for timer in manifest.timers
        ],
        "subscriptions": [
            {"node": node, "topic": topic}
            for node, plan in run.plan.nodes.items()
            for topic in plan.configure.subscriptions
        ],
        "flow": dict(flow.raw),
    }


def _describe_nodes(run: FlowRun) -> list[dict[str, Any]]:
    """Every node; results only as far as they fit into one message together, the others by their size."""
    nodes = [_describe_node(run, node) for node in run.plan.nodes]
    room = MAX_RESULTS
    for node in nodes:
        size = len(cbor.dumps(node["result"])) if node.get("result") is not None else 0
        if size > room:
            node["result"] = None
            node["result_left_out"] = size
        else:
            room -= size
    return nodes


def _with_deaths(run: FlowRun, nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last exits of every node, oldest first; what they wrote to stderr only as far as MAX_LAST_WORDS goes."""
    room = MAX_LAST_WORDS
    for node in nodes:
        node["deaths"] = [msgspec.to_builtins(death) for death in run.deaths(node["node"])]
        for death in reversed(node["deaths"]):
            size = sum(map(len, death["stderr"]))
            room -= size
            if room < 0 and size:
                death["stderr"], death["stderr_left_out"] = [], size
    return nodes


def _describe_node(run: FlowRun, node: str) -> dict[str, Any]:
    manifest = run.plan.nodes[node].manifest
    worker, subject = run.workers.get(node), run.machine.workers.get(node)
    alive = worker is not None and worker.alive
    described = {
        "node": node,
        "plugin_id": manifest.plugin_id,
        "role": manifest.role,
        "kind": manifest.artifact.kind,
        "uri": manifest.artifact.uri,
        "state": str(subject.state) if subject else str(WorkerState.SPAWNING),
        "pid": worker.pid if worker else 0,
        "started_unix_ns": worker.started_unix_ns if worker else 0,
        "memory_bytes": process_figures(worker.pid)["unique_bytes"] if worker is not None and alive else 0,
        "incarnation": subject.incarnation if subject else 0,
        "restart": _describe_restart(run, node),
        "failed_frames": run.failures[node].figures(),
        "exit": None,
    }
    if subject is not None and subject.finished:
        described["result"] = subject.result
    if worker is not None and subject is not None and (subject.exit or worker.fault):
        ended = subject.exit._asdict() if subject.exit else {"code": None, "signal": None}
        described["exit"] = {**ended, "stderr_tail": worker.stderr_tail, "fault": worker.fault}
    return described


def _describe_restart(run: FlowRun, node: str) -> dict[str, Any]:
    """The node's rule, how often it was restarted, and, while it waits for that, when."""
    manifest, subject, revival = run.plan.nodes[node].manifest, run.machine.workers.get(node), run.revivals[node]
    return {
        **asdict(manifest.restart),
        "restarts": subject.incarnation if subject else 0,
        "last_reason": revival.last_reason,
        "next_restart_unix_ns": revival.next_restart_unix_ns,
        "liveness": None if manifest.liveness is None else asdict(manifest.liveness),
    }


def _describe_route(run: FlowRun, route: Route) -> dict[str, Any]:
    data = next((each for each in run.wiring.routes if each.id == route.id), None) if route.plane == "data" else None
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
    """What the route's consumer keeps."""
    kept = run.wiring.kept(route)
    return None if kept is None else {"node": route.target, "count": kept[0], "seq": kept[1], "age_ns": kept[2]}
