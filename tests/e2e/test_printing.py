"""Plugins that print while their daemon is killed: they go on, and what they printed is in the log, or is told to be
lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chronetixctl.client import Client
from tests.e2e.growing import await_written
from tests.e2e.surviving import PLUGINS, kill, pids

Map = dict[str, Any]
Start = Callable[[], Any]


def printing(entry: str, ledger: Path) -> Map:
    def node(name: str, which: str) -> Map:
        artifact = {"kind": "Python", "uri": f"python://printing.py:{which}"}
        told = {"plugin_id": name, "node_id": name, "version": "1", "artifact": artifact}
        return told | {"params": {"ledger": str(ledger)}}

    route = {"from": "source", "to": "sink", "plane": "data", "topic": "r", "buffer": 16}
    route["content_type"] = "application/octet-stream"
    manifests = [node("source", entry), node("sink", "Written")]
    return {"manifests": manifests, "routes": [route], "schemas": [], "on_daemon_loss": "survive"}


def last(ledger: Path) -> int:
    """The highest number that has come to the sink."""
    lines = ledger.read_text().split("\n") if ledger.exists() else []
    return int(lines[-2]) if len(lines) > 1 else 0


def goes_on(ledger: Path, more: int) -> int:
    """Wait until so many more have come; the last one then."""
    wanted = last(ledger) + more
    await_written(ledger, lambda: last(ledger) >= wanted)
    return last(ledger)


def test_what_is_printed_without_a_daemon_is_in_the_log_of_the_next(start: Start, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    daemon = start()
    with Client.connect(daemon.socket) as client:
        client.call("submit", flow=printing("numbers", ledger), name="f", base_dir=str(PLUGINS), wait="running")
        goes_on(ledger, 5)
    kill(daemon)
    begin = last(ledger) + 1
    end = goes_on(ledger, 100)
    daemon = start()
    with Client.connect(daemon.socket) as client:
        heard: set[int] = set()
        for record in client.stream("logs", flow="f", node="source", follow=True):
            if record.get("line", "").startswith("number "):
                heard.add(int(record["line"].split()[1]))
            if max(heard, default=0) >= end:
                break
        assert set(range(begin, end + 1)) <= heard
        assert client.call("stop", flow="f")["state"] == "stopped"


def test_who_prints_more_than_anybody_reads_goes_on_and_the_next_daemon_tells_what_is_lost(
    start: Start, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    daemon = start()
    with Client.connect(daemon.socket) as client:
        client.call("submit", flow=printing("floods", ledger), name="f", base_dir=str(PLUGINS), wait="running")
        before = pids(client)
    for _ in range(3):
        goes_on(ledger, 10)
        kill(daemon)
        goes_on(ledger, 50)
        daemon = start()
        with Client.connect(daemon.socket) as client:
            (listed,) = client.call("list")["flows"]
            assert listed["state"] == "running", listed["reason"]
            assert pids(client) == before
            for record in client.stream("logs", flow="f", node="source", level="warning", follow=True):
                if "while no daemon was there are lost" in record.get("line", ""):
                    assert record["fields"]["lost_bytes"] > 0
                    break
    with Client.connect(daemon.socket) as client:
        assert client.call("stop", flow="f", mode="now")["state"] == "stopped"
