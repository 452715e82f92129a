"""Makes the configure messages of a flow's workers, and finds parts of the contract that this version lacks. Pure.

A control route makes its source publish on, and its target subscribe to, the route's topic. A part of the contract that
this version cannot fulfil is refused by name, never silently left out.
"""

from __future__ import annotations

from typing import Any

from chronetix.protocol.contract import Flow, Manifest, Problem, Route
from chronetix.protocol.messages import Configure, Port, TimerSpec


def configure(flow: Flow, name: str, base_dir: str) -> list[Configure]:
    """Return one message for each node of the flow that runs as ``name``, in the flow's order.

    :func:`unsupported` must find no problem in the flow. Relative artifacts start from ``base_dir``.
    """
    routes = _Routes(flow)
    return [_node(flow, manifest, name, base_dir, routes) for manifest in flow.manifests]


class _Routes:
    """The routes of a flow, by plane and by their source or target."""

    def __init__(self, flow: Flow) -> None:
        self.qos = {manifest.node: manifest.qos for manifest in flow.manifests}
        self.data_from: dict[str, list[Route]] = {}
        self.data_to: dict[str, list[Route]] = {}
        self.control_from: dict[str, list[Route]] = {}
        self.control_to: dict[str, list[Route]] = {}
        for route in flow.routes:
            data = route.plane == "data"
            starts, ends = (self.data_from, self.data_to) if data else (self.control_from, self.control_to)
            starts.setdefault(route.source, []).append(route)
            ends.setdefault(route.target, []).append(route)


def unsupported(flow: Flow) -> tuple[list[Problem], list[Problem]]:
    """Return (problems, warnings): fields that this version refuses, and fields that it accepts without effect."""
    problems: list[Problem] = []
    warnings: list[Problem] = []
    if not flow.manifests:
        problems.append(Problem("manifests", "a flow needs at least one node", "add a manifest"))
    attached: dict[str, str] = {}
    for index, manifest in enumerate(flow.manifests):
        if manifest.artifact.attach:
            _check_attach(index, manifest, attached, problems, warnings)
        for at, timer in enumerate(manifest.timers):
            path = f"manifests[{index}].timers[{at}].schedule"
            if timer.schedule.interval_ns is None:
                cure = "use interval_ms or rate_hz"
                problems.append(Problem(f"{path}.cron", "cron schedules are not supported", cure))
            for field in ("align_to", "start_at", "jitter_pct"):
                if getattr(timer.schedule, field):
                    warnings.append(Problem(f"{path}.{field}", "is kept but has no effect in this version"))
        if manifest.user and flow.on_daemon_loss == "survive":
            text = "a process of another user than the daemon's cannot reattach to the next daemon"
            problems.append(Problem(f"manifests[{index}].user", text, "leave it out, or set on_daemon_loss to stop"))
        for at, subscription in enumerate(manifest.bus_subscriptions):
            path = f"manifests[{index}].bus_subscriptions[{at}]"
            if "*" in subscription.pattern:
                problems.append(Problem(f"{path}.pattern", "wildcards are not supported", "name each topic in full"))
            if subscription.delivery == "at_least_once":
                text = "the event bus delivers at most once: it drops messages for a node that does not read them"
                problems.append(Problem(f"{path}.delivery", text, "set it to at_most_once"))
    return problems, warnings


def _check_attach(
    index: int, manifest: Manifest, attached: dict[str, str], problems: list[Problem], warnings: list[Problem]
) -> None:
    """Check a node whose worker starts by itself. ``attached``: the earlier nodes of this kind, by their names."""
    path, name = f"manifests[{index}]", manifest.artifact.attach
    if name in attached:
        text = f"node {attached[name]!r} has the same artifact"
        problems.append(Problem(f"{path}.artifact.uri", text, "give each node a name of its own, attach://NAME"))
    attached[name] = manifest.node
    if manifest.user:
        text = "a worker that attaches is the daemon's user's"
        problems.append(Problem(f"{path}.user", text, "leave it out"))
    for claim in ("cpu_millis", "memory_bytes"):
        if getattr(manifest.resource_claims, claim):
            text = "has no effect on a worker that attaches: the daemon has not started it"
            warnings.append(Problem(f"{path}.resource_claims.{claim}", text, "limit it where it is started"))


def _node(flow: Flow, manifest: Manifest, name: str, base_dir: str, routes: _Routes) -> Configure:
    node = manifest.node
    subscribed = [s.pattern for s in manifest.bus_subscriptions] + [r.topic for r in routes.control_to.get(node, ())]
    published = [p.topic for p in manifest.bus_publications] + [r.topic for r in routes.control_from.get(node, ())]
    return Configure(
        flow=name,
        node=node,
        plugin_id=manifest.plugin_id,
        version=manifest.version,
        kind=manifest.artifact.kind,
        uri=manifest.artifact.uri,
        inputs=[_port(routes, route, route.source) for route in routes.data_to.get(node, ())],
        outputs=[_port(routes, route, route.target) for route in routes.data_from.get(node, ())],
        timers=[TimerSpec(id=timer.id, interval_ns=timer.schedule.interval_ns or 0) for timer in manifest.timers],
        subscriptions=list(dict.fromkeys(subscribed)),
        publications=list(dict.fromkeys(published)),
        params=dict(manifest.params),
        qos=_qos(flow, manifest),
        features=dict(manifest.features),
        annotations=dict(manifest.annotations),
        batch_hints=dict(manifest.io.batch_hints),
        arena_limit=manifest.resource_claims.arena_bytes,
        hugepages=manifest.resource_claims.hugepages,
        base_dir=base_dir,
        on_daemon_loss=flow.on_daemon_loss,
        budget_ns=manifest.qos.deadline_ns or 0,
        max_inflight=manifest.qos.max_inflight or 1,
    )


def _qos(flow: Flow, manifest: Manifest) -> dict[str, Any]:
    """Return the node's qos as given; if frames are retried, with the flow's dead-letter topic."""
    letters = {"dead_letter": flow.dead_letter} if manifest.qos.retry and flow.dead_letter else {}
    clamped = {} if manifest.qos.priority is None else {"priority": manifest.qos.priority}
    return {**manifest.qos.raw, **clamped, **letters}


def _port(routes: _Routes, route: Route, peer: str) -> Port:
    """Return one end of a route as a port. ``credit_low`` and the class of service are those of the producer;
    ``credit_low`` is half of the credits by default, and always less than the credits."""
    qos = routes.qos[route.source]
    low = qos.credit_low
    return Port(
        route=route.id,
        peer=peer,
        topic=route.topic,
        content_type=route.content_type,
        schema_ver=route.schema_ver,
        credits=route.buffer,
        watermark=route.watermark,
        credit_low=min(route.buffer // 2 if low is None else low, route.buffer - 1),
        policy=route.policy,
        limit_ns=round((route.limit_ms or 0) * 1e6),
        qos=qos.qos,
    )
