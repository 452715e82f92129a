"""Plugin code is ordinary Python: its own classes pickle, its imports mean what lies beside it, its errors show its
lines."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from chronetix import testing
from chronetix.nodeworker.engine.load import load
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.messages import Log

ROOT = Path(__file__).parents[2]

POOLS = """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from dataclasses import dataclass

    @dataclass
    class Row:
        n: int

    def double(row): return Row(2 * row.n)

    class Pools:
        def on_message(self, message): ...
        def on_start(self, ctx): ctx.finish()
        def on_stop(self, ctx):
            results = []
            for how in ("fork", "spawn", "forkserver"):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(how)) as pool:
                    results.append(pool.submit(double, Row(21)).result() == Row(42))
            return results
"""
FLOW = """
name: pairs
nodes:
  - { id: numbers, kind: source, impl_kind: python, entry: "python://plug.py:numbers" }
  - { id: left, kind: map, impl_kind: python, entry: "python://left/plug.py:Names" }
  - { id: right, kind: map, impl_kind: python, entry: "python://right/plug.py:Names" }
  - { id: sink, kind: sink, impl_kind: python, entry: "python://plug.py:Sink" }
edges:
  - { from: numbers, to: left, content_type: application/json }
  - { from: numbers, to: right, content_type: application/json }
  - { from: left, to: sink, content_type: application/json }
  - { from: right, to: sink, content_type: application/json }
"""
NAMES = """
import helper
from helper import NAME
from .other import OTHER
class Names:
    def on_frame(self, frame, ctx):
        import later
        return [helper.NAME, NAME, OTHER, later.NAME]
"""
SINK = """
def numbers(ctx):
    yield 1
class Sink:
    def __init__(self): self.seen = []
    def on_frame(self, frame, ctx): self.seen.append(frame.value())
    def on_stop(self, ctx): return sorted(self.seen)
"""


def test_own_classes_go_to_child_processes_however_they_were_started(daemon, configure, plugin) -> None:
    assert daemon.run(configure("a", plugin(POOLS) + ":Pools")) == {"a": [True, True, True]}


POOLED = """
name: pools
nodes:
  - {{ id: one, kind: source, impl_kind: python, entry: "python://{file}:Pools" }}
  - {{ id: two, kind: source, impl_kind: python, entry: "python://{file}:Pools" }}
  - {{ id: sink, kind: sink, impl_kind: python, entry: "python://sink.py:sink" }}
edges:
  - {{ from: one, to: sink, content_type: application/json }}
  - {{ from: two, to: sink, content_type: application/json }}
