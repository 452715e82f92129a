"""Rates of routes and nodes, and the bottlenecks, from two snapshots of the daemon's counters. Pure.

Rules: a route is under pressure when it stands at its watermark, or its producer met WouldBlock between the
snapshots: a producer that was just woken at credit_low has some credits, although its route is under pressure. The
bottleneck is a route under pressure whose consumer is not itself held up: none of the consumer's own outputs is under
pressure. The flow waits for that consumer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RouteRate:
    """The rates of one route between two snapshots. Rates are per second, times in ns, ``blocked_share`` from 0 to
    1."""

    flow: str
    route: str
    source: str
    target: str
    frames_per_s: float
    bytes_per_s: float
    outstanding: int
    credits: int
    watermark: int
    would_block: int
    would_block_per_s: float
    blocked_share: float
    dropped: int
    p50_ns: int
    p99_ns: int
    frames: int
    closed: bool
    pressed: bool
    bottleneck: bool = False


@dataclass(frozen=True, slots=True)
class NodeRate:
    """The rates of one node between two snapshots. ``cpu`` is in CPUs (1.0 is one CPU busy all the time), memory in
    bytes."""

    flow: str
    node: str
    state: str
    pid: int | None
    cpu: float
    rss_bytes: int
    unique_bytes: int
    dropped_messages: int
    """Messages of the event bus that the node lost because it did not read them."""


def route_rates(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[RouteRate]:
    """Return the rates of every data route in the later snapshot; a route that the earlier one lacks has rates of 0."""
    seconds = _seconds(before, after)
    earlier = {(flow["flow"], route["id"]): route for flow in before["flows"] for route in flow["routes"]}
    rates = [
        _route_rate(flow["flow"], route, earlier.get((flow["flow"], route["id"])), seconds)
        for flow in after["flows"]
        for route in flow["routes"]
        if route.get("credits")
    ]
    held_up = {(rate.flow, rate.source) for rate in rates if rate.pressed}
    return [_marked(rate, held_up) for rate in rates]


def node_rates(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[NodeRate]:
    """Return the rates of every node in the later snapshot; a process that the earlier one lacks has ``cpu`` 0."""
    seconds = _seconds(before, after)
    earlier = {
        (flow["flow"], node["node"], node.get("pid")): node for flow in before["flows"] for node in flow["nodes"]
    }
    rates = []
    for flow in after["flows"]:
        for node in flow["nodes"]:
            was = earlier.get((flow["flow"], node["node"], node.get("pid")))
            spent = (node.get("cpu_s") or 0) - (was.get("cpu_s") or 0) if was else 0
            rates.append(
                NodeRate(
                    flow=flow["flow"],
                    node=node["node"],
                    state=node["state"],
                    pid=node.get("pid"),
                    cpu=max(0.0, spent / seconds),
                    rss_bytes=node.get("rss_bytes") or 0,
                    unique_bytes=node.get("unique_bytes") or 0,
                    dropped_messages=node.get("dropped_messages") or 0,
                )
            )
    return rates


def _seconds(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    return max(1, int(after["monotonic_ns"]) - int(before["monotonic_ns"])) / 1e9


def _route_rate(flow: str, now: Mapping[str, Any], was: Mapping[str, Any] | None, seconds: float) -> RouteRate:
    def grown(key: str) -> int:
        # A counter that went down was reset by a restart between the snapshots: all of it was counted since then.
        if was is None:
            return 0
        difference: int = now[key] - was[key]
        return difference if difference >= 0 else now[key]

    blocked = grown("would_block")
    marks = (now["outstanding"], was["outstanding"] if was else 0)
    return RouteRate(
        flow=flow,
        route=now["id"],
        source=now["from"],
        target=now["to"],
        frames_per_s=grown("committed") / seconds,
        bytes_per_s=grown("bytes") / seconds,
        outstanding=now["outstanding"],
        credits=now["credits"],
        watermark=now["watermark"],
        would_block=now["would_block"],
        would_block_per_s=blocked / seconds,
        blocked_share=min(1.0, grown("blocked_ns") / 1e9 / seconds),
        dropped=now["dropped"],
        p50_ns=now["p50_ns"],
        p99_ns=now["p99_ns"],
        frames=now["committed"],
        closed=bool(now.get("closed")),
        pressed=not now.get("detached") and now["outstanding"] > 0 and (max(marks) >= now["watermark"] or blocked > 0),
    )


def _marked(rate: RouteRate, held_up: set[tuple[str, str]]) -> RouteRate:
    if not rate.pressed or (rate.flow, rate.target) in held_up:
        return rate
    return RouteRate(**{**asdict(rate), "bottleneck": True})


def merged(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the later snapshot with rates added to each route and node, for JSON."""
    routes = {(rate.flow, rate.route): rate for rate in route_rates(before, after)}
    nodes = {(rate.flow, rate.node): rate for rate in node_rates(before, after)}
    flows = [
        {
            **flow,
            "nodes": [{**node, "cpu": nodes[flow["flow"], node["node"]].cpu} for node in flow["nodes"]],
            "routes": [{**route, **_added(routes.get((flow["flow"], route["id"])))} for route in flow["routes"]],
        }
        for flow in after["flows"]
    ]
    return {"monotonic_ns": after["monotonic_ns"], "seconds": _seconds(before, after), "flows": flows}


def _added(rate: RouteRate | None) -> dict[str, Any]:
    if rate is None:
        return {}
    names = ("frames_per_s", "bytes_per_s", "would_block_per_s", "blocked_share", "pressed", "bottleneck")
    return {name: getattr(rate, name) for name in names}


def bottlenecks(rates: Sequence[RouteRate]) -> list[RouteRate]:
    """Return the rates of the routes that are bottlenecks."""
    return [rate for rate in rates if rate.bottleneck]
