"""Deaths, replacements, daemons that die: no worker of an SDK loses a frame or its order, or repeats one unmarked."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client
from tests.e2e.surviving import Flow, kill, pids
from tests.sdk import printing
from tests.sdk.nodes import Nodes

RESTART = {"policy": "transient", "max": 100, "backoff_ms": 1}
Start = Callable[[], Any]


class OwnFlow(Flow):
    """source → map → sink of one SDK; the ledger outlives everything."""

    def __init__(self, folder: Path, nodes: Nodes, role: str = "forward", **params: Any) -> None:
        super().__init__(folder)
        self.nodes, self.role, self.params = nodes, role, params

    def raw(self, restart: Any = RESTART, loss: str = "survive") -> dict[str, Any]:
        nodes = self.nodes
        return nodes.line(
            nodes.own("source", "paced", self.params, restart=restart),
            nodes.own("map", self.role, restart=restart),
            nodes.own("sink", "ledger", {"ledger": str(self.ledger)}, restart=restart),
            buffer=16,
        ) | {"on_daemon_loss": loss}


def restarted(client: Client, node: str, times: int) -> None:
    """Wait until ``node`` has come back that often."""
    for event in client.stream("events", flow="f", follow=True):
        assert event["kind"] != "flow-failed", event
        times -= event["kind"] == "node-restarted" and event["node"] == node
        if times == 0:
            return


@pytest.mark.parametrize("role", ["forward", "late"])
@pytest.mark.parametrize("victim", ["source", "map", "sink"])
def test_a_node_killed_again_and_again_costs_no_frame(
    victim: str, role: str, nodes: Nodes, client: Client, tmp_path: Path
) -> None:
    flow = OwnFlow(tmp_path, nodes, role)
    flow.submit(client)
    for times in range(1, 4):
        os.kill(pids(client)[victim], signal.SIGKILL)
        restarted(client, victim, times)
        flow.grows(client)
    assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


def test_a_node_that_crashes_comes_back(nodes: Nodes, client: Client, tmp_path: Path) -> None:
    flow = OwnFlow(tmp_path, nodes, "crashes")
    flow.submit(client)
    restarted(client, "map", 1)
    flow.grows(client)
    assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


@pytest.mark.parametrize("node", ["source", "map", "sink"])
def test_a_node_is_handed_over_to_another_worker(node: str, any_nodes: Nodes, client: Client, tmp_path: Path) -> None:
    flow = OwnFlow(tmp_path, any_nodes)
    before = flow.submit(client)
    done = client.call("restart", flow="f", nodes=[node], wait=True)
    assert done["step"] == "done", done
    assert pids(client)[node] != before[node]
    flow.grows(client)
    assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()
    assert not [number for number, marked in flow.numbers() if marked], "none was repeated"


def test_a_route_changes_its_buffer_while_frames_flow(any_nodes: Nodes, client: Client, tmp_path: Path) -> None:
    flow = OwnFlow(tmp_path, any_nodes)
    flow.submit(client)
    changed = flow.raw()
    for route in changed["routes"]:
        route["buffer"] = 64
    done = client.call("apply", flow=changed, name="f", wait=True)
    assert done["step"] == "done", done
    flow.grows(client)
    assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


def test_a_tap_sees_frames_of_a_worker(any_nodes: Nodes, client: Client, tmp_path: Path, daemon: Any) -> None:
    flow = OwnFlow(tmp_path, any_nodes)
    flow.submit(client)
    seen = daemon.ctl("topic", "echo", "f", "source:map", "--count", "3")
    assert seen.returncode == 0, seen.stderr
    assert seen.stdout
    flow.grows(client)
    assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


@pytest.mark.parametrize("grows", [False, True])
def test_the_workers_run_on_without_a_daemon_and_the_next_one_has_them(
    grows: bool, any_nodes: Nodes, start: Start, tmp_path: Path
) -> None:
    flow = OwnFlow(tmp_path, any_nodes, grows=grows)
    daemon = start()
    with Client.connect(daemon.socket) as client:
        before = flow.submit(client)
    for _ in range(2):
        kill(daemon)
        daemon = start()
        with Client.connect(daemon.socket) as client:
            assert pids(client) == before
            flow.grows(client)
    with Client.connect(daemon.socket) as client:
        os.kill(before["map"], signal.SIGKILL)
        restarted(client, "map", 1)
        flow.grows(client)
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


def test_a_worker_that_prints_when_its_daemon_dies_goes_on(any_nodes: Nodes, start: Start, tmp_path: Path) -> None:
    printing.goes_on_without_a_daemon(OwnFlow(tmp_path, any_nodes, "prints"), start)


def test_without_survive_the_workers_end_with_their_daemon(nodes: Nodes, start: Start, tmp_path: Path) -> None:
    flow = OwnFlow(tmp_path, nodes)
    daemon = start()
    with Client.connect(daemon.socket) as client:
        client.call("submit", flow=flow.raw(loss="stop"), name="f", base_dir="/", wait="running")
        flow.grows(client)
        alive = [os.pidfd_open(pid) for pid in pids(client).values()]
    kill(daemon)
    for pidfd in alive:
        select.select([pidfd], [], [])
        os.close(pidfd)
    start()
