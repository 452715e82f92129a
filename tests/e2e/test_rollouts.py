"""Roll-outs under load in a real daemon: only what differs changes; no frame is lost or comes twice, order is kept."""

from __future__ import annotations

import copy
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chronetix.client import Client
from chronetix.protocol.errors import ChronetixError
from tests.e2e.growing import await_written

Map = dict[str, Any]
PLUGINS = Path(__file__).parent / "plugins"


class Line:
    """source → map → sink with a ledger, and what it is to become."""

    def __init__(self, submit: Any, client: Any, folder: Path) -> None:
        self.submit, self.client = submit, client
        self.ledger = folder / "ledger"
        self.name = ""
        self.flow: Map = {}

    def start(self, source: str = "items", map: str = "Mark", sink: str = "Ledger", **more: Any) -> Line:
        nodes = [
            self.node("source", source),
            self.node("map", map),
            self.node("sink", sink, params={"ledger": str(self.ledger)}),
        ]
        for node in nodes:
            node.update(more.get("fields", {}).get(node["node_id"], {}))
        more.pop("fields", None)
        routes = [self.edge("source", "map"), self.edge("map", "sink")]
        self.flow = {"manifests": nodes, "routes": routes, "schemas": [], **more}
        answer = self.client.call("submit", flow=self.flow, base_dir=str(PLUGINS), wait="running")
        self.name = answer["flow"]
        self.further()
        return self

    def node(self, name: str, entry: str, **more: Any) -> Map:
        node: Map = self.submit.node(name, f"rollouts:{entry}", **more)
        return node

    def edge(self, source: str, target: str, **more: Any) -> Map:
        edge: Map = self.submit.edge(source, target, **{"buffer": 16, **more})
        return edge

    def become(self, **changes: Map) -> Map:
        """The flow with other params for these nodes."""
        flow = copy.deepcopy(self.flow)
        for node in flow["manifests"]:
            for field, value in changes.get(node["node_id"], {}).items():
                node[field] = {**node.get(field, {}), **value} if isinstance(value, dict) else value
        return flow

    def apply(self, flow: Map, **more: Any) -> Map:
        answer: Map = self.client.call("apply", flow=flow, name=self.name, base_dir=str(PLUGINS), **more)
        self.flow = flow
        self.further()
        return answer

    def further(self, lines: int = 500) -> None:
        """Some more frames come to the sink."""

        def size() -> int:
            return self.ledger.stat().st_size if self.ledger.exists() else 0

        wanted = size() + lines * 10
        await_written(self.ledger, lambda: size() >= wanted, self.client)

    def pids(self) -> dict[str, int]:
        return {node["node"]: node["pid"] for node in self.described()["nodes"]}

    def described(self) -> Map:
        described: Map = self.client.call("describe", flow=self.name)
        return described

    def events(self, *kinds: str) -> list[str]:
        """Those kinds of events so far, in order."""
        return [each["kind"] for each in self.client.stream("events", flow=self.name) if each["kind"] in kinds]

    def until(self, kind: str, times: int = 1, **fields: str) -> Map:
        """The event of that kind that is the so-manieth."""
        for each in self.client.stream("events", flow=self.name, follow=True):
            assert each["kind"] != "flow-failed", each
            times -= each["kind"] == kind and fields.items() <= each.items()
            if not times:
                return dict(each)
        raise AssertionError("the events have ended")

    def step(self, step: str, waits_for: str) -> None:
        """Until the roll-out is there."""
        while True:
            now = self.client.call("rollouts", flow=self.name)["rollout"]
            if (now["step"], now["waits_for"]) == (step, [waits_for]):
                return
            assert now["step"] not in ("done", "rolled-back", "ended"), now

    def stands_by(self, node: str) -> int:
        """The process that is to follow that of ``node``, once it is born: it is asked for a while before."""
        while True:
            now = self.client.call("rollouts", flow=self.name)["rollout"]
            assert now["step"] == "preparing", now
            if pid := now["standing"].get(node, 0):
                return int(pid)

    def history(self) -> list[tuple[int, str, bool]]:
        answer = self.client.call("rollouts", flow=self.name)
        return [(each["number"], each["outcome"], each["current"]) for each in answer["revisions"]]

    def stop(self) -> list[Entry]:
        """Drain it; what the sink got, in order."""
        answer = self.client.call("stop", flow=self.name)
        assert answer["state"] == "stopped", answer
        for route in self.described()["routes"]:
            assert route["stats"]["committed"] == route["stats"]["returned"], route
        return [Entry(line) for line in self.ledger.read_text().splitlines()]

    def check(self) -> list[Entry]:
        """Stop it: every number once, in order, none marked; each node's versions in order too."""
        got = self.stop()
        assert [each.number for each in got] == list(range(1, len(got) + 1)), "lost, repeated or out of order"
        assert not any(each.marked for each in got)
        for versions in (
            [each.source for each in got],
            [each.map for each in got if each.map],
            [each.sink for each in got],
        ):
            assert versions == sorted(versions)
        return got


