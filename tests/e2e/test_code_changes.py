"""An edited plugin file counts: diff and apply notice it and name it, undo never brings another code than it says."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client

Map = dict[str, Any]

FLOW = """
name: edited
nodes:
  - { id: ticks, kind: source, impl_kind: python, entry: "python://ticks.py:ticks" }
  - { id: double, kind: map, impl_kind: python, entry: "python://double.py:double" }
  - { id: sink, kind: sink, impl_kind: python, entry: "python://sink.py:sink" }
edges:
  - { from: ticks, to: double, channel: stream }
  - { from: double, to: sink, channel: stream }
"""
TICKS = """
import time
def ticks(ctx):
    while True:
        yield {"n": 1}
        time.sleep(0.01)
"""
DOUBLE = "from factor import FACTOR\ndef double(frame, ctx):\n    return frame.value()['n'] * FACTOR\n"
SINK = "def sink(frame, ctx):\n    open('{place}', 'w').write(str(frame.value()))\n"


# Each edit changes the size of the file: Python takes a cached module for current if its size and second are the same.


class Edited:
    """The flow, its folder, and the two ways to talk about it."""

    def __init__(self, folder: Path, daemon: Any) -> None:
        self.folder, self.daemon = folder, daemon
        self.out = folder / "out"
        self.flow = folder / "flow.yaml"
        self.factor = folder / "factor.py"
        folder.mkdir()
        self.flow.write_text(FLOW)
        (folder / "ticks.py").write_text(TICKS)
        (folder / "double.py").write_text(DOUBLE)
        (folder / "sink.py").write_text(SINK.format(place=self.out))
        self.factor.write_text("FACTOR = 2\n")

    def ctl(self, *arguments: str, code: int = 0) -> str:
        ran = self.daemon.ctl(*arguments)
        assert ran.returncode == code, ran.stdout + ran.stderr
        return str(ran.stdout + ran.stderr)

    def told(self, *arguments: str) -> Any:
        return json.loads(self.ctl(*arguments, "-o", "json"))

    def pids(self) -> dict[str, int]:
        return {node["node"]: node["pid"] for node in self.told("describe", "edited")["nodes"]}

    def shows(self, value: str) -> bool:
        """Wait until the sink gets this value."""
        while not self.out.exists() or self.out.read_text() != value:
            assert self.told("describe", "edited")["state"] == "running"
        return True


@pytest.fixture
def edited(tmp_path: Path, daemon: Any) -> Edited:
    made = Edited(tmp_path / "flow", daemon)
    made.ctl("submit", str(made.flow))
    return made


def test_diff_names_an_edited_module_and_apply_replaces_only_the_node_that_imports_it(edited: Edited) -> None:
    assert edited.shows("2")
    assert "nothing that runs differs" in edited.ctl("diff", str(edited.flow))
    before = edited.pids()
    edited.factor.write_text("FACTOR = 33\n")
    told = edited.ctl("diff", str(edited.flow))
    assert "~ node double" in told
    assert f"file {edited.factor}: " in told
    assert "node ticks" not in told
    assert "roll-out 2 done" in edited.ctl("apply", str(edited.flow))
    assert edited.shows("33")
    after = edited.pids()
    assert {node for node in before if before[node] != after[node]} == {"double"}
    assert "nothing that runs differs" in edited.ctl("diff", str(edited.flow))
    assert "changed node double" in edited.ctl("rollout", "history", "edited")


def test_an_edited_file_of_the_plugin_itself_is_named_in_json_too(edited: Edited) -> None:
    path = edited.folder / "double.py"
    path.write_text(DOUBLE + "\n# another line\n")
    (node,) = edited.told("diff", str(edited.flow))["nodes"]
    assert [field["path"] for field in node["fields"]] == [f"file {path}"]


def test_undo_refuses_to_bring_other_code_back_and_names_the_file_and_does_it_once_it_is_back(edited: Edited) -> None:
    edited.factor.write_text("FACTOR = 33\n")
    edited.ctl("apply", str(edited.flow))
    pids = edited.pids()
    told = edited.ctl("rollout", "undo", "edited", code=1)
    assert "code-changed" in told
    assert str(edited.factor) in told
    assert "--present-code" in told
    assert edited.pids() == pids, "nothing was touched"
    edited.factor.write_text("FACTOR = 2\n")
    assert "roll-out 3 done" in edited.ctl("rollout", "undo", "edited")
    assert edited.shows("2")
    assert edited.pids()["double"] != pids["double"]


def test_undo_leaves_a_node_alone_whose_file_is_being_edited_and_which_it_does_not_touch(edited: Edited) -> None:
    flow = FLOW.replace('ticks.py:ticks"', 'ticks.py:ticks", params: { a: 1 }')
    edited.flow.write_text(flow)
    edited.ctl("apply", str(edited.flow))
    pids = edited.pids()
    edited.factor.write_text("FACTOR = 33\n")
    told = edited.ctl("rollout", "undo", "edited")
    assert "node ticks" in told
    assert "node double" not in told
    after = edited.pids()
    assert {node for node in pids if pids[node] != after[node]} == {"ticks"}
    assert edited.shows("2")
    assert "node double" in edited.ctl("diff", str(edited.flow)), "which is still to be applied"


def test_undo_goes_back_with_the_present_code_when_it_is_asked_to(edited: Edited) -> None:
    edited.flow.write_text(FLOW.replace('double.py:double"', 'double.py:double", params: { a: 1 }'))
    edited.factor.write_text("FACTOR = 33\n")
    edited.ctl("apply", str(edited.flow))
    edited.factor.write_text("FACTOR = 444\n")
    edited.ctl("rollout", "undo", "edited", code=1)
    told = edited.ctl("rollout", "undo", "edited", "--present-code")
    assert "done" in told
    assert edited.shows("444")


def test_an_upgrade_knows_the_code_that_runs(edited: Edited, client: Any) -> None:
    edited.factor.write_text("FACTOR = 33\n")
    edited.ctl("apply", str(edited.flow))
    edited.ctl("upgrade")
    assert "nothing that runs differs" in edited.ctl("diff", str(edited.flow))
    assert "code-changed" in edited.ctl("rollout", "undo", "edited", code=1)


@pytest.mark.parametrize("loss", ["survive", "stop"])
def test_the_next_daemon_knows_the_code_that_runs(loss: str, tmp_path: Path, start: Callable[[], Any]) -> None:
    first = start()
    edited = Edited(tmp_path / "flow", first)
    if loss == "survive":
        edited.flow.write_text(FLOW.replace("nodes:", "on_daemon_loss: survive\nnodes:"))
    edited.ctl("submit", str(edited.flow))
    edited.factor.write_text("FACTOR = 33\n")
    edited.ctl("apply", str(edited.flow))
    assert edited.shows("33")
    edited.factor.write_text("FACTOR = 444\n")
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    edited.daemon = start()
    with Client.connect(edited.daemon.socket) as client:
        while (now := client.call("list")["flows"][0])["state"] != "running" or now["returning"]:
            pass
    told = edited.ctl("diff", str(edited.flow))
    if loss == "survive":
        assert f"file {edited.factor}" in told, "the worker has the code of before"
    else:
        assert "nothing that runs differs" in told, "it began anew, with the files as they are"
        assert edited.shows("444")
    with Client.connect(edited.daemon.socket) as client, pytest.raises(ChronetixError, match=str(edited.factor)):
        client.call("undo", flow="edited", to=1)
