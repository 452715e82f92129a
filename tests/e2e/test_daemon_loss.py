"""kill -9 of the daemon: flows that are to survive run on, the next daemon takes them over, and no frame is lost."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chronetixd.cli.client import Client
from chronetixd.proc import stat

Map = dict[str, Any]
PLUGINS = Path(__file__).parent / "plugins"
TRANSIENT = {"policy": "transient", "max": 100, "backoff_ms": 1}
NODES = ("source", "map", "sink")


class Flow:
    """source → map → sink with a ledger that outlives everything."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "ledger"

    def raw(self, restart: Any = TRANSIENT, loss: str = "survive") -> Map:
        entries = {"source": "paced", "map": "forward", "sink": "Ledger"}
        manifests = [
            {
                "plugin_id": node,
                "node_id": node,
                "version": "1.0.0",
                "artifact": {"kind": "Python", "uri": f"python://restarts.py:{entry}"},
                "params": {"ledger": str(self.ledger)},
                "restart": restart,
            }
            for node, entry in entries.items()
        ]
        routes = [
            {
                "from": source,
                "to": target,
                "plane": "data",
                "topic": f"{source}/{target}",
                "content_type": "application/octet-stream",
                "buffer": 16,
            }
            for source, target in (("source", "map"), ("map", "sink"))
        ]
        return {"manifests": manifests, "routes": routes, "schemas": [], "on_daemon_loss": loss}

    def submit(self, client: Client, **more: Any) -> dict[str, int]:
        """Its pids, once it runs and frames have arrived."""
        client.call("submit", flow=self.raw(**more), name="f", base_dir=str(PLUGINS), wait="running")
        self.grows(client)
        return pids(client)

    def numbers(self) -> list[tuple[int, bool]]:
        lines = [line.split() for line in self.ledger.read_text().splitlines()]
        return [(int(number), marked == "1") for _, _, number, marked in lines]

    def grows(self, client: Client) -> None:
        """Wait until further frames have come."""
        before = self.size()
        while self.size() <= before:
            client.call("list")

    def size(self) -> int:
        return self.ledger.stat().st_size if self.ledger.exists() else 0

    def check(self) -> None:
        """None lost, order kept, and what came twice is marked."""
        seen = 0
        for number, marked in self.numbers():
            assert number <= seen + 1, f"{number} follows {seen}: lost"
            assert marked or number == seen + 1, f"{number} came again unmarked"
            seen = max(seen, number)
        assert seen


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path)


def pids(client: Client) -> dict[str, int]:
    return {node["node"]: node["pid"] for node in client.call("describe", flow="f")["nodes"]}


def lives(pid: int) -> bool:
    """It is there, and not only because whoever it was left to has not reaped it yet."""
    found = stat(pid)
    return found is not None and found.state != "Z"


def events(client: Client) -> list[Map]:
    return list(client.stream("events", flow="f"))


def kill(daemon: Any) -> None:
    daemon.process.kill()
    daemon.process.wait()


def end(pid: int) -> None:
    """Kill a process that is not ours, and wait for its end."""
    fd = os.pidfd_open(pid)
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    select.select([fd], [], [])
    os.close(fd)


Start = Callable[[], Any]


def test_the_workers_run_on_and_the_next_daemon_has_them(start: Start, flow: Flow) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        before = flow.submit(client)
    kill(first)
    second = start()
    with Client.connect(second.socket) as client:
        assert pids(client) == before, "no worker was started anew"
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