class Entry:
    """A line of the ledger."""

    def __init__(self, line: str) -> None:
        words = line.split()
        self.route, self.number, self.source = words[0], int(words[1]), words[2]
        self.map = words[3] if words[3].startswith("m") else ""
        self.marked, self.sink = words[-2] == "1", words[-1]


@pytest.fixture
def line(submit: Any, client: Any, tmp_path: Path) -> Line:
    return Line(submit, client, tmp_path)


BY_ONE = {"params": {"by": 1}}


@pytest.mark.parametrize("entry", ["Mark", "AMark", "BMark"])
def test_a_map_with_another_param_is_replaced_and_the_others_run_on(entry: str, line: Line) -> None:
    before = line.start(map=entry).pids()
    answer = line.apply(line.become(map=BY_ONE))
    assert answer["step"] == "done"
    assert answer["cut_ns"] > 0
    after = line.pids()
    assert {node for node in after if after[node] != before[node]} == {"map"}
    got = line.check()
    assert {each.map for each in got} == {"m0", "m1"}
    (result,) = [node["result"] for node in line.described()["nodes"] if node["node"] == "map"]
    assert result == len(got), "what the old one remembered went on in the new one"
    assert line.events("rollout-started", "rollout-committed", "rollout-done", "flow-failed") == [
        "rollout-started",
        "rollout-committed",
        "rollout-done",
    ]


@pytest.mark.parametrize("entry", ["items", "aitems", "obedient", "aobedient"])
def test_a_source_is_replaced_between_two_items(entry: str, line: Line) -> None:
    before = line.start(source=entry).pids()
    line.apply(line.become(source=BY_ONE))
    after = line.pids()
    assert {node for node in after if after[node] != before[node]} == {"source"}
    assert {each.source for each in line.check()} == {"s0", "s1"}


def test_a_sink_is_replaced_between_two_frames(line: Line) -> None:
    before = line.start().pids()
    line.apply(line.become(sink=BY_ONE))
    after = line.pids()
    assert {node for node in after if after[node] != before[node]} == {"sink"}
    assert {each.sink for each in line.check()} == {"0", "1"}


def test_what_an_old_node_has_sent_to_an_old_one_is_worked_on_by_that(line: Line) -> None:
    line.start()
    line.apply(line.become(source=BY_ONE, map=BY_ONE, sink=BY_ONE))
    got = line.check()
    assert {(each.source, each.map, each.sink) for each in got} == {("s0", "m0", "0"), ("s1", "m1", "1")}


def test_a_node_gets_another_plugin(line: Line) -> None:
    line.start()
    flow = line.become(map=BY_ONE)
    flow["manifests"][1]["artifact"]["uri"] = flow["manifests"][1]["artifact"]["uri"].replace("Mark", "AMark")
    line.apply(flow)
    assert {each.map for each in line.check()} == {"m0", "m1"}


def test_many_roll_outs_in_a_row_cost_no_frame(line: Line) -> None:
    line.start()
    for version in range(1, 13):
        node = ("source", "map", "sink")[version % 3]
        line.apply(line.become(**{node: {"params": {"by": version % 10}}}))
    assert len(line.history()) == 10
    got = line.stop()
    assert [each.number for each in got] == list(range(1, len(got) + 1))
    assert not any(each.marked for each in got)


def test_a_flow_that_is_the_same_is_not_touched_unless_a_node_is_named(line: Line) -> None:
    before = line.start().pids()
    assert line.apply(line.flow)["step"] == "same"
    assert line.pids() == before
    assert line.history() == []
    assert line.apply(line.flow, replace=["map"])["step"] == "done"
    after = line.pids()
    assert {node for node in after if after[node] != before[node]} == {"map"}
    line.check()


