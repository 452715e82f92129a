"""From the flow contract to each node's ``Configure``, for the deployment in one process. Pure.

A control route makes its source publish, and its target subscribe to, the route's topic. Cron schedules and topic
patterns are refused by name: what cannot be kept is not silently left out.
"""

from __future__ import annotations

from protocol.contract import Flow, Manifest, Problem, Route
from protocol.messages import Configure, Port, Timer


def configure(flow: Flow, name: str, base_dir: str) -> list[Configure]:
    """One message for each node, in the flow's order."""
    return [_node(flow, manifest, name, base_dir) for manifest in flow.manifests]


def unsupported(flow: Flow) -> list[Problem]:
    """What of the contract has no effect here, and therefore must not be run."""
    problems = []
    for at, manifest in enumerate(flow.manifests):
        here = f"manifests[{at}]"
        if manifest.artifact.kind != "Python" and not manifest.artifact.uri.startswith("builtin://"):
            message = f"node {manifest.node} is of kind {manifest.artifact.kind}, which needs a process of its own"
            problems.append(Problem(f"{here}.artifact.kind", message, "run the flow with chronetixd"))
        for index, timer in enumerate(manifest.timers):
            if timer.schedule.interval_ns is None:
                path = f"{here}.timers[{index}].schedule.cron"
                problems.append(Problem(path, "cron schedules are not supported", "use interval_ms or rate_hz"))
        for index, subscription in enumerate(manifest.bus_subscriptions):
            if "*" in subscription.pattern:
                path = f"{here}.bus_subscriptions[{index}].pattern"
                problems.append(Problem(path, "wildcards are not supported", "name each topic in full"))
    return problems


def _node(flow: Flow, manifest: Manifest, name: str, base_dir: str) -> Configure:
    node = manifest.node
    control = [route for route in flow.routes if route.plane == "control"]
    subscribed = [s.pattern for s in manifest.bus_subscriptions] + [r.topic for r in control if r.target == node]
    published = [p.topic for p in manifest.bus_publications] + [r.topic for r in control if r.source == node]
    return Configure(
        flow=name,
        node=node,
        plugin_id=manifest.plugin_id,
        version=manifest.version,
        kind=manifest.artifact.kind,
        uri=manifest.artifact.uri,
        inputs=[_port(flow, route, route.source) for route in flow.data_routes if route.target == node],
        outputs=[_port(flow, route, route.target) for route in flow.data_routes if route.source == node],
        timers=[Timer(id=timer.id, interval_ns=timer.schedule.interval_ns or 1) for timer in manifest.timers],
        subscriptions=list(dict.fromkeys(subscribed)),
        publications=list(dict.fromkeys(published)),
        params=dict(manifest.params),
        qos=dict(manifest.qos.raw),
        features=dict(manifest.features),
        annotations=dict(manifest.annotations),
        batch_hints=dict(manifest.io.batch_hints),
        arena_limit=manifest.resource_claims.arena_bytes,
        base_dir=base_dir,
    )


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
