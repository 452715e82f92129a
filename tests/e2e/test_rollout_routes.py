"""Roll-outs under load that change routes: another buffer, nodes that are added and removed; nobody else is touched."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from tests.e2e.test_rollouts import BY_ONE, PLUGINS, Line, Map


@pytest.fixture
def line(submit: Any, client: Any, tmp_path: Path) -> Line:
    return Line(submit, client, tmp_path)


def with_routes(line: Line, *routes: Map, without: tuple[str, ...] = (), nodes: tuple[Map, ...] = ()) -> Map:
    """The flow with these nodes and routes, without those nodes and their routes."""
    flow = line.become()
    flow["manifests"] = [each for each in flow["manifests"] if each["node_id"] not in without] + list(nodes)
    known = {each["topic"] for each in routes}
    kept = [each for each in flow["routes"] if each["topic"] not in known]
    flow["routes"] = [each for each in kept if not {each["from"], each["to"]} & set(without)] + list(routes)
    return flow


@pytest.mark.parametrize("source", ["items", "aitems"])
@pytest.mark.parametrize("map", ["Mark", "AMark", "BMark"])
@pytest.mark.parametrize("buffer", [1, 200])
def test_a_route_gets_another_buffer_and_no_process_is_touched(source: str, map: str, buffer: int, line: Line) -> None:
    before = line.start(source=source, map=map).pids()
    flow = with_routes(line, line.edge("source", "map", buffer=buffer), line.edge("map", "sink", buffer=buffer))
    assert line.apply(flow)["step"] == "done"
    assert line.pids() == before
    described = {route["id"]: route for route in line.described()["routes"]}
    assert {route["buffer"] for route in described.values()} == {buffer}
    assert {route["stats"]["credits"] for route in described.values()} == {buffer}
    line.check()


def test_a_route_gets_another_policy_and_back(line: Line) -> None:
    before = line.start().pids()
    line.apply(with_routes(line, line.edge("map", "sink", policy="drop_newest")))
    line.client.call("undo", flow=line.name)
    line.further()
    assert line.pids() == before
    numbers = [each.number for each in line.stop()]
    assert numbers == sorted(set(numbers))


def test_buffers_change_again_and_again(line: Line) -> None:
    before = line.start().pids()
    for buffer in (1, 64, 2, 300, 16):
        line.apply(with_routes(line, line.edge("source", "map", buffer=buffer), line.edge("map", "sink", buffer=17)))
    assert line.pids() == before
    line.check()


def test_a_route_changes_together_with_the_nodes_at_its_ends(line: Line) -> None:
    before = line.start().pids()
    flow = with_routes(line, line.edge("source", "map", buffer=3), line.edge("map", "sink", buffer=99))
    for node in flow["manifests"][1:]:
        node["params"] = {**node.get("params", {}), "by": 1}
    line.apply(flow)
    after = line.pids()
    assert {node for node in after if after[node] != before[node]} == {"map", "sink"}
    assert {(each.map, each.sink) for each in line.check()} == {("m0", "0"), ("m1", "1")}


def test_a_node_is_added_and_gets_all_frames_from_one_on(line: Line, tmp_path: Path) -> None:
    before = line.start().pids()
    second = line.node("second", "Ledger", params={"ledger": str(tmp_path / "second")})
    line.apply(with_routes(line, line.edge("map", "second"), nodes=(second,)))
    after = line.pids()
    assert {node: after[node] for node in before} == before
    line.further()
    got = [each.number for each in line.check()]
    other = [int(each.split()[1]) for each in (tmp_path / "second").read_text().splitlines()]
    assert other == list(range(other[0], got[-1] + 1)), "every frame from the first one on"
    assert other[0] > 1


def test_a_node_is_put_in_between_and_order_is_kept(line: Line) -> None:
    before = line.start().pids()
    extra = line.node("extra", "Mark", params={"by": 7})
    flow = with_routes(line, line.edge("map", "extra"), line.edge("extra", "sink"), nodes=(extra,))
    flow["routes"] = [each for each in flow["routes"] if each["topic"] != "map/sink"]
    line.apply(flow)
    after = line.pids()
    assert {node: after[node] for node in before} == before
    got = line.check()
    assert [each.route for each in (got[0], got[-1])] == ["map-sink", "extra-sink"]


def test_a_node_is_put_in_between_while_its_neighbours_are_replaced(line: Line) -> None:
    line.start()
    extra = line.node("extra", "Mark", params={"by": 7})
    flow = with_routes(line, line.edge("map", "extra"), line.edge("extra", "sink"), nodes=(extra,))
    flow["routes"] = [each for each in flow["routes"] if each["topic"] != "map/sink"]
    for node in flow["manifests"][:3]:
        node["params"] = {**node.get("params", {}), "by": 1}
    line.apply(flow)
    got = line.check()
    assert {(each.route, each.source, each.map, each.sink) for each in got} == {
        ("map-sink", "s0", "m0", "0"),
        ("extra-sink", "s1", "m1", "1"),
    }


def test_a_node_is_removed_while_the_one_behind_it_is_replaced(line: Line) -> None:
    line.start()
    flow = with_routes(line, line.edge("source", "sink"), without=("map",))
    flow["manifests"][1]["params"] = {**flow["manifests"][1]["params"], "by": 1}
    line.apply(flow)
    got = line.check()
    assert (got[0].route, got[0].sink, got[-1].route, got[-1].sink) == ("map-sink", "0", "source-sink", "1")


def test_a_node_is_removed_from_in_between_and_order_is_kept(line: Line) -> None:
    before = line.start().pids()
    flow = with_routes(line, line.edge("source", "sink"), without=("map",))
    line.apply(flow)
    after = line.pids()
    assert after == {node: pid for node, pid in before.items() if node != "map"}
    got = line.check()
    assert [each.route for each in (got[0], got[-1])] == ["map-sink", "source-sink"]
    assert not Path(f"/proc/{before['map']}").exists()


def test_a_sink_beside_another_one_is_removed_when_it_has_taken_what_was_sent_to_it(line: Line, tmp_path: Path) -> None:
    second = line.node("second", "Ledger", params={"ledger": str(tmp_path / "second")})
    line.start()
    added = with_routes(line, line.edge("map", "second"), nodes=(second,))
    plain = line.flow
    line.apply(added)
    before = line.pids()
    line.apply(plain)
    assert line.pids() == {node: pid for node, pid in before.items() if node != "second"}
    line.check()
    other = [int(each.split()[1]) for each in (tmp_path / "second").read_text().splitlines()]
    assert other == list(range(other[0], other[-1] + 1))
    assert line.events("rollout-lost-frames") == []


def test_undo_takes_away_what_was_added_and_brings_back_what_was_removed(line: Line) -> None:
    line.start()
    line.apply(with_routes(line, line.edge("source", "sink"), without=("map",)))
    assert line.client.call("undo", flow=line.name)["step"] == "done"
    line.further()
    assert line.client.call("undo", flow=line.name)["step"] == "done"
    line.further()
    got = line.check()
    routes = [got[0].route]
    for each in got:
        if each.route != routes[-1]:
            routes.append(each.route)
    assert routes == ["map-sink", "source-sink", "map-sink", "source-sink"]


def test_an_added_node_that_is_not_ready_in_time_leaves_everything_as_it_was(line: Line) -> None:
    before = line.start().pids()
    extra = line.node("extra", "Mark", params={"hangs": True})
    flow = with_routes(line, line.edge("map", "extra"), line.edge("extra", "sink"), nodes=(extra,))
    with pytest.raises(ChronetixError, match="the new worker of node 'extra' was not ready within 1 s"):
        line.client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS), ready_ns=1_000_000_000)
    assert line.pids() == before
    assert [route["id"] for route in line.described()["routes"]] == ["source-map", "map-sink"]
    line.check()


def test_a_node_that_loses_its_last_output_is_replaced_for_its_plugin_is_another_thing_then(line: Line) -> None:
    line.start()
    flow = line.become()
    flow["manifests"] = flow["manifests"][:2]
    flow["routes"] = flow["routes"][:1]
    found = line.client.call("diff", flow=flow, name=line.name, base_dir=str(PLUGINS))
    assert [(each["name"], each["kind"]) for each in found["nodes"]] == [("map", "changed"), ("sink", "removed")]
    line.check()


def test_a_removed_node_that_is_killed_meanwhile_holds_nothing_up(line: Line) -> None:
    second = line.node("second", "Stubborn", params={"ledger": str(line.ledger) + "2"})
    plain = line.start().flow
    line.apply(with_routes(line, line.edge("map", "second"), nodes=(second,)))
    line.client.call("apply", flow=plain, name=line.name, base_dir=str(PLUGINS), wait=False)
    line.step("leaving", "second")
    worker = int(line.until("worker-spawned", node="second")["data"]["worker"])
    os.kill(worker, signal.SIGKILL)
    line.until("rollout-done", times=2)
    line.further()
    line.check()


@pytest.mark.parametrize("victim", ["source", "map", "sink"])
def test_a_node_that_dies_in_the_middle_of_it_is_restarted_and_no_frame_is_lost(victim: str, line: Line) -> None:
    transient = {"restart": {"policy": "transient", "max": 100, "backoff_ms": 1}}
    line.start(fields=dict.fromkeys(("source", "map", "sink"), transient))
    for round in range(6):
        buffer = 3 if round % 2 else 40
        flow = with_routes(line, line.edge("source", "map", buffer=buffer), line.edge("map", "sink", buffer=buffer))
        pid = line.pids()[victim]
        line.client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS), wait=False)
        os.kill(pid, signal.SIGKILL)
        line.until("rollout-done", times=round + 1)
        line.further(50)
    got = line.stop()
    fresh = [each.number for each in got if not each.marked]
    assert fresh == sorted(set(fresh))
    assert sorted({each.number for each in got}) == list(range(1, max(each.number for each in got) + 1))


TRANSIENT: Map = {"restart": {"policy": "transient", "max": 100, "backoff_ms": 1}}


def check_marks(line: Line) -> None:
    """Nothing is lost, and whatever is not marked is new."""
    got = line.stop()
    fresh = [each.number for each in got if not each.marked]
    assert fresh == list(range(1, len(fresh) + 1)), "what is not marked is new, and in order"
    assert {each.number for each in got if each.marked} <= set(fresh)


@pytest.mark.parametrize("source", ["items", "aitems", "afresh"])
@pytest.mark.parametrize("then", ["killed", "replaced", "replaced with it", "killed before"])
def test_a_source_that_gets_another_output_goes_on_behind_what_it_has_sent(source: str, then: str, line: Line) -> None:
    line.start(source=source, fields={"source": TRANSIENT})
    extra = line.node("extra", "Mark", params={"by": 7})
    flow = with_routes(line, line.edge("source", "extra"), line.edge("extra", "sink"), without=("map",), nodes=(extra,))
    newer = copy.deepcopy(flow)
    newer["manifests"][0]["params"] = {"by": 1}
    if then == "killed before":
        os.kill(line.pids()["source"], signal.SIGKILL)
    line.apply(newer if then == "replaced with it" else flow)
    if then == "killed":
        os.kill(line.pids()["source"], signal.SIGKILL)
        line.until("node-restarted", node="source")
    elif then == "replaced":
        line.apply(newer)
    line.further(20_000 if source == "afresh" else 500)
    check_marks(line)


@pytest.mark.parametrize("again", [False, True])
def test_what_a_source_repeats_is_marked_also_when_its_route_goes_on_with_another_ring(again: bool, line: Line) -> None:
    line.start(source="afresh", fields={"source": TRANSIENT})
    line.further(3000)
    os.kill(line.pids()["source"], signal.SIGKILL)
    line.until("node-restarted", node="source")
    line.apply(with_routes(line, line.edge("source", "map", buffer=3)))
    if again:
        os.kill(line.pids()["source"], signal.SIGKILL)
        line.until("node-restarted", node="source", times=2)
    line.further(20_000)
    check_marks(line)


def test_after_it_a_replaced_neighbour_finds_its_routes(line: Line) -> None:
    line.start()
    line.apply(with_routes(line, line.edge("source", "map", buffer=5), line.edge("map", "sink", buffer=6)))
    for node in ("map", "sink", "source"):
        line.apply(line.become(**{node: BY_ONE}))
    line.check()


def test_a_flow_that_is_stopped_in_the_middle_of_it_ends_and_can_be_looked_at(line: Line) -> None:
    for round in range(3):
        line.start()
        extra = line.node("extra", "Mark", params={"by": 7})
        flow = with_routes(
            line, line.edge("source", "extra"), line.edge("extra", "sink"), without=("map",), nodes=(extra,)
        )
        line.client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS), wait=False)
        answer = line.client.call("stop", flow=line.name, mode="now" if round else "drain")
        assert answer["state"] == "stopped", answer
        line.described()
        assert line.history()[-1][1] in ("done", "ended")
        line.ledger.unlink()


def test_the_daemon_is_upgraded_after_it(line: Line, daemon: Any) -> None:
    before = line.start().pids()
    line.apply(with_routes(line, line.edge("source", "map", buffer=5), line.edge("map", "sink", buffer=6)))
    plain = line.flow
    line.apply(with_routes(line, line.edge("source", "sink"), without=("map",)))
    upgraded = daemon.ctl("upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    with Client.connect(daemon.socket) as again:
        line.client = again
        check_after_an_upgrade(line, plain, before)


def check_after_an_upgrade(line: Line, plain: Map, before: dict[str, int]) -> None:
    assert line.pids() == {node: pid for node, pid in before.items() if node != "map"}
    line.apply(plain)
    line.check()