@pytest.mark.parametrize("defect", ["hangs", "raises"])
def test_what_is_not_ready_in_time_is_rolled_back_by_itself_and_nothing_was_touched(defect: str, line: Line) -> None:
    before = line.start().pids()
    flow = line.become(map={"params": {defect: True}}, sink=BY_ONE)
    with pytest.raises(ChronetixError) as caught:
        line.client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS), ready_ns=1_500_000_000)
    assert caught.value.name == "rolled-back"
    wanted = "was not ready within 1.5 s" if defect == "hangs" else "this version is no good"
    assert wanted in caught.value.message
    assert line.pids() == before
    assert line.history() == [(1, "submitted", True), (2, "rolled-back", False)]
    assert line.described()["flow"] == line.flow
    line.further()
    assert {(each.map, each.sink) for each in line.check()} == {("m0", "0")}


def test_undo_goes_back_to_the_flow_before_and_undone_again_forward(line: Line) -> None:
    line.start()
    line.apply(line.become(map=BY_ONE))
    assert line.client.call("undo", flow=line.name)["step"] == "done"
    line.further()
    assert line.history() == [(1, "submitted", False), (2, "done", False), (3, "done", True)]
    assert line.client.call("undo", flow=line.name)["number"] == 4
    line.further()
    assert line.client.call("undo", flow=line.name, to=1)["number"] == 5
    line.further()
    got = line.stop()
    assert [each.number for each in got] == list(range(1, len(got) + 1))
    maps = [each.map for each in got]
    turns = [maps[0], *(b for a, b in pairwise(maps) if a != b)]
    assert turns == ["m0", "m1", "m0", "m1", "m0"]


def test_undo_calls_a_roll_out_back_that_has_touched_nothing(line: Line, daemon: Any) -> None:
    before = line.start().pids()
    flow = line.become(map={"params": {"hangs": True}})
    line.client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS), wait=False)
    with pytest.raises(ChronetixError, match="under way"):
        line.client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS))
    assert line.client.call("undo", flow=line.name)["step"] == "rolled-back"
    assert line.pids() == before
    assert line.history()[-1] == (2, "rolled-back", False)
    line.check()


def test_there_is_nothing_to_go_back_to_at_first(line: Line) -> None:
    line.start()
    with pytest.raises(ChronetixError) as caught:
        line.client.call("undo", flow=line.name)
    assert caught.value.name == "revision-not-found"
    line.check()


def test_one_that_is_killed_while_it_leaves_has_its_successor_and_what_it_held_comes_again_marked(line: Line) -> None:
    line.start(sink="Stubborn")
    flow = line.become(sink=BY_ONE)
    flow["manifests"][2]["artifact"]["uri"] = flow["manifests"][2]["artifact"]["uri"].replace("Stubborn", "Ledger")
    line.client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS), wait=False)
    line.step("leaving", "sink")
    os.kill(line.pids()["sink"], signal.SIGKILL)
    line.until("rollout-done")
    line.further()
    got = line.stop()
    fresh = [each.number for each in got if not each.marked]
    assert fresh == list(range(1, len(fresh) + 1))
    assert sum(each.marked for each in got) <= 16


def test_one_that_does_not_leave_in_time_is_ended(line: Line, daemon: Any) -> None:
    line.start(sink="Stubborn")
    line.client.call("apply", flow=line.become(sink=BY_ONE), name=line.name, base_dir=str(PLUGINS), wait=False)
    line.step("leaving", "sink")
    line.until("rollout-done")
    line.further()
    got = line.stop()
    assert sorted({each.number for each in got}) == list(range(1, max(each.number for each in got) + 1))
    assert [each.number for each in got if not each.marked] == sorted({each.number for each in got})


def test_a_flow_that_is_stopped_in_the_middle_ends_when_the_roll_out_has(line: Line) -> None:
    line.start()
    line.client.call("apply", flow=line.become(map=BY_ONE), name=line.name, base_dir=str(PLUGINS), wait=False)
    got = line.stop()
    assert [each.number for each in got] == list(range(1, len(got) + 1))
    assert line.history()[-1][1] in ("done", "ended")


def test_who_waits_for_the_roll_out_of_a_flow_that_is_stopped_meanwhile_is_told_that(line: Line, daemon: Any) -> None:
    line.start()
    flow = line.become(map={"params": {"hangs": True}})
    with ThreadPoolExecutor(1) as pool, Client.connect(daemon.socket) as other:
        waiting = pool.submit(other.call, "apply", flow=flow, name=line.name, base_dir=str(PLUGINS))
        line.until("rollout-started")
        line.client.call("stop", flow=line.name, mode="now")
        with pytest.raises(ChronetixError) as caught:
            waiting.result()
    assert caught.value.name == "flow-not-running"
    assert "failed" not in caught.value.message


