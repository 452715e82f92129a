"""From the contract to what runs: each node's configure message and spawn request, and what this version cannot do.

Pure. A control route makes its source publish, and its target subscribe to, the route's topic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chronetixd.artifacts import BUILTIN, program
from chronetixd.wiring import DataRoute
from protocol.contract import Flow, Manifest, Problem, Route
from protocol.messages import Configure, Port, Timer


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node. ``argv`` is empty for what a Python worker runs."""

    manifest: Manifest
    configure: Configure
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A flow that can be run under ``name``."""

    name: str
    flow: Flow
    base_dir: str
    nodes: dict[str, NodePlan]
    data_routes: tuple[DataRoute, ...]


def unsupported(flow: Flow) -> tuple[list[Problem], list[Problem]]:
    """What of the contract this version refuses, and what it accepts without effect: (problems, warnings)."""
    problems: list[Problem] = []
    warnings: list[Problem] = []
    if not flow.manifests:
        problems.append(Problem("manifests", "a flow needs at least one node", "add a manifest"))
    for index, manifest in enumerate(flow.manifests):
        for at, timer in enumerate(manifest.timers):
            path = f"manifests[{index}].timers[{at}].schedule"
            if timer.schedule.interval_ns is None:
                problems.append(
                    Problem(f"{path}.cron", "cron schedules are not supported", "use interval_ms or rate_hz")
                )
            for name in ("align_to", "start_at", "jitter_pct"):
                if getattr(timer.schedule, name):
                    warnings.append(Problem(f"{path}.{name}", "is kept but has no effect in this version"))
        args = manifest.params.get("args")
        if manifest.artifact.kind == "Process" and not _is_text_list(args):
            problems.append(Problem(f"manifests[{index}].params.args", "must be a list of texts", 'as in ["-v", "3"]'))
        for at, subscription in enumerate(manifest.bus_subscriptions):
            if "*" in subscription.pattern:
                path = f"manifests[{index}].bus_subscriptions[{at}].pattern"
                problems.append(Problem(path, "wildcards are not supported", "name each topic in full"))
    return problems, warnings


def make_plan(name: str, flow: Flow, base_dir: str) -> Plan:
    """The plan of a flow without problems."""
    nodes = {manifest.node: _node(name, flow, manifest, base_dir) for manifest in flow.manifests}
    routes = tuple(DataRoute(route.id, route.source, route.target) for route in flow.data_routes)
    return Plan(name, flow, base_dir, nodes, routes)


def _node(name: str, flow: Flow, manifest: Manifest, base_dir: str) -> NodePlan:
    node = manifest.node
    configure = Configure(
        flow=name,
        node=node,
        plugin_id=manifest.plugin_id,
        version=manifest.version,
        kind=manifest.artifact.kind,
        uri=manifest.artifact.uri,
        inputs=[_port(flow, route, route.source) for route in flow.data_routes if route.target == node],
        outputs=[_port(flow, route, route.target) for route in flow.data_routes if route.source == node],
        timers=[Timer(id=timer.id, interval_ns=timer.schedule.interval_ns or 0) for timer in manifest.timers],
        subscriptions=_subscriptions(flow, manifest),
        publications=_publications(flow, manifest),
        params=dict(manifest.params),
        qos=dict(manifest.qos.raw),
        features=dict(manifest.features),
        annotations=dict(manifest.annotations),
        batch_hints=dict(manifest.io.batch_hints),
        arena_limit=manifest.resource_claims.arena_bytes,
        base_dir=base_dir,
    )
    return NodePlan(manifest, configure, _argv(manifest, base_dir))


def _port(flow: Flow, route: Route, peer: str) -> Port:
    low = flow.manifest(route.source).qos.credit_low
    return Port(
        route=route.id,
        peer=peer,
        topic=route.topic,
        content_type=route.content_type,
        schema_ver=route.schema_ver,
        credits=route.buffer,
        watermark=route.watermark,
        credit_low=min(low, route.buffer) if low else max(1, route.buffer // 2),
        policy=route.policy,
    )


def _subscriptions(flow: Flow, manifest: Manifest) -> list[str]:
    own = [subscription.pattern for subscription in manifest.bus_subscriptions]
    routes = [route.topic for route in flow.routes if route.plane == "control" and route.target == manifest.node]
    return list(dict.fromkeys([*own, *routes]))


def _publications(flow: Flow, manifest: Manifest) -> list[str]:
    own = [publication.topic for publication in manifest.bus_publications]
    routes = [route.topic for route in flow.routes if route.plane == "control" and route.source == manifest.node]
    return list(dict.fromkeys([*own, *routes]))


def _argv(manifest: Manifest, base_dir: str) -> tuple[str, ...]:
    if manifest.artifact.kind != "Process" or manifest.artifact.uri.startswith(BUILTIN):
        return ()
    return (program(manifest, base_dir), *(manifest.params.get("args") or ()))


def _is_text_list(args: Any) -> bool:
    """Fit for a command line; None is."""
    return args is None or (isinstance(args, list) and all(isinstance(arg, str) and "\0" not in arg for arg in args))
