"""kill -9 under load in a real daemon: what dies comes back, no frame is lost, order is kept, duplicates are marked."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client
from tests.e2e.growing import await_written
from tests.e2e.surviving import Flow, happens

Map = dict[str, Any]
TRANSIENT = {"policy": "transient", "max": 100, "backoff_ms": 1}


class Line:
    """source → map → sink with a ledger, each restarted as told."""

    def __init__(self, submit: Any, client: Any, folder: Path) -> None:
        self.submit, self.client = submit, client
        self.ledger = folder / "ledger"
        self.name = ""

    def start(self, source: str = "items", map: str = "forward", restart: Any = TRANSIENT, **more: Any) -> Line:
        nodes = [
            self.node("source", source, restart),
            self.node("map", map, restart, **more.pop("map_fields", {})),
            self.node("sink", "Ledger", restart, params={"ledger": str(self.ledger)}),
        ]
        routes = [self.submit.edge("source", "map", buffer=16), self.submit.edge("map", "sink", buffer=16)]
        wait = more.pop("wait", "running")
        flow = {"manifests": nodes, "routes": routes, "schemas": [], **more}
        answer = self.client.call("submit", flow=flow, base_dir=str(PLUGINS), wait=wait)
        self.name = answer["flow"]
        return self

    def node(self, name: str, entry: str, restart: Any, **more: Any) -> Any:
        return self.submit.node(name, f"restarts:{entry}", restart=restart, **more)

    def described(self, node: str) -> Map:
        return next(each for each in self.client.call("describe", flow=self.name)["nodes"] if each["node"] == node)

    def kill(self, node: str) -> None:
        pid = self.described(node)["pid"]
        assert pid
        os.kill(pid, signal.SIGKILL)

    def events(self) -> Iterator[Map]:
        yield from self.client.stream("events", flow=self.name, follow=True)

    def until(self, kind: str, count: int = 1) -> list[Map]:
        """All events up to and with the ``count``-th of ``kind``."""
        seen = []
        for event in self.events():
            seen.append(event)
            count -= event["kind"] == kind
            if count == 0:
                break
        return seen

    def restarted(self, node: str, times: int) -> None:
        """Wait until ``node`` has come back that often."""
        back = 0
        for event in self.events():
            assert event["kind"] != "flow-failed", event
            back += event["kind"] == "node-restarted" and event["node"] == node
            if back == times:
                return

    def further(self, frames: int = 100) -> None:
        """Some more frames come to the sink."""
        before = self.ledger.stat().st_size if self.ledger.exists() else 0

        def come() -> int:
            return self.ledger.read_bytes()[before:].count(b" map-sink ") if self.ledger.exists() else 0

        await_written(self.ledger, lambda: come() >= frames, self.client)

    def stop(self) -> Map:
        """Drain it; its description."""
        assert self.client.call("stop", flow=self.name)["state"] == "stopped"
        described: Map = self.client.call("describe", flow=self.name)
        return described

    def numbers(self, route: str = "map-sink") -> list[tuple[int, bool]]:
        """What the sink got by ``route``, in order: number, redelivered."""
        lines = [line.split() for line in self.ledger.read_text().splitlines()]
        return [(int(number), marked == "1") for _, came_by, number, marked in lines if came_by == route]

    def check(self, route: str = "map-sink") -> None:
        """None lost, order kept, and what came twice is marked."""
        got = self.numbers(route)
        assert got
        fresh = [number for number, marked in got if not marked]
        assert fresh == sorted(set(fresh))
        seen = 0
        for number, marked in got:
            assert number <= seen + 1, f"{number} follows {seen}: lost"
            assert marked or number == seen + 1, f"{number} came again unmarked"
            seen = max(seen, number)


PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def line(submit: Any, client: Any, tmp_path: Path) -> Line:
    return Line(submit, client, tmp_path)


@pytest.mark.parametrize("victim", ["source", "map", "sink"])
def test_a_node_killed_again_and_again_under_load_costs_no_frame(victim: str, line: Line) -> None:
    line.start()
    for times in range(1, 5):
        line.kill(victim)
        line.restarted(victim, times)
    described = line.stop()
    assert described["reason"] == ""
    line.check()
    assert {node["node"]: node["incarnation"] for node in described["nodes"]} == {
        **dict.fromkeys(("source", "map", "sink"), 0),
        victim: 4,
    }
    committed = {route["from"]: route["stats"] for route in described["routes"]}
    assert committed["map"]["committed"] == committed["map"]["returned"]
    assert committed["source"]["committed"] == committed["source"]["returned"]
    assert line.numbers()[-1][0] == max(number for number, _ in line.numbers())


def test_all_nodes_killed_at_once_cost_no_frame(line: Line) -> None:
    line.start()
    for times in range(1, 4):
        for node in ("source", "map", "sink"):
            line.kill(node)
        for node in ("source", "map", "sink"):
            line.restarted(node, times)
    line.stop()
    line.check()


@pytest.mark.parametrize("victims", [("source",), ("map",), ("sink",), ("map", "sink"), ("source", "map", "sink")])
def test_what_is_killed_while_the_flow_drains_comes_back_and_the_drain_loses_nothing(
    victims: tuple[str, ...], line: Line, daemon: Any
) -> None:
    line.start()
    line.further()
    pids = [line.described(node)["pid"] for node in victims]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as asking, Client.connect(daemon.socket) as client:
        stopped = asking.submit(client.call, "stop", flow=line.name)
        line.until("flow-draining")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert stopped.result()["state"] == "stopped"
    described = line.client.call("describe", flow=line.name)
    assert described["reason"] == ""
    assert sum(node["incarnation"] for node in described["nodes"]) == len(victims)
    line.check()
    for route in described["routes"]:
        assert route["stats"]["committed"] == route["stats"]["returned"]


def diamond(line: Line, source: str, sink: str, buffers: list[int], **more: Any) -> None:
    """source → left, right → sink."""
    nodes = [
        line.node("source", source, TRANSIENT),
        *(line.node(name, "forward", TRANSIENT) for name in ("left", "right")),
        line.node("sink", sink, TRANSIENT, params={"ledger": str(line.ledger)}),
    ]
    edges = [("source", "left"), ("source", "right"), ("left", "sink"), ("right", "sink")]
    routes = [line.submit.edge(*edge, buffer=buffer) for edge, buffer in zip(edges, buffers, strict=True)]
    flow = {"manifests": nodes, "routes": routes, "schemas": [], **more}
    line.name = line.client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="running")["flow"]


@pytest.mark.parametrize("seed", range(2))
def test_random_kills_in_a_diamond_whose_arenas_grow_cost_no_frame(seed: int, line: Line) -> None:
    chance = random.Random(seed)
    diamond(line, "growing", "Heads", chance.choices([2, 4, 32], k=4))
    killed: dict[str, int] = {}
    for _ in range(10):
        for node in chance.sample(["source", "left", "right", "sink"], chance.choice([1, 1, 2, 3])):
            line.kill(node)
            killed[node] = killed.get(node, 0) + 1
        for node, times in killed.items():
            line.restarted(node, times)
    line.stop()
    line.check("left-sink")
    line.check("right-sink")


def test_a_consumer_that_is_ended_for_its_kin_detaches_from_nobody(line: Line) -> None:
    diamond(line, "items", "Ledger", [8] * 4, strategy="rest_for_one")
    for times, victim in enumerate(("left", "right") * 3, 1):
        line.kill(victim)
        line.restarted(victim, (times + 1) // 2)
        line.restarted("sink", times)
    line.stop()
    line.check("left-sink")
    line.check("right-sink")


def test_a_source_that_begins_anew_sends_duplicates_and_they_are_marked(line: Line) -> None:
    line.start(source="forgets")
    line.kill("source")
    line.restarted("source", 1)
    line.stop()
    line.check()


@pytest.mark.parametrize("strategy", ["rest_for_one", "one_for_all"])
def test_a_strategy_restarts_others_too_and_loses_nothing(strategy: str, line: Line) -> None:
    line.start(strategy=strategy)
    for times in (1, 2):
        line.kill("map")
        for node in ("map", "sink", *(["source"] if strategy == "one_for_all" else [])):
            line.restarted(node, times)
    described = line.stop()
    line.check()
    counts = {node["node"]: node["restart"]["restarts"] for node in described["nodes"]}
    assert counts == {"source": 2 if strategy == "one_for_all" else 0, "map": 2, "sink": 2}


def test_a_plugin_that_raises_is_restarted_and_the_frame_comes_again(line: Line) -> None:
    line.start(map="FailsAtFirst", map_fields={"params": {"lives": 2}})
    line.restarted("map", 2)
    line.stop()
    line.check()


@pytest.mark.parametrize("entry", ["CannotSend", "CannotSendAsync"])
def test_a_frame_whose_result_could_not_be_sent_comes_again(entry: str, line: Line) -> None:
    line.start(map=entry, map_fields={"params": {"lives": 2}, "qos": {"max_inflight": 4}})
    line.restarted("map", 2)
    line.stop()
    line.check()


def test_a_node_that_fails_too_often_fails_the_flow_and_says_how_often_and_why(line: Line) -> None:
    line.start(map="FailsAtFirst", restart={"policy": "transient", "max": 2, "backoff_ms": 1}, wait="accepted")
    events = line.until("flow-failed")
    assert [event["data"]["attempt"] for event in events if event["kind"] == "node-restarting"] == [1, 2]
    told = line.client.call("describe", flow=line.name)["reason"]
    assert told.startswith("node 'map' was restarted 2 times within 60 s and failed again: failed in phase 'frame'")
    assert "the third frame is one too many" in told


def test_a_temporary_node_is_not_restarted(line: Line) -> None:
    line.start(restart="temporary")
    line.kill("map")
    events = line.until("flow-failed")
    assert not [event for event in events if event["kind"] == "node-restarting"]
    assert "node 'map' was killed by SIGKILL" in line.client.call("describe", flow=line.name)["reason"]


def test_a_hung_plugin_is_told_from_a_busy_one_and_restarted(line: Line) -> None:
    fields = {"liveness": {"limit_ms": 1000, "period_ms": 50}}
    line.start(map="Hangs", map_fields=fields)
    (restarting,) = [event for event in line.until("node-restarting") if event["kind"] == "node-restarting"]
    assert "hung in on_frame (route source-map, seq 4) for" in restarting["message"]
    line.restarted("map", 1)
    line.stop()
    line.check()


def test_a_worker_that_is_stopped_fails_its_liveness(line: Line) -> None:
    line.start(map_fields={"liveness": {"limit_ms": 500, "period_ms": 50}})
    os.kill(line.described("map")["pid"], signal.SIGSTOP)
    (restarting,) = [event for event in line.until("node-restarting") if event["kind"] == "node-restarting"]
    assert "has not answered for" in restarting["message"]
    line.restarted("map", 1)
    line.stop()
    line.check()


def test_frames_that_cannot_be_taken_become_dead_letters_and_the_flow_goes_on(line: Line) -> None:
    client, submit = line.client, line.submit
    nodes = [
        submit.node("source", "restarts:some", params={"count": 40}),
        submit.node("map", "restarts:picky", qos={"retry": 2}),
        submit.node("sink", "restarts:Ledger", params={"ledger": str(line.ledger)}),
        submit.node("letters", "restarts:Letters", bus_subscriptions=[{"pattern": "failed"}]),
    ]
    routes = [submit.edge("source", "map"), submit.edge("map", "sink")]
    flow = {"manifests": nodes, "routes": routes, "schemas": [], "dead_letter": "failed"}
    line.name = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="running")["flow"]
    heads = []
    for record in client.stream("logs", flow=line.name, node="letters", follow=True):
        assert "fields" in record, record
        heads.append(record["fields"]["head"])
        if len(heads) == 4:
            break
    assert heads == [["map", "ValueError", number] for number in (10, 20, 30, 40)]
    for event in line.events():
        if event["kind"] == "worker-exited" and event["node"] == "sink":
            break
    counted = line.described("map")["failed_frames"]
    assert counted == {"retries": 8, "passed": 0, "dead_letters": 4, "dropped": 0}
    line.stop()
    assert [number for number, _ in line.numbers()] == [n for n in range(1, 41) if n % 10]


def test_a_frame_whose_result_was_not_sent_when_sigterm_came_is_worked_on_again(client: Client, tmp_path: Path) -> None:
    flow = Flow(tmp_path)
    raw = flow.raw(loss="stop")
    raw["manifests"][1]["artifact"]["uri"] = "python://restarts.py:CutOff"
    client.call("submit", flow=raw, name="f", base_dir=str(PLUGINS), wait="running")
    happens(client, "node-restarted", "map")
    flow.grows(client)
    assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()
