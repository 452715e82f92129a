"""What a route's policy may be, what it is when nothing is said, and how it reaches the workers."""

from __future__ import annotations

from typing import Any

import pytest

from chronetix.protocol.configure import configure
from chronetix.protocol.contract import parse_flow


def manifest(node: str, **fields: Any) -> dict[str, Any]:
    artifact = {"kind": "Python", "uri": "python://module:object"}
    return {"node_id": node, "plugin_id": "plugin", "artifact": artifact, **fields}


def flow(qos: dict[str, Any] | None = None, **route: Any) -> dict[str, Any]:
    source = manifest("a", **({"qos": qos} if qos else {}))
    return {"manifests": [source, manifest("b")], "routes": [{"from": "a", "to": "b", "plane": "data", **route}]}


def port(raw: dict[str, Any]) -> Any:
    checked = parse_flow(raw)
    assert checked.flow is not None, checked.problems
    told = configure(checked.flow, "f", "/")
    (out,), (into,) = told[0].outputs, told[1].inputs
    assert (out.policy, out.limit_ns) == (into.policy, into.limit_ns)
    return out


def test_a_route_blocks_unless_it_says_otherwise():
    told = port(flow())
    assert (told.policy, told.limit_ns) == ("block", 0)


@pytest.mark.parametrize("policy", ["block", "drop_newest", "latest"])
def test_what_it_says_is_what_it_is(policy):
    assert port(flow(policy=policy)).policy == policy


def test_routes_of_a_best_effort_node_drop_unless_they_say_otherwise():
    qos = {"qos": "best-effort"}
    assert port(flow(qos)).policy == "drop_newest"
    assert port(flow(qos, policy="block")).policy == "block"
    assert port(flow(qos, policy="latest")).policy == "latest"
    assert port(flow(qos, limit_ms=5)).policy == "block"


def test_a_limit_is_handed_on_in_nanoseconds():
    assert port(flow(limit_ms=1.5)).limit_ns == 1_500_000


@pytest.mark.parametrize(
    ("route", "path", "message"),
    [
        ({"policy": "newest"}, "routes[0].policy", "not known"),
        ({"policy": "latest", "limit_ms": 5}, "routes[0].limit_ms", "latest never waits"),
        ({"policy": "drop_newest", "limit_ms": 5}, "routes[0].limit_ms", "drop_newest never waits"),
        ({"limit_ms": 0}, "routes[0].limit_ms", "out of range"),
        ({"limit_ms": "5s"}, "routes[0].limit_ms", "must be a number"),
        ({"limit_ms": float("inf")}, "routes[0].limit_ms", "out of range"),
    ],
)
def test_senseless_ones_are_refused(route, path, message):
    problems = parse_flow(flow(**route)).problems
    assert [(each.path, message in each.message) for each in problems] == [(path, True)]
