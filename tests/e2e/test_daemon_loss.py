"""kill -9 of the daemon: flows that are to survive run on, the next daemon takes them over, and no frame is lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client
from tests.e2e.conftest import launch_daemon
from tests.e2e.surviving import NODES, PLUGINS, Flow, Pair, end, events, happens, kill, lives, pids


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path)


Start = Callable[[], Any]


def test_the_workers_run_on_and_the_next_daemon_has_them(start: Start, flow: Flow) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
    alive_unix_ns = time.time_ns()
    kill(first)
    second = start()
    with Client.connect(second.socket) as client:
        assert pids(client) == before, "no worker was started anew"
        nodes = client.call("describe", flow="f")["nodes"]
        assert all(node["started_unix_ns"] <= alive_unix_ns for node in nodes), "nor is its age told anew"
        assert client.call("list")["flows"][0]["state"] == "running"
        flow.grows(client)
        described = client.call("describe", flow="f")
        assert all(route["stats"]["committed"] > 0 for route in described["routes"])
        assert "flow-resumed" in [event["kind"] for event in events(client)]
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()
    assert not [number for number, marked in flow.numbers() if marked], "none was repeated"


def test_again_and_again(start: Start, flow: Flow) -> None:
    daemon = start()
    with Client.connect(daemon.socket) as client:
        before = flow.submit(client)
    for _ in range(3):
        kill(daemon)
        daemon = start()
        with Client.connect(daemon.socket) as client:
            assert pids(client) == before
            flow.grows(client)
    with Client.connect(daemon.socket) as client:
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


@pytest.mark.parametrize("victim", NODES)
def test_a_worker_that_dies_after_the_return_is_succeeded(victim: str, start: Start, flow: Flow) -> None:
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


def test_a_worker_born_while_the_journal_fails_outlives_the_daemon_once_the_journal_is_complete(
    start: Start, flow: Flow, tmp_path: Path
) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
        told = client.stream("events", follow=True)
        until(told, "flow-running")
        with closing(sqlite3.connect(tmp_path / "state" / "journal", isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            os.kill(before["map"], signal.SIGKILL)
            assert "locked" in until(told, "journal-failing")["message"]
            until(told, "node-restarted")
            assert "locked" in client.call("version")["journal"]["trouble"]
            lock.execute("ROLLBACK")
        until(told, "journal-complete")
        assert client.call("version")["journal"]["trouble"] == ""
        reborn = pids(client)
    kill(first)
    second = start()
    with Client.connect(second.socket) as client:
        assert pids(client) == reborn
        flow.grows(client)
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


def until(told: Iterator[Any], kind: str) -> Any:
    """The next event of that kind."""
    return next(event for event in told if event["kind"] == kind)


@pytest.mark.parametrize("victim", NODES)
def test_a_successor_outlives_the_daemon_too(victim: str, start: Start, flow: Flow, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Flow(tmp_path / "other").raw()
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
        os.kill(before[victim], signal.SIGKILL)
        for event in client.stream("events", flow="f", follow=True):
            if event["kind"] == "node-restarted":
                break
        after = pids(client)
        client.call("submit", flow=other, name="g", base_dir=str(PLUGINS), wait="running")
        assert client.call("stop", flow="g")["state"] == "stopped"  # all that the journal was owed has been written
    kill(first)
    second = start()
    with Client.connect(second.socket) as client:
        assert pids(client) == after
        flow.grows(client)
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


def test_a_source_that_had_no_memory_yet_goes_on_where_its_predecessor_was(start: Start, tmp_path: Path) -> None:
    flow = Pair(tmp_path)
    first = start()
    with Client.connect(first.socket) as client:
        flow.submit(client)
        source = flow.orphan(client)
    kill(first)
    end(source)
    flow.hold.unlink()
    second = start()
    with Client.connect(second.socket) as client:
        flow.grows(client)
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


def test_a_flow_of_which_both_ends_of_a_route_died_meanwhile_fails_and_says_so(start: Start, tmp_path: Path) -> None:
    flow = Pair(tmp_path)
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
        raw = flow.raw()
        third = raw["manifests"][1] | {"node_id": "alone", "plugin_id": "alone"}
        third["artifact"] = third["artifact"] | {"uri": "python://slow.py:paced"}
        assert client.call("stop", flow="f")["state"] == "stopped"
        raw["manifests"].append(third)
        client.call("submit", flow=raw, name="f", base_dir=str(flow.folder), wait="running")
        before = pids(client)
    kill(first)
    for node in ("source", "sink"):
        end(before[node])
    second = start()
    with Client.connect(second.socket) as client:
        for event in client.stream("events", flow="f", follow=True):
            if event["kind"] == "flow-failed":
                break
        assert "what it had sent on 'source-sink' is lost" in client.call("describe", flow="f")["reason"]


def test_a_stop_during_the_return_is_kept(start: Start, flow: Flow) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        flow.submit(client)
    kill(first)
    second = start()
    with Client.connect(second.socket) as client:
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


def test_a_worker_that_died_meanwhile_without_a_keeper_of_its_memory_fails_the_flow_and_says_so(
    start: Start, flow: Flow
) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
    kill(first)
    end(before["map"])
    second = start()
    with Client.connect(second.socket) as client:
        (listed,) = client.call("list")["flows"]
        if listed["state"] != "failed":
            for event in client.stream("events", flow="f", follow=True):
                if event["kind"] == "flow-failed":
                    break
        (listed,) = client.call("list")["flows"]
        assert "'map'" in listed["reason"]
        assert "died while no daemon was there" in listed["reason"]
    assert not [pid for pid in before.values() if lives(pid)]


def test_a_worker_that_is_not_back_yet_is_shown_as_such_and_dies_as_such(
    start: Start, flow: Flow, tmp_path: Path, settings: dict[str, str]
) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
    kill(first)
    os.kill(before["map"], signal.SIGSTOP)
    second = launch_daemon(tmp_path, settings)
    try:
        with Client.connect(second.socket) as client:
            while True:
                described = client.call("describe", flow="f")
                states = {node["node"]: node["state"] for node in described["nodes"]}
                assert states["map"] == "returning"
                assert set(states.values()) <= {"returning", "started"}
                assert described["returning"] == list(states.values()).count("returning")
                if described["returning"] == 1:
                    break
            (listed,) = client.call("list")["flows"]
            assert (listed["state"], listed["returning"]) == ("running", 1)
            told = {node["node"]: node["state"] for node in client.call("stats", flow="f")["flows"][0]["nodes"]}
            assert told == states
            end(before["map"])
            happens(client, "flow-failed")
            failed = client.call("describe", flow="f")
        assert "'map' died when it had not reattached to this daemon yet, and what it had " in failed["reason"]
        assert failed["returning"] == 0
        exits = {node["node"]: node["deaths"][-1] for node in failed["nodes"] if node["node"] != "map"}
        assert exits
        assert {(each["code"], each["fault"]) for each in exits.values()} == {(0, "")}, "nobody else is charged"
    finally:
        kill(second)


def test_a_flow_that_is_not_to_survive_ends_with_its_daemon_and_runs_anew(start: Start, flow: Flow) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client, loss="stop")
    kill(first)
    second = start()
    with Client.connect(second.socket) as client:
        after = pids(client)
        assert not set(after.values()) & set(before.values())
        assert client.call("stop", flow="f")["state"] == "stopped"
    assert not [pid for pid in before.values() if lives(pid)]


@pytest.mark.settings(drain_timeout=100)
def test_one_that_is_killed_while_it_stops_has_the_next_one_end_the_drain_and_run_the_flow_again(
    start: Start, flow: Flow
) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
        os.kill(before["sink"], signal.SIGSTOP)
        first.process.send_signal(signal.SIGTERM)
        happens(client, "flow-draining")
    kill(first)
    os.kill(before["sink"], signal.SIGCONT)
    second = start()
    with Client.connect(second.socket) as client:
        while client.call("list")["flows"][0]["state"] != "running" or set(pids(client).values()) & set(
            before.values()
        ):
            pass
        flow.grows(client)
        assert client.call("stop", flow="f")["state"] == "stopped"
    numbers = flow.numbers()
    again = numbers.index((1, False), 1)
    for part in (numbers[:again], numbers[again:]):
        assert [number for number, _ in part] == list(range(1, len(part) + 1)), "each run is whole"
    assert not [pid for pid in before.values() if lives(pid)]


@pytest.mark.settings(drain_timeout=100)
def test_a_stop_that_somebody_asked_for_is_not_forgotten_when_the_daemon_dies_over_it(start: Start, flow: Flow) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
        os.kill(before["sink"], signal.SIGSTOP)
        asking = subprocess.Popen(
            [sys.executable, "-m", "chronetixctl", "stop", "f"], env=first.environment, stderr=subprocess.DEVNULL
        )
        happens(client, "flow-draining")
    kill(first)
    asking.kill()
    asking.wait()
    os.kill(before["sink"], signal.SIGCONT)
    second = start()
    with Client.connect(second.socket) as client:
        happens(client, "flow-stopped")
    flow.check()
    assert not [pid for pid in before.values() if lives(pid)]


def test_daemons_that_die_while_workers_are_coming_home_change_nothing(
    start: Start, flow: Flow, tmp_path: Path, settings: dict[str, str]
) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
    kill(first)
    os.kill(before["map"], signal.SIGSTOP)
    for patience in (1, 30, 300):
        hasty = launch_daemon(tmp_path, settings)
        with Client.connect(hasty.socket) as client:
            for _ in range(patience):
                assert client.call("list")["flows"][0]["state"] == "running"
        kill(hasty)
    os.kill(before["map"], signal.SIGCONT)
    last = start()
    with Client.connect(last.socket) as client:
        assert pids(client) == before
        flow.grows(client)
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()
    assert not [number for number, marked in flow.numbers() if marked], "none was repeated"
