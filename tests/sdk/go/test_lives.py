"""Nodes in Go that are killed, replaced and stopped, and that outlive their daemon: no frame is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client
from tests.e2e import test_restarts, test_rollouts
from tests.e2e.surviving import Flow, events, kill, pids
from tests.sdk import printing

Map = dict[str, Any]
Make = Callable[..., Map]
NODES = ("source", "map", "sink")
GO_ALONE = frozenset(NODES)
ROLES = {
    "items": "items",
    "paced": "paced",
    "growing": "growing",
    "forward": "forward",
    "Ledger": "ledger",
    "Heads": "ledger",
}
VERSIONS = {"items": "versions", "Mark": "versionmap", "Ledger": "versionledger"}


class Line(test_restarts.Line):
    """Whose nodes in ``in_go`` are written in Go."""

    def __init__(self, submit: Any, client: Any, folder: Path, go: Make, in_go: frozenset[str]) -> None:
        super().__init__(submit, client, folder)
        self.go, self.in_go = go, in_go

    def node(self, name: str, entry: str, restart: Any, **more: Any) -> Any:
        if name not in self.in_go:
            return super().node(name, entry, restart, **more)
        return self.go(name, ROLES[entry], restart=restart, **more)


class Changing(test_rollouts.Line):
    """The same for roll-outs."""

    def __init__(self, submit: Any, client: Any, folder: Path, go: Make, in_go: frozenset[str]) -> None:
        super().__init__(submit, client, folder)
        self.go, self.in_go = go, in_go

    def node(self, name: str, entry: str, **more: Any) -> Map:
        return self.go(name, VERSIONS[entry], **more) if name in self.in_go else super().node(name, entry, **more)


class Surviving(Flow):
    """The same for flows that outlive their daemon."""

    def __init__(self, folder: Path, go: Make, in_go: frozenset[str], role: str = "forward") -> None:
        super().__init__(folder)
        self.go, self.in_go, self.role = go, in_go, role

    def raw(self, restart: Any = test_restarts.TRANSIENT, loss: str = "survive") -> Map:
        flow = super().raw(restart, loss)
        roles = {"source": "paced", "map": self.role, "sink": "ledger"}
        flow["manifests"] = [
            self.go(each["node_id"], roles[each["node_id"]], params=each["params"], restart=each["restart"])
            if each["node_id"] in self.in_go
            else each
            for each in flow["manifests"]
        ]
        return flow


SIDES = pytest.mark.parametrize(
    "in_go", [GO_ALONE, frozenset({"map"}), frozenset({"source", "sink"})], ids=["all", "map", "ends"]
)


@pytest.mark.parametrize("victim", NODES)
@SIDES
def test_a_node_killed_again_and_again_under_load_costs_no_frame(
    victim: str, in_go: frozenset[str], submit: Any, client: Any, tmp_path: Path, go: Make
) -> None:
    line = Line(submit, client, tmp_path, go, in_go)
    line.start()
    for times in range(1, 4):
        line.kill(victim)
        line.restarted(victim, times)
    described = line.stop()
    assert described["reason"] == ""
    line.check()
    for route in described["routes"]:
        assert route["stats"]["committed"] == route["stats"]["returned"]


def test_all_nodes_killed_at_once_cost_no_frame(submit: Any, client: Any, tmp_path: Path, go: Make) -> None:
    line = Line(submit, client, tmp_path, go, GO_ALONE)
    line.start()
    for times in range(1, 4):
        for node in NODES:
            line.kill(node)
        for node in NODES:
            line.restarted(node, times)
    line.stop()
    line.check()


def test_kills_in_a_diamond_whose_arenas_grow_cost_no_frame(submit: Any, client: Any, tmp_path: Path, go: Make) -> None:
    names = ("source", "left", "right", "sink")
    line = Line(submit, client, tmp_path, go, frozenset(names))
    test_restarts.diamond(line, "growing", "Heads", [2, 4, 32, 4])
    killed: dict[str, int] = {}
    for victims in (("source",), ("left", "sink"), ("right",), ("sink", "source"), names):
        for node in victims:
            line.kill(node)
            killed[node] = killed.get(node, 0) + 1
        for node, times in killed.items():
            line.restarted(node, times)
    line.stop()
    line.check("left-sink")
    line.check("right-sink")


@pytest.mark.parametrize("victims", [("source",), ("map", "sink")], ids=["source", "rest"])
def test_what_is_killed_while_the_flow_drains_comes_back_and_the_drain_loses_nothing(
    victims: tuple[str, ...], submit: Any, client: Any, daemon: Any, tmp_path: Path, go: Make
) -> None:
    line = Line(submit, client, tmp_path, go, GO_ALONE)
    line.start()
    line.further()
    pids = [line.described(node)["pid"] for node in victims]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as asking, Client.connect(daemon.socket) as other:
        stopped = asking.submit(other.call, "stop", flow=line.name)
        line.until("flow-draining")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert stopped.result()["state"] == "stopped"
    line.check()


@pytest.mark.parametrize("changed", ["source", "map", "sink", "all"])
@SIDES
def test_a_node_hands_over_to_its_successor_between_two_frames(
    changed: str, in_go: frozenset[str], submit: Any, client: Any, tmp_path: Path, go: Make
) -> None:
    line = Changing(submit, client, tmp_path, go, in_go)
    before = line.start().pids()
    nodes = NODES if changed == "all" else (changed,)
    line.apply(line.become(**{node: {"params": {"by": 1}} for node in nodes}))
    after = line.pids()
    assert {node for node in after if after[node] != before[node]} == set(nodes)
    got = line.check()
    if "map" in nodes:
        assert {each.map for each in got} == {"m0", "m1"}
        assert [each["result"] for each in line.described()["nodes"] if each["node"] == "map"] == [len(got)]


def test_routes_get_another_buffer_and_another_policy_while_frames_flow(
    submit: Any, client: Any, tmp_path: Path, go: Make
) -> None:
    line = Changing(submit, client, tmp_path, go, GO_ALONE)
    before = line.start().pids()
    flow = line.become()
    for route, buffer in zip(flow["routes"], (4, 64), strict=True):
        route["buffer"] = buffer
    line.apply(flow)
    assert line.pids() == before
    line.check()


@SIDES
def test_nodes_outlive_their_daemon_and_the_next_one_has_them(
    in_go: frozenset[str], start: Callable[[], Any], tmp_path: Path, go: Make
) -> None:
    flow = Surviving(tmp_path, go, in_go)
    daemon = start()
    with Client.connect(daemon.socket) as client:
        before = flow.submit(client)
    for _ in range(2):
        kill(daemon)
        daemon = start()
        with Client.connect(daemon.socket) as client:
            assert pids(client) == before, "no worker was started anew"
            flow.grows(client)
    with Client.connect(daemon.socket) as client:
        assert "flow-resumed" in [event["kind"] for event in events(client)]
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()
    assert not [number for number, marked in flow.numbers() if marked], "none was repeated"


def test_a_worker_that_prints_when_its_daemon_dies_goes_on(start: Callable[[], Any], tmp_path: Path, go: Make) -> None:
    printing.goes_on_without_a_daemon(Surviving(tmp_path, go, GO_ALONE, "prints"), start)


@pytest.mark.parametrize("victim", NODES)
def test_one_that_dies_after_its_daemon_came_back_is_succeeded(
    victim: str, start: Callable[[], Any], tmp_path: Path, go: Make
) -> None:
    flow = Surviving(tmp_path, go, GO_ALONE)
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
    kill(first)
    second = start()
    with Client.connect(second.socket) as client:
        os.kill(before[victim], signal.SIGKILL)
        for event in client.stream("events", flow="f", follow=True):
            assert event["kind"] != "flow-failed", event
            if event["kind"] == "node-restarted":
                break
        flow.grows(client)
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()