"""
PRODUCES = POOLS.replace("def on_start(self, ctx): ctx.finish()", "def produce(self, ctx): yield 1").replace(
    "def on_message(self, message): ...", ""
)


@pytest.mark.parametrize("file", ["plug.py", "some_package/plug.py"])
def test_so_do_those_of_two_nodes_that_use_one_file_in_one_process(file: str, tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(POOLED.format(file=file))
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(PRODUCES))
    if path.parent != tmp_path:
        (path.parent / "__init__.py").touch()
    (tmp_path / "sink.py").write_text("def sink(frame, ctx): ...\n")
    command = [sys.executable, "-m", "chronetixctl", "run", "--inproc", str(tmp_path / "flow.yaml"), "-o", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    nodes = json.loads(done.stdout)["nodes"]
    assert (nodes["one"], nodes["two"]) == ([True] * 3, [True] * 3)


def test_nodes_of_one_process_that_use_one_file_share_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text("from .beside import seen\nclass Row: ...\n")
    (tmp_path / "beside.py").write_text("seen = []\n")
    rows = [load(f"python://{tmp_path}/plug.py:Row") for _ in range(3)]
    lists = [load(f"python://{tmp_path}/plug.py:seen") for _ in range(2)]
    assert len(set(rows)) == 3
    assert lists[0] is not lists[1]
    assert [type(pickle.loads(pickle.dumps(row()))) for row in rows] == rows


def test_helpers_of_the_same_name_are_each_nodes_own_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "plug.py").write_text(SINK)
    for side in ("left", "right"):
        folder = tmp_path / side
        folder.mkdir()
        (folder / "plug.py").write_text(NAMES)
        for name in ("helper", "later"):
            (folder / f"{name}.py").write_text(f"NAME = '{side}'\n")
        (folder / "other.py").write_text(f"OTHER = '{side}'\n")
    command = [sys.executable, "-m", "chronetixctl", "run", "--inproc", str(tmp_path / "flow.yaml"), "-o", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nodes"]["sink"] == [["left"] * 4, ["right"] * 4]


LOADS = """
import sys
from chronetix.nodeworker.engine.load import load
found = load(sys.argv[1])
print(found.__module__, found())
"""


def test_a_file_of_a_package_is_that_packages_module(tmp_path: Path) -> None:
    inner = tmp_path / "outer_package" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("VALUE = 7\n")
    (inner / "__init__.py").touch()
    (inner / "plug.py").write_text("from .. import VALUE\nfrom outer_package import VALUE as same\n"
                                   "def plugin(): return VALUE + same\n")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LOADS, f"python://{inner}/plug.py:plugin"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "outer_package.inner.plug 14\n", done.stderr


@pytest.mark.parametrize("name", ["my-flow", "two words", "ünï", "under_score", "_2f"])
def test_any_folder_has_a_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "plug.py").write_text("class Row: ...\n")
    row = load(f"python://{folder}/plug.py:Row")
    assert type(pickle.loads(pickle.dumps(row()))) is row


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module\n", "No module named 'no_such_module' ({file}, line 1: import no_such_module)"),
        ("x = 1\nraise ValueError('no')\n", "ValueError: no ({file}, line 2: raise ValueError('no'))"),
        ("def f(:\n", "syntax error in {file}, line 1"),
        ("from .nothing import x\n", "({file}, line 1: from .nothing import x)"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(source: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "plug.py"
    file.write_text(source)
    with pytest.raises(ChronetixError) as raised:
        load(f"python://{file}:x")
    assert words.format(file=file) in str(raised.value)
    sys.modules.pop("plug", None)


def test_parameters_are_a_dict_that_nobody_changes() -> None:
    def look(ctx: Any) -> Any:
        assert json.loads(json.dumps(ctx.params)) == {"a": {"b": [1]}}
        assert pickle.loads(pickle.dumps(ctx.params)) == ctx.params
        for own in (copy.copy(ctx.params), copy.deepcopy(ctx.params), ctx.params.copy(), dict(ctx.params)):
            assert type(own) is dict
            own["c"] = 1
        copy.deepcopy(ctx.params)["a"]["b"].append(2)
        for change in (
            lambda: ctx.params.update(c=1),
            lambda: ctx.params.__setitem__("c", 1),
            lambda: ctx.params.pop("a"),
            lambda: ctx.params.setdefault("c", 1),
        ):
            with pytest.raises(TypeError, match="change a copy"):
                change()
        yield {**ctx.params}

    assert testing.run(look, params={"a": {"b": [1]}}).sent == [{"a": {"b": [1]}}]


class Misspelt:
    def on_frame(self, frame: Any) -> None:
        """Called."""

    def on_stpo(self, ctx: Any) -> None:
        """Never called."""

    def on_tuesdays(self) -> None:
        """Its own."""


def test_a_misspelt_callback_is_noticed() -> None:
    logs = testing.run(Misspelt, inputs=[1]).logs
    assert [(log.level, log.message) for log in logs] == [
        ("warning", "on_stpo of Misspelt is never called: did you mean on_stop?")
    ]


def test_a_traceback_shows_the_plugins_frames_and_counts_ours(daemon, configure, plugin, monkeypatch) -> None:
    source = plugin("""
        def helper(): raise ValueError("here")
        def source(ctx):
            try: helper()
            except ValueError as reason: raise RuntimeError("there") from reason
            yield
    """)
    worker = daemon.start(configure("a", source + ":source"))
    daemon.wire()
    daemon.begin()
    shown = daemon.fault(worker).traceback
    assert "in helper" in shown
    assert "in source" in shown
    assert "nodeworker/" not in shown
    assert "frames of chronetix are not shown: CHRONETIX_TRACEBACK=full" in shown
    assert not worker.said(Log)
