"""Ctrl-C while something is waited for: it goes on, and whoever waited is told so; and before anything has begun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import error
from chronetixctl.app import run
from chronetixctl.client import Client

ROOT = str(Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("command", "items", "words"),
    [
        (
            ("submit", "--wait", "stopped"),
            [{"flow": "f", "state": "running"}],
            ["the flow f goes on", "chronetixctl stop f"],
        ),
        (("submit", "--wait", "stopped"), [], ["chronetixctl ls"]),
        (("apply",), [{"flow": "f", "step": "preparing"}], ["the roll-out of f goes on", "rollout undo f"]),
        (("apply",), [], ["chronetixctl rollout status"]),
    ],
)
def test_who_stops_waiting_is_told_what_goes_on(
    command: tuple[str, ...],
    items: list[Any],
    words: list[str],
    daemon: Any,
    flow_file: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    def call(self: Client, verb: str, on_item: Any = None, **_: Any) -> Any:
        for item in items:
            on_item(item)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "call", call)
    assert run(["--socket", str(daemon.path), *command, str(flow_file)]) == 130
    said = capsys.readouterr()
    assert [word for word in words if word not in said.err] == []
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "items", "words"),
    [
        ((), [{"rehearsed": True}], ["the upgrade goes on", "chronetixctl version"]),
        ((), [], ["called off", "chronetixctl version"]),
        (("--dry-run",), [], ["nothing was touched"]),
    ],
)
def test_who_stops_waiting_for_an_upgrade_is_told_whether_it_goes_on(
    arguments: tuple[str, ...], items: list[Any], words: list[str], daemon: Any, monkeypatch: Any, capsys: Any
) -> None:
    def call(self: Client, verb: str, on_item: Any = None, **_: Any) -> Any:
        for item in items:
            on_item(item)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "call", call)
    assert run(["--socket", str(daemon.path), "upgrade", *arguments]) == 130
    said = capsys.readouterr()
    assert [word for word in words if word not in said.err] == []
    assert said.out == ""


@pytest.mark.parametrize(
    ("command", "items", "words"),
    [
        (("stop", "f"), [{"flow": "f", "state": "draining"}], ["f goes on ending", "stop f --now", "restart f"]),
        (("stop", "f"), [], ["before the daemon had answered", "describe f"]),
        (("stop", "f", "g", "h"), [{"flow": "f", "state": "draining"}], ["f goes on ending", "not told to stop: g, h"]),
        (("restart", "f"), [], ["before the daemon had answered", "describe f"]),
        (("restart", "f"), [{"flow": "f", "state": "running"}, {"flow": "f", "state": "draining"}],
         ["the flow f ends and is not started again", "chronetixctl ls", "restart f"]),
        (("restart", "f"), [{"flow": "f", "state": "stopped"}, {"flow": "f", "state": "submitted", "run": 2}],
         ["the flow f was submitted again and goes on", "chronetixctl stop f"]),
        (("restart", "f", "--node", "n"), [{"flow": "f", "step": "preparing"}], ["the roll-out of f goes on"]),
    ],
)  # fmt: skip
def test_who_stops_waiting_for_a_flow_to_end_is_told_whether_it_ends_and_starts(
    command: tuple[str, ...], items: list[Any], words: list[str], daemon: Any, monkeypatch: Any, capsys: Any
) -> None:
    def call(self: Client, verb: str, on_item: Any = None, **_: Any) -> Any:
        for item in items:
            on_item(item)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "call", call)
    assert run(["--socket", str(daemon.path), *command]) == 130
    said = capsys.readouterr()
    assert [word for word in words if word not in said.err] == []
    assert said.out == ""


def test_who_stops_waiting_for_the_daemon_to_come_back_is_told_that_the_upgrade_goes_on(
    daemon: Any, monkeypatch: Any, capsys: Any
) -> None:
    def call(self: Client, verb: str, **_: Any) -> Any:
        if verb == "upgrade":
            raise error("daemon-upgrading")
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "call", call)
    assert run(["--socket", str(daemon.path), "upgrade"]) == 130
    assert "the upgrade goes on" in capsys.readouterr().err


TRAP = """
import os, signal, sys

class Trap:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Trap())
"""

CTL = "from chronetixctl import main; main()"
DAEMON = "from chronetixd.main import main; main()"
RUNNER = "import runpy; runpy.run_module('chronetix.nodeworker.inprocess.command', run_name='__main__', alter_sys=True)"


def interrupted(program: str, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program as its script runs it, with Ctrl-C in the moment in which it imports ``module``."""
    code = TRAP.format(module=module) + program
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": ROOT})


@pytest.mark.parametrize(
    "module", ["chronetixctl.app", "click", "chronetix.protocol.errors", "chronetixctl.listing", "chronetixctl.client"]
)
@pytest.mark.parametrize("program", [CTL, "import runpy; runpy.run_module('chronetixctl', run_name='__main__')"])
def test_a_command_that_is_still_being_imported_ends_with_130_and_no_traceback(
    program: str, module: str, tmp_path: Path
) -> None:
    done = interrupted(program, module, "--socket", str(tmp_path / "none"), "ls")
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")


@pytest.mark.parametrize("module", ["chronetixd.upgrade.exec_handoff", "click", "chronetixd.daemon.daemon", "uvloop"])
@pytest.mark.parametrize("program", [DAEMON, "import runpy; runpy.run_module('chronetixd', run_name='__main__')"])
def test_a_daemon_that_is_still_being_imported_ends_with_130_and_has_begun_nothing(
    program: str, module: str, tmp_path: Path
) -> None:
    done = interrupted(program, module, "--state-dir", str(tmp_path / "state"), "--socket", str(tmp_path / "socket"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["chronetix.nodeworker.inprocess.runner", "msgspec", "chronetix.shm"])
def test_a_runner_that_is_still_being_imported_ends_with_130_and_no_traceback(module: str, tmp_path: Path) -> None:
    done = interrupted(RUNNER, module, str(tmp_path / "none.json"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


BECOMES = """
import os, signal

become = os.execv

def execv(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    become(*arguments)

os.execv = execv
"""


def test_ctrl_c_while_a_command_becomes_the_runner_waits_until_that_knows_what_to_do_with_it(
    flow_file: Path,
) -> None:
    done = interrupted(BECOMES + CTL, "nothing", "run", "--inproc", str(flow_file))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