def test_so_does_one_that_is_stopped_while_some_have_taken_over_and_others_have_not(
    line: Line, daemon: Any, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    line.start()
    flow = line.become(map={"params": {"gate": str(gate)}}, sink=BY_ONE)
    line.client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS), wait=False)
    line.step("taking-over", "map")
    with ThreadPoolExecutor(1) as asking, Client.connect(daemon.socket) as client:
        stopped = asking.submit(client.call, "stop", flow=line.name)
        line.client.call("version")
        gate.touch()
        assert stopped.result()["state"] == "stopped"
    got = [Entry(each) for each in line.ledger.read_text().splitlines()]
    assert [each.number for each in got] == list(range(1, len(got) + 1))
    assert line.history()[-1][1] in ("done", "ended")


class Reborn:
    """A flow of maps of which ``b`` alone stays, between source and sink; it is killed while ``a``, which is to go, has
    much to send to it still."""

    def __init__(self, line: Line, gate: Path, *pairs: tuple[str, str]) -> None:
        self.line = line
        gate.touch()
        maps = sorted({node for pair in pairs for node in pair} - {"source", "sink"})
        restart = {"policy": "transient", "backoff_ms": 1}
        nodes = [line.node("source", "items"), *(line.node(name, "Mark", restart=restart) for name in maps)]
        nodes[1]["params"] = {"frames": str(gate)}
        nodes.append(line.node("sink", "Ledger", params={"ledger": str(line.ledger)}))
        routes = [line.edge(*pair, buffer=64 if pair[1] == "a" else 2) for pair in pairs]
        line.flow = {"manifests": nodes, "routes": routes, "schemas": []}
        line.name = line.client.call("submit", flow=line.flow, base_dir=str(PLUGINS), wait="running")["flow"]
        line.further()
        gate.unlink()
        left = [each for each in line.become(b=BY_ONE)["manifests"] if each["node_id"] in ("source", "b", "sink")]
        after = [line.edge("source", "b", buffer=2), line.edge("b", "sink", buffer=2)]
        flow = {"manifests": left, "routes": after, "schemas": []}
        line.client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS), wait=False)
        line.until("rollout-committed")
        os.kill(line.pids()["b"], signal.SIGKILL)
        line.until("node-restarted", node="b")
        gate.touch()

    def numbers(self, *but: str) -> set[int]:
        """What has come when the roll-out is done and the flow stopped, by all routes ``but`` these."""
        self.line.until("rollout-done")
        assert self.line.events("rollout-lost-frames") == []
        return {each.number for each in self.line.stop() if each.route not in but}


def test_who_waits_behind_one_that_is_killed_does_not_wait_for_those_before_it(line: Line, tmp_path: Path) -> None:
    """The killed one's successor sends by a route that is taken from when the node behind it has ended."""
    reborn = Reborn(line, tmp_path / "gate", ("source", "a"), ("a", "b"), ("b", "c"), ("c", "sink"))
    numbers = reborn.numbers()
    assert sorted(numbers) == list(range(1, max(numbers) + 1))


def test_one_that_is_killed_between_branches_that_are_taken_out_holds_up_none_of_them(
    line: Line, tmp_path: Path
) -> None:
    branches = (("b", "d"), ("d", "sink"), ("a", "c"), ("c", "sink"))
    numbers = Reborn(line, tmp_path / "gate", ("source", "a"), ("a", "b"), *branches).numbers("c-sink")
    assert sorted(numbers) == list(range(1, max(numbers) + 1))


def test_what_cannot_be_changed_is_refused_by_name(line: Line) -> None:
    before = line.start().pids()
    flow = line.become()
    flow["routes"][0] = {**flow["routes"][1], "port": "map-sink", "from": "source"}
    flow["manifests"].pop(1)
    flow["routes"].pop(1)
    with pytest.raises(ChronetixError, match="route 'map-sink' would join other nodes") as caught:
        line.client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS))
    assert caught.value.name == "change-refused"
    flow = line.become()
    with pytest.raises(ChronetixError, match="node 'map' would lose its last input and be a source") as caught:
        line.client.call("apply", flow=flow | {"routes": flow["routes"][1:]}, name=line.name, base_dir=str(PLUGINS))
    assert caught.value.name == "change-refused"
    with pytest.raises(ChronetixError, match="there is no node mab in the flow") as caught:
        line.client.call("apply", flow=line.flow, name=line.name, base_dir=str(PLUGINS), replace=["mab"])
    assert line.pids() == before
    line.check()
