"""Flows on a machine without seals: the same results, and nothing left in /dev/shm, whoever was killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from chronetix.shm import names
from chronetixctl.client import Client
from tests.e2e.conftest import Submit, start_daemon

pytestmark = pytest.mark.settings(without="seals", log_format="json")


def left_by(pids: set[int]) -> list[str]:
    makers = {name: names.maker(name) for name in os.listdir(names.FOLDER)}
    return [name for name, maker in makers.items() if maker is not None and maker.pid in pids]


def pair(submit: Any, second: str, wait: str) -> Any:
    nodes = [submit.node("endless", "pipeline:endless"), submit.node("second", second)]
    return submit(nodes, [submit.edge("endless", "second")], wait=wait)


def workers(client: Any, flow: str) -> dict[str, int]:
    return {node["node"]: node["pid"] for node in client.call("describe", flow=flow)["nodes"]}


def test_a_flow_runs_and_leaves_no_names(submit: Any, client: Any, daemon: Any) -> None:
    flow = pair(submit, "pipeline:Check", "running")["flow"]
    pids = set(workers(client, flow).values())
    assert left_by(pids), "memory has names here"
    assert client.call("stop", flow=flow)["state"] == "stopped"
    described = client.call("describe", flow=flow)
    assert all(route["stats"]["committed"] > 0 for route in described["routes"])
    assert left_by(pids) == []
    told = [json.loads(line) for line in daemon.log.read_text().splitlines() if line.startswith("{")]
    assert [record["feature"] for record in told if "feature" in record] == ["seals", "future_write"]


def test_what_a_killed_worker_leaves_goes_with_its_flow(submit: Any, client: Any) -> None:
    flow = pair(submit, "pipeline:Check", "running")["flow"]
    pids = workers(client, flow)
    os.kill(pids["endless"], signal.SIGKILL)
    for event in client.stream("events", flow=flow, follow=True):
        if event["kind"] == "flow-failed":
            break
    assert left_by(set(pids.values())) == []


def test_what_killed_workers_and_a_killed_daemon_leave_goes_with_the_next_start(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    first = start_daemon(tmp_path, settings)
    with Client.connect(first.socket) as client:
        pids = set(workers(client, pair(Submit(client), "pipeline:Check", "running")["flow"]).values())
        first.process.send_signal(signal.SIGSTOP)  # so that it does not see its workers end
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        first.process.kill()
        first.process.wait()
    assert left_by(pids), "nobody was there to take them away"
    again = start_daemon(tmp_path, settings)
    left = left_by(pids)
    again.process.terminate()
    assert again.process.wait() == 0
    assert left == []
