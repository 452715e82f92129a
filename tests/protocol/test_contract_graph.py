"""Endpoints, node ids, route ids and cycles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.contract import parse_flow

Make = Callable[..., dict[str, Any]]
ARTIFACT = {"kind": "Python", "uri": "python://module:object"}


def plain(plugin_id: str, role: str = "") -> dict[str, Any]:
    """A manifest as the orchestrator writes it: without node_id."""
    return {"plugin_id": plugin_id, "artifact": ARTIFACT, "role": role}


def control(source: str, target: str, topic: str) -> dict[str, Any]:
    return {"from": source, "to": target, "plane": "control", "topic": topic}


class TestTwins:
    def test_a_data_route_that_is_there_twice_is_refused_however_its_ends_are_written(
        self, manifest: Make, data_route: Make
    ) -> None:
        again = {**data_route("a", "plugin"), "buffer": 64, "policy": None}
        routes = [data_route("a", "plugin"), data_route("a", "c"), again, data_route("a", "plugin")]
        raw = {"manifests": [manifest("a"), plain("plugin"), manifest("c")], "routes": routes}
        told = [(each.path, each.message, each.suggestion) for each in parse_flow(raw).problems]
        text = "is the same as routes[0]: each frame would come to plugin twice"
        cure = "take one of them out, or give each a port of its own"
        assert told == [("routes[2]", text, cure), ("routes[3]", text, cure)]

    @pytest.mark.parametrize(
        "differs",
        [{"port": "p"}, {"topic": "t"}, {"buffer": 8}, {"policy": "latest"}, {"content_type": "a/b"}, {"label": "x"}],
    )
    def test_one_that_differs_in_anything_is_another(
        self, manifest: Make, data_route: Make, differs: dict[str, Any]
    ) -> None:
        routes = [data_route("a", "b"), {**data_route("a", "b"), **differs}]
        validation = parse_flow({"manifests": [manifest("a"), manifest("b")], "routes": routes})
        assert validation.flow is not None
        assert len({route.id for route in validation.flow.routes}) == 2

    def test_of_a_control_route_it_is_told_that_it_has_no_effect(self, manifest: Make) -> None:
        routes = [control("a", "b", "t"), control("a", "b", "t"), control("a", "b", "u")]
        validation = parse_flow({"manifests": [manifest("a"), manifest("b")], "routes": routes})
        assert validation.flow is not None
        [warning] = validation.warnings
        assert (warning.path, warning.message) == ("routes[1]", "is the same as routes[0], and has no effect")

    def test_many_of_them_are_found_in_time_that_grows_with_their_number(
        self, manifest: Make, data_route: Make
    ) -> None:
        routes = [{**data_route("a", "b"), "label": str(at)} for at in range(20_000)]
        assert parse_flow({"manifests": [manifest("a"), manifest("b")], "routes": routes}).flow is not None


class TestEndpoints:
    def test_a_node_id_wins_over_a_plugin_id(self, manifest: Make, data_route: Make) -> None:
        raw = {"manifests": [manifest("x"), plain("y"), plain("x")], "routes": [data_route("x", "y")]}
        validation = parse_flow(raw)
        assert [problem.path for problem in validation.problems] == ["manifests[2].plugin_id"]

    def test_a_plugin_id_that_only_one_node_has_will_do(self, data_route: Make) -> None:
        validation = parse_flow({"manifests": [plain("a"), plain("b")], "routes": [data_route("a", "b")]})
        assert validation.flow is not None
        assert [manifest.node for manifest in validation.flow.manifests] == ["a", "b"]

    def test_the_plugin_id_of_a_node_with_a_node_id_will_not(self, manifest: Make, data_route: Make) -> None:
        [problem] = parse_flow({"manifests": [manifest("a")], "routes": [data_route("plugin", "a")]}).problems
        assert problem.message == 'there is no node "plugin"'

    def test_a_plugin_id_that_several_have_is_refused(self, data_route: Make) -> None:
        raw = {"manifests": [plain("a"), plain("a"), plain("b")], "routes": [data_route("a", "b")]}
        paths = {problem.path: problem for problem in parse_flow(raw).problems}
        assert "is the plugin_id of 2 nodes" in paths["routes[0].from"].message
        assert "node_id" in paths["manifests[1].plugin_id"].suggestion

    @pytest.mark.parametrize(
        ("topic", "role"),
        [
            ("control/timer/x", "Timer"),
            ("control/resource/netinfo", "EnvProvider"),
            ("my/own/topic", "EnvProvider"),
            ("my/own/topic", "Timer"),
        ],
    )
    def test_the_only_node_of_the_fitting_role_is_taken(self, topic: str, role: str) -> None:
        raw = {"manifests": [plain("p", role), plain("x")], "routes": [control("p-1", "x", topic)]}
        validation = parse_flow(raw)
        assert validation.flow is not None
        assert validation.flow.manifests[0].node == "p-1"
        [warning] = validation.warnings
        assert warning.path == "routes[0].from"
        assert "p-1=p" in warning.suggestion

    @pytest.mark.parametrize(
        ("manifests", "routes"),
        [
            pytest.param(
                [plain("p", "Timer"), plain("q", "Timer"), plain("x")],
                [control("t", "x", "control/timer/x")],
                id="two nodes of that role are left",
            ),
            pytest.param(
                [plain("p", "Timer"), plain("x")],
                [control("t", "x", "control/timer/x"), control("u", "x", "control/timer/x")],
                id="two endpoints want it",
            ),
            pytest.param(
                [plain("p", "Timer"), plain("x")],
                [control("p", "x", "control/timer/x"), control("u", "x", "control/timer/x")],
                id="it is referred to already",
            ),
            pytest.param(
                [plain("p", "Sink"), plain("x")], [control("t", "x", "control/timer/x")], id="it has another role"
            ),
            pytest.param(
                [plain("p", "Timer"), plain("q", "EnvProvider"), plain("x")],
                [control("t", "x", "other/x")],
                id="the topic asks for none and two would do",
            ),
            pytest.param(
                [plain("p", "EnvProvider"), plain("x")],
                [control("t", "x", "control/timer/x")],
                id="the topic asks for another role than what is left has",
            ),
            pytest.param(
                [plain("p", "Timer"), plain("x")],
                [{**control("t", "x", "other/x"), "plane": "data"}],
                id="it sends data",
            ),
            pytest.param(
                [plain("p", "Timer"), plain("x")], [control("x", "t", "control/timer/x")], id="it is the target"
            ),
            pytest.param(
                [{**plain("p", "Timer"), "node_id": "n"}, plain("x")],
                [control("t", "x", "control/timer/x")],
                id="it has a node_id",
            ),
        ],
    )
    def test_what_stays_open_is_refused(self, manifests: list[Any], routes: list[Any]) -> None:
        validation = parse_flow({"manifests": manifests, "routes": routes})
        assert validation.flow is None
        assert any("there is no node" in problem.message for problem in validation.problems)

    def test_a_refusal_names_the_endpoint_the_free_nodes_and_the_bindings(self) -> None:
        raw = {"manifests": [plain("p"), plain("x")], "routes": [control("t", "x", "control/timer/x")]}
        [problem] = parse_flow(raw).problems
        assert str(problem) == (
            'routes[0].from: there is no node "t" (no route refers to p; if one of them is meant, bind it: --bind t=p)'
        )

    def test_an_open_endpoint_is_reported_once(self, manifest: Make, data_route: Make) -> None:
        raw = {"manifests": [manifest("a"), manifest("b")], "routes": [data_route("z", "a"), data_route("z", "b")]}
        assert [problem.path for problem in parse_flow(raw).problems] == ["routes[0].from"]

    def test_nothing_is_said_of_endpoints_when_a_nodes_id_could_not_be_read(self, data_route: Make) -> None:
        raw = {"manifests": [{"artifact": ARTIFACT}, plain("b")], "routes": [data_route("a", "b")]}
        assert [problem.path for problem in parse_flow(raw).problems] == ["manifests[0].plugin_id"]


class TestBindings:
    def test_they_settle_what_names_do_not(self, minimal: dict[str, Any]) -> None:
        validation = parse_flow(minimal, bindings={"timer-1": "timer-source", "resource-net": "resource-netinfo"})
        assert validation.flow is not None
        assert validation.warnings == []
        assert validation.flow.manifests[1].node == "timer-1"

    def test_they_win_over_names(self, manifest: Make, data_route: Make) -> None:
        raw = {"manifests": [manifest("a"), manifest("b"), manifest("c")], "routes": [data_route("a", "b")]}
        validation = parse_flow(raw, bindings={"b": "c"})
        assert validation.flow is not None
        assert validation.flow.routes[0].target == "c"

    def test_a_place_names_one_of_several_nodes_of_a_builtin(self) -> None:
        timers = [plain("timer-source", "Timer"), plain("timer-source", "Timer"), plain("x")]
        raw = {"manifests": timers, "routes": [control("slow", "x", "s"), control("fast", "x", "f")]}
        validation = parse_flow(raw, bindings={"slow": "#2", "fast": "#1"})
        assert validation.flow is not None
        assert [manifest.node for manifest in validation.flow.manifests] == ["fast", "slow", "x"]

    @pytest.mark.parametrize("place", ["#0", "#4", "#-1", "#", "#x", "#²"])
    def test_a_place_where_nothing_is_is_refused(self, place: str) -> None:
        raw = {"manifests": [plain("a", "Timer"), plain("b"), plain("x")], "routes": [control("t", "x", "s")]}
        assert [problem.path for problem in parse_flow(raw, bindings={"t": place}).problems] == ["bindings.t"]

    def test_one_to_a_name_that_several_nodes_have_is_refused_with_their_places(self) -> None:
        raw = {"manifests": [plain("t", "Timer"), plain("t"), plain("x")], "routes": [control("u", "x", "s")]}
        problems = [str(problem) for problem in parse_flow(raw, bindings={"u": "t"}).problems]
        assert problems[0] == 'bindings.u: 2 nodes have the plugin_id "t" (name its place: #1 or #2)'

    def test_one_that_is_refused_is_not_settled_by_a_role_as_well(self) -> None:
        raw = {"manifests": [plain("t", "Timer"), plain("x")], "routes": [control("u", "x", "control/timer/x")]}
        checked = parse_flow(raw, bindings={"u": "#9"})
        assert [problem.path for problem in checked.problems] == ["bindings.u"]
        assert checked.warnings == []

    def test_a_refusal_offers_the_places_of_nodes_that_share_a_name(self) -> None:
        raw = {"manifests": [plain("t", "Timer"), plain("t", "Timer"), plain("x")], "routes": [control("u", "x", "s")]}
        problem = parse_flow(raw).problems[0]
        assert problem.suggestion.endswith("bind it: --bind u=#1")

    def test_one_for_no_endpoint_is_refused(self, manifest: Make) -> None:
        [problem] = parse_flow({"manifests": [manifest("a")]}, bindings={"z": "a"}).problems
        assert (problem.path, problem.message) == ("bindings.z", "no route has this endpoint")

    def test_one_to_no_node_is_refused_with_the_nearest(self, minimal: dict[str, Any]) -> None:
        problems = parse_flow(minimal, bindings={"timer-1": "timer-sauce"}).problems
        assert [problem.path for problem in problems] == ["bindings.timer-1"]
        assert problems[0].suggestion == 'did you mean "timer-source"?'


class TestNodeIds:
    def test_twins_are_refused(self, manifest: Make) -> None:
        [problem] = parse_flow({"manifests": [manifest("a"), manifest("b"), manifest("a")]}).problems
        assert problem.path == "manifests[2].node_id"
        assert '"a" is the id of an earlier node' in problem.message


class TestRouteIds:
    def test_the_port_else_the_ends_made_unique(self, manifest: Make, data_route: Make) -> None:
        routes = [
            data_route("a", "b"),
            data_route("a", "b", topic="t"),
            data_route("a", "b", port="p"),
            data_route("a", "b", port="a-b#2"),
            data_route("a", "b", topic="u"),
        ]
        flow = parse_flow({"manifests": [manifest("a"), manifest("b")], "routes": routes}).flow
        assert flow is not None
        assert [route.id for route in flow.routes] == ["a-b", "a-b#2", "p", "a-b#2#2", "a-b#3"]


class TestCycles:
    def cycle(self, manifest: Make, edges: list[dict[str, Any]]) -> list[str]:
        nodes = sorted({end for edge in edges for end in (edge["from"], edge["to"])})
        validation = parse_flow({"manifests": [manifest(node) for node in nodes], "routes": edges})
        assert (validation.flow is None) == bool(validation.problems)
        return [problem.message for problem in validation.problems]

    def test_a_cycle_of_data_routes_is_refused_and_drawn(self, manifest: Make, data_route: Make) -> None:
        edges = [data_route("s", "a"), data_route("a", "b"), data_route("b", "c"), data_route("c", "a")]
        assert self.cycle(manifest, edges) == ["data routes form a cycle: a → b → c → a"]

    def test_a_node_that_feeds_itself_is_one(self, manifest: Make, data_route: Make) -> None:
        assert self.cycle(manifest, [data_route("a", "a")]) == ["data routes form a cycle: a → a"]

    def test_each_cycle_is_reported(self, manifest: Make, data_route: Make) -> None:
        pairs = ["ab", "ba", "cd", "dc"]
        assert len(self.cycle(manifest, [data_route(*pair) for pair in pairs])) == 2

    def test_control_routes_may_form_cycles(self, manifest: Make, data_route: Make) -> None:
        edges = [data_route("a", "b"), control("b", "a", "control/back")]
        assert self.cycle(manifest, edges) == []

    def test_a_diamond_is_none(self, manifest: Make, data_route: Make) -> None:
        assert self.cycle(manifest, [data_route(*pair) for pair in ("ab", "ac", "bd", "cd")]) == []

    @given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12, unique=True))
    def test_a_flow_is_refused_exactly_when_its_nodes_cannot_be_put_in_order(
        self, edges: list[tuple[int, int]]
    ) -> None:
        manifests = [{"node_id": str(node), "plugin_id": "p", "artifact": ARTIFACT} for node in range(7)]
        routes = [{"from": str(source), "to": str(target), "plane": "data"} for source, target in edges]
        left = set(range(7))
        while removable := {node for node in left if not any(t == node and s in left for s, t in edges)}:
            left -= removable
        assert (parse_flow({"manifests": manifests, "routes": routes}).flow is None) == bool(left)
