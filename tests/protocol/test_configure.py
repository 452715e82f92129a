"""What a flow's workers are told."""

from __future__ import annotations

import itertools
from typing import Any

from chronetix.protocol.configure import configure
from chronetix.protocol.contract import parse_flow
from chronetix.protocol.messages import Configure


def manifest(node: str, **fields: Any) -> dict[str, Any]:
    return {
        "plugin_id": node,
        "node_id": node,
        "version": "0.1.0",
        "origin": "external",
        "category": "Business",
        "role": "Transform",
        "artifact": {"kind": "Python", "uri": f"python://{node}.py:run"},
        "io": {},
        **fields,
    }


def told(*manifests: dict[str, Any]) -> dict[str, Configure]:
    """The nodes in a row, each sending to the next."""
    common = {"content_type": "application/json", "schema_ver": "v1", "buffer": 8, "watermark": 6, "plane": "data"}
    nodes = [one["node_id"] for one in manifests]
    pairs = itertools.pairwise(nodes)
    routes = [{"from": a, "to": b, "topic": f"{a}/{b}", **common} for a, b in pairs]
    validation = parse_flow({"manifests": list(manifests), "routes": routes, "schemas": []})
    assert validation.flow is not None, validation.problems
    return {message.node: message for message in configure(validation.flow, "f", "/base")}


def test_an_input_is_served_in_the_class_of_its_producer() -> None:
    messages = told(manifest("a", qos={"qos": "realtime"}), manifest("b"), manifest("c", qos={"qos": "best-effort"}))
    assert [messages["a"].outputs[0].qos, messages["b"].inputs[0].qos] == ["realtime", "realtime"]
    assert [messages["b"].outputs[0].qos, messages["c"].inputs[0].qos] == ["normal", "normal"]


def test_a_deadline_of_the_manifest_is_the_budget_of_the_node_s_frames() -> None:
    messages = told(manifest("a", qos={"deadline_ns": 5_000_000}), manifest("b"))
    assert [messages["a"].budget_ns, messages["b"].budget_ns] == [5_000_000, 0]


def test_one_frame_is_worked_on_at_a_time_unless_the_manifest_says_more() -> None:
    messages = told(manifest("a"), manifest("b", qos={"max_inflight": 16}))
    assert [messages["a"].max_inflight, messages["b"].max_inflight] == [1, 16]


def test_credits_are_the_route_s_and_credit_low_the_producer_s_or_half() -> None:
    messages = told(manifest("a", qos={"credit_low": 3}), manifest("b"), manifest("c"))
    assert [(port.credits, port.credit_low) for port in messages["a"].outputs] == [(8, 3)]
    assert [(port.credits, port.credit_low) for port in messages["c"].inputs] == [(8, 4)]


def test_a_priority_above_the_highest_reaches_the_plugin_as_the_highest() -> None:
    messages = told(manifest("a", qos={"priority": 200, "mine": 1}), manifest("b", qos={"priority": 3}), manifest("c"))
    assert [messages[node].qos for node in "abc"] == [{"priority": 7, "mine": 1}, {"priority": 3}, {}]
