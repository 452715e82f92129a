"""Runs of a flow: each submission is one; they are listed, their lines are kept apart, and a flow can be forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client

FLOW = """
name: f
nodes:
  - { id: a, kind: source, impl_kind: python, entry: "python://p.py:numbers" }
  - { id: b, kind: sink, impl_kind: python, entry: "python://p.py:Sink" }
edges:
  - { from: a, to: b, channel: stream }
"""
PLUGIN = """
import time
def numbers(ctx):
    print({word!r})
    while {endless}:
        yield 1
        time.sleep(0.01)
    yield 1

class Sink:
    def on_frame(self, frame, ctx): ...
"""


class Runs:
    def __init__(self, folder: Path, daemon: Any) -> None:
        self.folder, self.daemon = folder, daemon
        (folder / "f.yaml").write_text(FLOW)

    def ctl(self, *arguments: str, code: int = 0) -> str:
        ran = self.daemon.ctl(*arguments)
        assert ran.returncode == code, ran.stdout + ran.stderr
        return str(ran.stdout + ran.stderr)

    def plugin(self, word: str, endless: bool = False) -> None:
        (self.folder / "p.py").write_text(PLUGIN.format(word=word, endless=endless))

    def submit(self, word: str, endless: bool = False) -> None:
        self.plugin(word, endless)
        self.ctl("submit", str(self.folder / "f.yaml"), "--wait", "running" if endless else "stopped")

    def lines(self, *options: str) -> list[str]:
        told = [json.loads(line) for line in self.ctl("logs", "f", "-o", "json", *options).splitlines()]
        return [each["line"] for each in told]

    def pids(self) -> dict[str, int]:
        nodes = json.loads(self.ctl("describe", "f", "-o", "json"))["nodes"]
        return {each["node"]: each["pid"] for each in nodes}


@pytest.fixture
def runs(tmp_path: Path, daemon: Any) -> Runs:
    return Runs(tmp_path, daemon)


def test_the_lines_of_each_run_are_shown_alone(runs: Runs) -> None:
    for word in ("first", "the second", "and the third"):
        runs.submit(word)
    assert runs.lines() == ["first", "the second", "and the third"]
    assert runs.lines("--previous") == ["the second"]
    assert [runs.lines("--run", str(number)) for number in (1, 2, 3)] == [["first"], ["the second"], ["and the third"]]
    assert "run-not-found" in runs.ctl("logs", "f", "--run", "4", code=1)
    runs.ctl("upgrade")
    assert runs.lines("--previous") == ["the second"]


def test_earlier_runs_are_listed_with_all_and_bounded(runs: Runs) -> None:
    for at in range(13):
        runs.submit("x" * at)
    assert len(runs.ctl("ls").splitlines()) == 2
    assert "RUN" not in runs.ctl("ls")
    told = runs.ctl("ls", "--all").splitlines()[1:]
    assert [line.split()[1] for line in told] == [str(number) for number in range(3, 14)]
    (flow,) = json.loads(runs.ctl("ls", "--all", "-o", "json"))["flows"]
    assert flow["run"] == 13
    assert [each["number"] for each in flow["runs"]] == list(range(3, 13))
    assert all(each["state"] == "stopped" for each in flow["runs"])


def test_the_next_daemon_knows_the_runs(tmp_path: Path, start: Any) -> None:
    runs = Runs(tmp_path, start())
    runs.submit("first")
    runs.submit("the second")
    runs.daemon.process.terminate()
    assert runs.daemon.process.wait() == 0
    runs.daemon = start()
    assert runs.lines("--run", "1") == ["first"]
    runs.submit("and the third")
    assert runs.lines("--previous") == ["the second"]


def test_a_flow_is_restarted_whole_also_one_that_has_ended(runs: Runs) -> None:
    runs.submit("first", endless=True)
    before = runs.pids()
    assert runs.ctl("restart", "f") == "f running, run 2\n"
    after = runs.pids()
    assert not set(before.values()) & set(after.values())
    runs.ctl("stop", "f")
    assert json.loads(runs.ctl("restart", "f", "--now", "-o", "json")) == {"flow": "f", "state": "running", "run": 3}
    runs.ctl("stop", "f", "--now")


@pytest.mark.parametrize("mode", ["drain", "now"])
def test_who_waits_for_a_restart_learns_when_the_flow_was_submitted_again(mode: str, runs: Runs) -> None:
    runs.submit("first", endless=True)
    items: list[Any] = []
    with Client.connect(runs.daemon.socket) as client:
        client.call("restart", on_item=items.append, flow="f", mode=mode)
    again = [at for at, item in enumerate(items) if "run" in item]
    assert [items[at]["run"] for at in again] == [2]
    assert items[again[0] - 1]["state"] == "stopped"
    runs.ctl("stop", "f", "--now")


def test_a_node_is_restarted_alone_and_loads_its_file_as_it_is_now(runs: Runs) -> None:
    runs.submit("first", endless=True)
    before = runs.pids()
    runs.plugin("the second", endless=True)
    assert "done" in runs.ctl("restart", "f", "--node", "a")
    after = runs.pids()
    assert {node for node in before if before[node] != after[node]} == {"a"}
    while runs.lines("--node", "a") != ["first", "the second"]:
        pass
    told = runs.ctl("diff", str(runs.folder / "f.yaml"))
    assert "~ node b" in told, "which has the code of before"
    assert "node-not-found" in runs.ctl("restart", "f", "--node", "c", code=1)
    runs.ctl("stop", "f")
    assert "flow-not-running" in runs.ctl("restart", "f", "--node", "a", code=3)


@pytest.mark.parametrize("wrong", [["--node", "a", "--now"], ["--ready-timeout", "3s"]])
def test_options_of_the_other_kind_of_restart_are_refused(wrong: list[str], runs: Runs) -> None:
    assert "--node" in runs.ctl("restart", "f", *wrong, code=2)


def test_a_flow_that_has_ended_is_forgotten_with_all_that_is_known_of_it(runs: Runs) -> None:
    runs.submit("first", endless=True)
    assert "flow-not-ended" in runs.ctl("rm", "f", code=1)
    runs.ctl("stop", "f")
    assert json.loads(runs.ctl("rm", "f", "-o", "json")) == {"flow": "f", "state": "stopped"}
    assert "flow-not-found" in runs.ctl("describe", "f", code=3)
    assert "flow-not-found" in runs.ctl("rm", "f", code=3)
    runs.submit("again")
    (flow,) = json.loads(runs.ctl("ls", "--all", "-o", "json"))["flows"]
    assert (flow["run"], flow["runs"]) == (1, [])
    assert runs.lines("--run", "1") == ["again"]


def test_all_that_have_ended_are_removed_and_no_other(runs: Runs) -> None:
    runs.submit("first", endless=True)
    file = str(runs.folder / "f.yaml")
    runs.ctl("submit", file, "--name", "g")
    runs.ctl("stop", "g")
    assert runs.ctl("rm", "--all") == "g removed\n"
    assert runs.ctl("ls", "-q") == "f\n"
    assert runs.ctl("rm", "--all") == ""
    runs.ctl("rm", code=2)
    runs.ctl("rm", "f", "--all", code=2)


def test_what_was_asked_for_is_audited(runs: Runs) -> None:
    runs.submit("first", endless=True)
    runs.ctl("restart", "f", "--node", "a", "--node", "b")
    runs.ctl("stop", "f")
    runs.ctl("rm", "f")
    records = [json.loads(line) for line in runs.ctl("audit", "-o", "json").splitlines()]
    told = [(each["verb"], each.get("about")) for each in records if each["outcome"] == "begun"]
    assert ("restart", {"flow": "f", "nodes": "a, b"}) in told
    assert ("remove", {"flow": "f"}) in told


@pytest.mark.parametrize(
    "command",
    ["logs", "logs --flow", "events", "top --once", "route ls", "describe", "restart", "stop", "rm", "rollout status"],
)
def test_an_empty_name_is_no_flows_and_not_that_of_all(command: str, runs: Runs) -> None:
    runs.submit("first")
    assert "flow-not-found" in runs.ctl(*command.split(), "", code=3)
