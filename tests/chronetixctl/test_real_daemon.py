"""chronetixctl and the daemon as it is: a flow's whole life by the command line."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

PLUGIN = """
import threading

def numbers(ctx):
    print("counting")
    n = 0
    while not ctx.stopping:
        n += 1
        yield {"n": n}

class Slow:
    def on_start(self, ctx):
        self.seen = 0
        self.never = threading.Event()
    def on_frame(self, frame, ctx):
        self.never.wait(0.005)
        self.seen += 1
    def on_stop(self, ctx):
        return {"seen": self.seen}
"""

FLOW = """
name: slow
nodes:
  - {id: numbers, plugin: {kind: python, artifact: "slow.py:numbers"}}
  - {id: sink, plugin: {kind: python, artifact: "slow.py:Slow"}}
routes: [{from: numbers, to: sink, buffer: 8}]
"""


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Path]:
    """A real daemon at the socket that ``spawn`` names; it must end with 0."""
    notes = tmp_path / "notify.sock"
    arguments = ["--socket", str(tmp_path / "control.sock"), "--state-dir", str(tmp_path / "state")]
    environment = os.environ | {"NOTIFY_SOCKET": str(notes), "PYTHONPATH": str(ROOT)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, (tmp_path / "log").open("wb") as log:
        notify.bind(str(notes))
        command = [sys.executable, "-m", "chronetixd", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        alive = os.pidfd_open(process.pid)
        try:
            ready = b""
            while b"READY=1" not in ready and notify in select.select([notify, alive], [], [])[0]:
                ready = notify.recv(4096)
        finally:
            os.close(alive)
        yield tmp_path
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0, (tmp_path / "log").read_text()


def test_a_flow_lives_and_ends_by_the_command_line(live: Path, spawn: Any) -> None:
    (live / "slow.py").write_text(PLUGIN)
    (live / "slow.yaml").write_text(FLOW)

    def ctl(*arguments: str, code: int = 0) -> str:
        process = spawn(*arguments)
        out, err = process.communicate()
        assert process.returncode == code, err
        return str(out) if code == 0 else str(err)

    assert ctl("submit", "slow.yaml") == "slow running\n"
    assert "flow-exists" in ctl("submit", "slow.yaml", code=1)
    assert json.loads(ctl("validate", "slow.yaml", "--remote", "-o", "json"))["valid"]

    followed = spawn("logs", "slow", "-f")
    assert followed.stdout.readline().endswith("| counting\n")
    followed.send_signal(signal.SIGINT)
    assert followed.wait() == 130

    (flow,) = json.loads(ctl("top", "--once", "--interval", "100ms", "-o", "json"))["flows"]
    assert [route["to"] for route in flow["routes"] if route["bottleneck"]] == ["sink"]

    assert ctl("stop", "slow") == "slow stopped\n"
    described = json.loads(ctl("describe", "slow", "-o", "json"))
    sink = next(node for node in described["nodes"] if node["node"] == "sink")
    assert sink["result"]["seen"] == described["routes"][0]["stats"]["committed"] > 0
    assert "flow-running" in ctl("events", "slow")

    assert "is stopped, not running" in ctl("stop", "slow", code=3)
    assert "Nearest name: slow" in ctl("stop", "slwo", code=3)


def test_a_flow_whose_plugin_is_not_there_is_refused_at_its_line(live: Path, spawn: Any) -> None:
    (live / "slow.yaml").write_text(FLOW)

    process = spawn("submit", "slow.yaml")
    _, err = process.communicate()

    assert process.returncode == 1
    assert "slow.yaml:4:" in err
    assert "there is no file" in err
    assert spawn("ls", "-q").communicate()[0] == ""
