"""What nodes print: found again after a restart, by time and by pattern; and a node that prints without end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client
from chronetixd.records.log_record import LINES_A_SECOND, LINES_AT_ONCE
from tests.e2e.conftest import start_daemon


def printed(daemon: Any, *arguments: str) -> list[str]:
    ran = daemon.ctl("logs", *arguments, "-o", "json")
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line)["line"] for line in ran.stdout.splitlines()]


def test_lines_are_chosen_by_time_pattern_number_and_node(submit: Any, daemon: Any, tmp_path: Path) -> None:
    submit([submit.node("talks", "pipeline:talks", params={"lines": 20})], [], name="f")
    submit([submit.node("talks", "pipeline:talks", params={"lines": 3})], [], name="g")
    every = [f"line {number}" for number in range(20)]
    assert printed(daemon, "f") == every
    assert printed(daemon, "f", "--grep", "line 1[0-9]$") == every[10:]
    assert printed(daemon, "f", "--grep", "line 1[0-9]$", "--tail", "2") == every[-2:]
    assert printed(daemon, "f", "--since", "1h", "--tail", "1", "--node", "talks") == every[-1:]
    assert printed(daemon, "f", "--since", time.strftime("%Y-%m-%dT%H:%M", time.localtime(time.time() + 3600))) == []
    assert printed(daemon, "--grep", "line 0") == ["line 0", "line 0"]
    assert printed(daemon, "f", "--level", "info") == every
    assert printed(daemon, "f", "--level", "warning") == []
    assert daemon.ctl("logs", "f", "--grep", "(").returncode == 2
    assert "no time" in daemon.ctl("logs", "f", "--since", "yesterday").stderr
    daemon.process.terminate()
    daemon.process.wait()
    again = start_daemon(tmp_path, {})
    try:
        assert printed(again, "f") == every
        assert printed(again, "f", "--tail", "2") == every[-2:]
        assert printed(again, "f", "--grep", "line 3") == ["line 3"]
    finally:
        again.process.terminate()
        assert again.process.wait() == 0


def test_a_grep_that_follows_shows_the_last_ones_then_what_comes(submit: Any, daemon: Any, client: Client) -> None:
    submit([submit.node("talks", "pipeline:talks", params={"lines": 5})], [], name="f")
    items = client.stream("logs", tail=None, follow=True, mark=True)
    seen = [item.get("line", "mark") for _, item in zip(range(6), items, strict=False)]
    assert seen == ["line 0", "line 1", "line 2", "line 3", "line 4", "mark"]


@pytest.mark.settings(log_files=2, log_file_bytes=65536)
def test_a_node_that_prints_without_end_costs_nobody_anything(submit: Any, client: Client, daemon: Any) -> None:
    """It is never held up, what is too much is told, memory and disk stay within bounds, its neighbour runs on."""
    submit([submit.node("flood", "pipeline:floods")], [], name="flood", wait="running")
    for event in client.stream("logs", flow="flood", follow=True):
        if event.get("stream") == "daemon":
            break
    assert event["fields"]["lost_bytes"] > 0
    assert "left out" in event["line"]
    with Client.connect(daemon.socket) as other:
        nodes = [
            submit.node("numbers", "pipeline:numbers", params={"count": 1000}),
            submit.node("check", "pipeline:Check"),
        ]
        flow = {"manifests": nodes, "routes": [submit.edge("numbers", "check")], "schemas": []}
        answer = other.call("submit", flow=flow, base_dir=str(Path(__file__).parent / "plugins"), wait="stopped")
        assert answer["state"] == "stopped"
        described = other.call("describe", flow="flood")
        assert described["state"] == "running"
        other.call("stop", flow="flood")
        assert other.call("version")["output_lost"]["dropped_bytes"] > 0
    files = list((daemon.state / "logs").glob("flood*"))
    assert {file.name for file in files} <= {"flood+flood.log", "flood+flood.log.1"}
    assert all(file.stat().st_size <= 65536 for file in files)
    with open(f"/proc/{daemon.process.pid}/status") as status:
        rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert rss < 400 * 1024, f"{rss} KiB"
    assert os.path.exists(f"/proc/{daemon.process.pid}")


def test_a_node_that_logs_without_measure_loses_what_is_too_much_and_all_of_it_is_counted(
    submit: Any, client: Client
) -> None:
    began = time.monotonic()
    submit([submit.node("much", "pipeline:logs_much", params={"count": 30_000})], [], name="much")
    most = LINES_AT_ONCE + LINES_A_SECOND * (time.monotonic() - began)
    items = list(client.stream("logs", flow="much"))
    kept = sum(item["stream"] == "log" for item in items)
    lost = sum(item["fields"]["lost_lines"] for item in items if item["stream"] == "daemon")
    assert kept + lost == 30_000
    assert kept <= most
