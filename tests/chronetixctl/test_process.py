"""chronetixctl as a process: pipes that break, Ctrl-C, colours, completion, and becoming the runner."""

from __future__ import annotations

import json
import os
import pty
import signal
from pathlib import Path
from typing import Any

import pytest

LINE = {"unix_ns": 10**18, "flow": "pair", "node": "a", "stream": "stdout", "level": "info", "line": "x" * 1000}


def test_a_reader_that_goes_away_ends_it_quietly(spawn: Any, daemon: Any, stays_open: object) -> None:
    daemon.answers["logs"] = [LINE] * 500 + [stays_open]

    process = spawn("logs", "-f")
    process.stdout.readline()
    process.stdout.close()

    assert process.wait() == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize("arguments", [["--help"], ["ls", "-h"], ["errors"], ["completion", "bash"]])
def test_what_needs_no_daemon_ends_quietly_too(spawn: Any, arguments: list[str]) -> None:
    process = spawn(*arguments)
    process.stdout.close()

    assert process.wait() == 0
    assert process.stderr.read() == ""


def test_a_short_answer_into_a_closed_pipe_is_quiet_too(spawn: Any, daemon: Any) -> None:
    daemon.answers["list"] = {"flows": []}

    process = spawn("ls", "-o", "json")
    process.stdout.close()

    assert process.wait() == 0
    assert process.stderr.read() == ""


def test_an_output_that_takes_no_more_is_named(spawn: Any, daemon: Any) -> None:
    daemon.answers["list"] = {"flows": []}
    with open("/dev/full", "w") as full:
        process = spawn("ls", "-o", "json", stdout=full)

    assert process.wait() == 1
    assert process.stderr.read() == "error: the output cannot be written: No space left on device\n"


def test_without_any_stdout_it_does_what_it_was_asked_for(spawn: Any, daemon: Any) -> None:
    daemon.answers["list"] = {"flows": []}

    process = spawn("ls", "-o", "json", stdout=None, preexec_fn=lambda: os.close(1))

    assert process.wait() == 0
    assert process.stderr.read() == ""


def test_a_file_without_end_is_no_flow(spawn: Any) -> None:
    with open("/dev/zero") as zeros:
        for process in (spawn("validate", "/dev/zero"), spawn("validate", "-", stdin=zeros)):
            assert process.wait() == 1
            assert "more than the 16 MiB of a message [flow-unreadable]" in process.stderr.read()


def test_ctrl_c_while_following_ends_with_130_and_takes_the_call_back(
    spawn: Any, daemon: Any, stays_open: object
) -> None:
    daemon.answers["logs"] = [LINE, stays_open]

    process = spawn("logs", "-f")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)

    assert process.wait() == 130
    assert process.stderr.read().strip() == ""
    assert daemon.cancelled == ["logs"]


def test_ctrl_c_while_waiting_ends_with_130(spawn: Any, daemon: Any, stays_open: object, flow_file: Path) -> None:
    asked = os.pipe()

    def submit(_: object) -> list[object]:
        os.write(asked[1], b"x")
        return [{"state": "starting"}, stays_open]

    daemon.answers["submit"] = submit
    try:
        process = spawn("submit", str(flow_file))
        os.read(asked[0], 1)
        process.send_signal(signal.SIGINT)

        assert process.wait() == 130
    finally:
        os.close(asked[0])
        os.close(asked[1])


def on_a_terminal(spawn: Any, *arguments: str, **env: str) -> str:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    try:
        process = spawn(*arguments, stdout=theirs, env={"TERM": "xterm", **env})
        process.wait()
        return os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_colours_are_for_terminals_and_no_color_takes_them_away(spawn: Any, daemon: Any) -> None:
    flow = {"name": "x", "state": "running", "nodes": 1, "routes": 0, "changed_unix_ns": 1}
    daemon.answers["list"] = {"flows": [flow]}
    os.environ.pop("NO_COLOR", None)

    assert "\x1b[32mrunning" in on_a_terminal(spawn, "ls", NO_COLOR="")
    assert "\x1b" not in on_a_terminal(spawn, "ls", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(spawn, "--no-color", "ls", NO_COLOR="")
    assert "\x1b" not in on_a_terminal(spawn, "ls", "--no-color", NO_COLOR="")
    assert "\x1b" not in spawn("ls", env={"NO_COLOR": ""}).communicate()[0]


def complete(spawn: Any, line: str) -> list[str]:
    words = line.split(" ")
    env = {"_CHRONETIXCTL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return [entry.partition(",")[2] for entry in spawn(env=env).communicate()[0].split()]


def test_commands_options_and_flow_names_complete(spawn: Any, daemon: Any) -> None:
    daemon.answers["list"] = {"flows": [{"name": "pair", "state": "running"}, {"name": "other", "state": "failed"}]}

    assert complete(spawn, "chronetixctl des") == ["describe"]
    assert "--tail" in complete(spawn, "chronetixctl logs --t")
    assert complete(spawn, "chronetixctl describe p") == ["pair"]


def test_completing_without_a_daemon_is_silent(spawn: Any) -> None:
    assert complete(spawn, "chronetixctl describe p") == []


def test_starting_up_imports_nothing_heavy(spawn: Any) -> None:
    process = spawn("--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    _, err = process.communicate()

    imported = {line.rpartition("|")[2].strip() for line in err.splitlines()}
    assert not imported & {"rich", "yaml", "asyncio", "numpy", "shm", "uvloop", "chronetixd.compile"}


SUM = """
def numbers(ctx):
    for n in range(ctx.params["count"]):
        yield {"n": n}

class Total:
    def __init__(self):
        self.total = 0
    def on_frame(self, frame, ctx):
        self.total += frame.value()["n"]
    def on_stop(self, ctx):
        return self.total
"""

SUM_FLOW = """
nodes:
  - {id: numbers, plugin: {kind: python, artifact: "sums.py:numbers"}, params: {count: 100}}
  - {id: total, plugin: {kind: python, artifact: "sums.py:Total"}}
routes: [{from: numbers, to: total, buffer: 4}]
"""


def test_run_becomes_the_runner_with_the_compiled_flow(spawn: Any, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "sums.py").write_text(SUM)
    (folder / "sums.yaml").write_text(SUM_FLOW)

    process = spawn("run", "--inproc", "-o", "json", str(folder / "sums.yaml"))
    out, err = process.communicate()

    assert process.returncode == 0, err
    assert json.loads(out)["nodes"]["total"] == 4950


def test_run_passes_the_runners_exit_code_on(spawn: Any, tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(SUM.replace('["n"]', '["m"]'))
    (tmp_path / "sums.yaml").write_text(SUM_FLOW)

    process = spawn("run", "--inproc", str(tmp_path / "sums.yaml"))
    _, err = process.communicate()

    assert process.returncode == 1
    assert "KeyError" in err


def test_run_without_inproc_points_to_submit(spawn: Any, flow_file: Path) -> None:
    process = spawn("run", str(flow_file))
    _, err = process.communicate()

    assert process.returncode == 2
    assert "chronetixctl submit" in err
