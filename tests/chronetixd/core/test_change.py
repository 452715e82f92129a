"""What differs between two flows: nothing is touched that is the same."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.contract import Flow, parse_flow
from chronetixd.core.change import ABSENT, Change, Difference, FieldChange, compare, fields, refusals

Map = dict[str, Any]


def raw(**changes: Any) -> Map:
    """numbers → square → total."""
    nodes = ("numbers", "square", "total")
    return {
        "manifests": [
            {
                "node_id": node,
                "plugin_id": node,
                "version": "1",
                "artifact": {"kind": "Python", "uri": f"python://squares:{node}"},
                "params": {"count": 3},
            }
            for node in nodes
        ],
        "routes": [route("numbers", "square"), route("square", "total")],
        "schemas": [],
    } | changes


def route(source: str, target: str, **more: Any) -> Map:
    return {"from": source, "to": target, "plane": "data", "topic": f"{source}-{target}", **more}


def flow(of: Map) -> Flow:
    checked = parse_flow(of)
    assert checked.flow is not None, checked.problems
    return checked.flow


def changed(edit: Any) -> Change:
    """The change that ``edit`` makes to the flow."""
    new = copy.deepcopy(raw())
    edit(new)
    return compare(flow(raw()), flow(new))


def test_the_same_flow_is_no_change() -> None:
    change = changed(lambda new: None)
    assert not change
    assert change == Change()


def test_a_param_changes_its_node_and_no_route() -> None:
    change = changed(lambda new: new["manifests"][1]["params"].update(count=4))
    assert change.nodes == (Difference("square", "changed", (FieldChange("params.count", 3, 4),)),)
    assert change.routes == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", "2"),
        ("plugin_id", "cube"),
        ("artifact", {"kind": "Python", "uri": "python://squares:cube"}),
        ("qos", {"priority": 7}),
        ("timers", [{"id": "t", "schedule": {"interval_ms": 5}}]),
        ("resource_claims", {"arena_bytes": 1 << 20}),
        ("features", {"x": 1}),
        ("annotations", {"x": 1}),
        ("bus_subscriptions", [{"pattern": "news"}]),
    ],
)
def test_whatever_a_worker_is_told_changes_its_node(field: str, value: Any) -> None:
    change = changed(lambda new: new["manifests"][1].update({field: value}))
    assert change.named("changed") == {"square"}
    assert change.nodes[0].fields


def test_a_field_that_nobody_is_told_of_is_a_note() -> None:
    change = changed(lambda new: new["manifests"][1].update({"x-owner": "me"}))
    assert not change
    assert change.notes == (FieldChange("square.x-owner", ABSENT, "me"),)


def test_a_new_node_with_its_route() -> None:
    def edit(new: Map) -> None:
        new["manifests"].append(new["manifests"][2] | {"node_id": "copy", "plugin_id": "copy"})
        new["routes"].append(route("square", "copy"))

    change = changed(edit)
    assert change.nodes == (Difference("copy", "added"),)
    assert [each.kind for each in change.routes] == ["added"]


def test_a_removed_node_with_its_route() -> None:
    def edit(new: Map) -> None:
        del new["manifests"][2], new["routes"][1]

    change = changed(edit)
    turned = Difference("square", "changed", (FieldChange("outputs", 1, 0),))
    assert change.nodes == (turned, Difference("total", "removed")), "what has no outputs any more is another thing"
    assert [each.kind for each in change.routes] == ["removed"]


def test_a_buffer_changes_its_route_and_no_node() -> None:
    change = changed(lambda new: new["routes"][0].update(buffer=8, watermark=4))
    assert change.nodes == ()
    (only,) = change.routes
    assert only.kind == "changed"
    assert {(each.path, each.new) for each in only.fields} == {("buffer", 8), ("watermark", 4)}


def test_a_default_written_out_is_no_change() -> None:
    assert not changed(lambda new: new["routes"][0].update(buffer=64, watermark=48))


def test_a_control_route_changes_the_nodes_that_publish_and_subscribe() -> None:
    def edit(new: Map) -> None:
        new["routes"].append({"from": "total", "to": "numbers", "plane": "control", "topic": "pace"})

    change = changed(edit)
    assert change.named("changed") == {"total", "numbers"}
    assert change.routes == ()


def chained(*nodes: str) -> Map:
    """A flow in which each node sends to the next."""
    manifests = [raw()["manifests"][0] | {"node_id": node} for node in nodes]
    return raw(manifests=manifests, routes=[route(*pair) for pair in pairwise(nodes)])


@pytest.mark.parametrize(
    ("old", "new", "drawn"),
    [
        ("sabk", "sbak", "a → b → a"),
        ("sabck", "scbak", "b → c → b"),
        ("sabck", "sbcak", "a → b → c → a"),
        ("sabck", "scak", "a → b → c → a"),
        ("sabk", "sbcak", "a → b → c → a"),
    ],
)
def test_nodes_that_would_change_places_are_refused(old: str, new: str, drawn: str) -> None:
    (reason,) = refusals(flow(chained(*old)), flow(chained(*new)))
    assert drawn in reason
    assert "apply a flow without one of them first" in reason


@pytest.mark.parametrize(
    ("old", "new"), [("sak", "sabk"), ("sabk", "sak"), ("sak", "sbk"), ("sbak", "sak"), ("sak", "sbak"), ("sabk", "sk")]
)
def test_nodes_that_are_put_in_and_taken_out_are_not(old: str, new: str) -> None:
    assert not list(refusals(flow(chained(*old)), flow(chained(*new))))


def test_a_map_that_would_become_a_source_is_refused_and_the_other_way_is_not() -> None:
    old, new = flow(chained(*"sak")), flow(chained(*"ak"))
    assert list(refusals(old, new)) == [
        "node 'a' would lose its last input and be a source: give the source another node id"
    ]
    assert not list(refusals(new, old))


def test_a_route_that_would_join_other_nodes_is_refused() -> None:
    old, new = raw(), raw()
    old["routes"] = [route("numbers", "square", port="x")]
    new["routes"] = [route("square", "total", port="x"), route("numbers", "square")]
    assert list(refusals(flow(old), flow(new))) == ["route 'x' would join other nodes: give it another id"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_there_are_fields_that_differ_if_and_only_if_the_values_do(old: Any, new: Any) -> None:
    assert bool(list(fields(old, new))) == (repr(old) != repr(new) and not same(old, new))


@given(VALUES)
def test_nothing_differs_from_itself(value: Any) -> None:
    assert list(fields(value, copy.deepcopy(value))) == []


def same(old: Any, new: Any) -> bool:
    """Equal, with True no 1 and without an order of keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(same(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(same, old, new))
    return type(old) is type(new) and bool(old == new)


@pytest.mark.parametrize(
    ("fields", "path"), [({"env": {"A": "1"}}, "env"), ({"cwd": "data"}, "cwd"), ({"env": {}}, None)]
)
def test_other_surroundings_of_its_process_replace_a_node(fields: Map, path: str | None) -> None:
    change = changed(lambda new: new["manifests"][1].update(fields))
    if path is None:
        assert not change
    else:
        assert [(each.name, each.kind) for each in change.nodes] == [("square", "changed")]
        assert [each.path for each in change.nodes[0].fields] == [path]
