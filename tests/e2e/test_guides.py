"""What the guides in docs/ say of debuggers, environments, backups and tests is so: their programs are run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import chronetix.testing
from tests.e2e.conftest import ROOT, Daemon, start_daemon
from tests.warm import Warm

NPY = "application/x-npy"
DEBUGGER = str(ROOT / "examples" / "debugger" / "flow.yaml")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


def described(daemon: Daemon, flow: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(daemon.ctl("describe", flow, "-o", "json").stdout)
    return told


def pid_of(daemon: Daemon, flow: str, node: str) -> int:
    return next(int(each["pid"]) for each in described(daemon, flow)["nodes"] if each["node"] == node)


def log_line(daemon: Daemon, flow: str, wanted: str) -> str:
    """The first line of the flow's log, present or to come, with these words."""
    command = [sys.executable, "-m", "chronetixctl", "logs", flow, "-f"]
    with subprocess.Popen(command, env=daemon.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        line = next(line for line in following.stdout if wanted in line)
        following.terminate()
        following.stdout.read()
    return line


class Debugger:
    """Speaks the Debug Adapter Protocol, as an editor does."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.stream = self.socket.makefile("rb")
        self.sent = 0

    def send(self, command: str, **arguments: Any) -> None:
        self.sent += 1
        message = {"seq": self.sent, "type": "request", "command": command, "arguments": arguments}
        text = json.dumps(message).encode()
        self.socket.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(text), text))

    def until(self, **wanted: Any) -> dict[str, Any]:
        """The next message with these entries."""
        while True:
            length = int(self.stream.readline().partition(b":")[2])
            self.stream.readline()
            message: dict[str, Any] = json.loads(self.stream.read(length))
            if all(message.get(name) == value for name, value in wanted.items()):
                return message

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


@pytest.fixture
def attach() -> Iterator[Callable[[int], Debugger]]:
    attached: list[Debugger] = []

    def make(port: int) -> Debugger:
        attached.append(Debugger(port))
        return attached[-1]

    yield make
    for each in attached:
        each.close()


def test_a_debugger_attaches_to_a_worker_stops_in_the_plugin_and_lets_go(
    daemon: Daemon, attach: Callable[[int], Debugger]
) -> None:
    assert daemon.ctl("submit", DEBUGGER).returncode == 0
    port = int(log_line(daemon, "clock", "a debugger may attach").split("port=")[1])
    editor = attach(port)
    editor.send("initialize", adapterID="test")
    editor.send("attach", justMyCode=False)
    editor.until(event="initialized")
    editor.send("configurationDone")
    stopped = editor.until(event="stopped")
    editor.send("stackTrace", threadId=stopped["body"]["threadId"])
    top = editor.until(command="stackTrace")["body"]["stackFrames"][0]
    assert top["name"].endswith("on_frame")
    assert Path(top["source"]["path"]).name == "clock.py"
    editor.send("disconnect", terminateDebuggee=False)
    editor.until(command="disconnect")
    assert daemon.ctl("stop", "clock").stdout == "clock stopped\n"


def may_trace() -> bool:
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return os.geteuid() == 0 or not scope.exists() or scope.read_text().strip() == "0"


@pytest.mark.skipif(not may_trace(), reason="this user may not trace a process that is not its child (ptrace_scope)")
def test_py_spy_shows_where_a_worker_is(daemon: Daemon) -> None:
    assert daemon.ctl("submit", DEBUGGER).returncode == 0
    command = [Path(sys.executable).with_name("py-spy"), "dump", "--pid", str(pid_of(daemon, "clock", "counter"))]
    dumped = subprocess.run(command, capture_output=True, text=True)
    assert "chronetix/nodeworker/process/worker.py" in dumped.stdout, dumped.stderr


def test_a_worker_prints_its_stack_when_it_is_asked_to(daemon: Daemon, tmp_path: Path) -> None:
    (registered,) = (block for block in blocks("debugging.md", "python") if "faulthandler" in block)
    (tmp_path / "sink.py").write_text(f"{registered}\n\ndef take(frame, ctx):\n    pass\n")
    (tmp_path / "flow.yaml").write_text("""
        name: asked
        nodes:
          - { id: clock, kind: timer, bindings: { timer: { id: tick, schedule: { interval_ms: 1000 } } } }
          - { id: sink, kind: sink, impl_kind: python, entry: "python://sink.py:take" }
        edges: [{ from: clock, to: sink }]
    """)
    assert daemon.ctl("submit", str(tmp_path / "flow.yaml")).returncode == 0
    os.kill(pid_of(daemon, "asked", "sink"), signal.SIGUSR1)
    assert "worker.py" in log_line(daemon, "asked", "worker.py")


def program() -> tuple[str, str]:
    """The program of its own that environments.md shows, and the node that runs it."""
    (text,) = (block for block in blocks("environments.md", "python") if "chronetix.serve" in block)
    (node,) = (block for block in blocks("environments.md", "yaml") if "double.py" in block)
    return text, node


def test_a_program_of_its_own_runs_with_the_python_that_its_path_names(daemon: Daemon, tmp_path: Path) -> None:
    text, node = program()
    chosen = tmp_path / "vision" / "bin"
    chosen.mkdir(parents=True)
    (chosen / "python3").write_text(f'#!/bin/sh\necho "chosen" >&2\nexec {sys.executable} "$@"\n')
    (chosen / "python3").chmod(0o755)
    (tmp_path / "double.py").write_text(text)
    (tmp_path / "double.py").chmod(0o755)
    (tmp_path / "ends.py").write_text(
        "def numbers(ctx):\n    yield from ({'n': n} for n in range(3))\n\n"
        "class Total:\n    total = 0\n    def on_frame(self, frame, ctx):\n        self.total += frame.value()['n']\n"
        "    def on_stop(self, ctx):\n        return self.total\n"
    )
    others = """
  - { id: numbers, kind: source, impl_kind: python, entry: "python://ends.py:numbers" }
  - { id: total, kind: sink, impl_kind: python, entry: "python://ends.py:Total" }
edges: [{ from: numbers, to: double }, { from: double, to: total }]
"""
    flow = f"name: own\n{node.rstrip()}{others}".replace("/opt/vision", str(tmp_path / "vision"))
    (tmp_path / "flow.yaml").write_text(flow)
    ended = daemon.ctl("submit", str(tmp_path / "flow.yaml"), "--wait", "stopped")
    assert ended.returncode == 0, ended.stderr + daemon.ctl("logs", "own").stdout
    results = {each["node"]: each.get("result") for each in described(daemon, "own")["nodes"]}
    assert results["total"] == 6
    assert "chosen" in daemon.ctl("logs", "own", "--node", "double").stdout


def test_two_nodes_bring_two_versions_of_a_package(daemon: Daemon, tmp_path: Path) -> None:
    (snippet,) = (block for block in blocks("environments.md", "python") if "vendor" in block)
    nodes = []
    for name in ("old", "new"):
        (tmp_path / name / "vendor").mkdir(parents=True)
        (tmp_path / name / "vendor" / "library.py").write_text(f"VERSION = {name!r}\n")
        (tmp_path / name / "plugin.py").write_text(
            f"{snippet}\n\nclass Tell:\n    def produce(self, ctx):\n        yield None\n"
            "    def on_stop(self, ctx):\n        return library.VERSION\n"
        )
        nodes.append(f'{{ id: {name}, kind: source, impl_kind: python, entry: "python://{name}/plugin.py:Tell" }}')
    (tmp_path / "flow.yaml").write_text(f"name: versions\nnodes: [{', '.join(nodes)}]\nedges: []\n")
    ended = daemon.ctl("submit", str(tmp_path / "flow.yaml"), "--wait", "stopped")
    assert ended.returncode == 0, ended.stderr
    results = {each["node"]: each["result"] for each in described(daemon, "versions")["nodes"]}
    assert results == {"old": "old", "new": "new"}


@pytest.fixture
def another(warm: Warm | None) -> Iterator[Callable[[Path], Daemon]]:
    """Starts a further daemon in a folder."""
    started: list[Daemon] = []

    def start(folder: Path) -> Daemon:
        started.append(start_daemon(folder, {}, warm))
        return started[-1]

    yield start
    for each in started:
        each.process.send_signal(signal.SIGTERM)
        assert each.process.wait() == 0, each.log.read_text()


def test_a_daemon_on_a_copy_of_the_state_has_the_flows(
    daemon: Daemon, tmp_path: Path, another: Callable[[Path], Daemon]
) -> None:
    squares = str(ROOT / "examples" / "squares" / "flow.yaml")
    assert daemon.ctl("submit", squares, "--wait", "stopped").returncode == 0
    assert daemon.ctl("submit", DEBUGGER).returncode == 0
    shutil.copytree(daemon.state, tmp_path / "copy" / "state")
    restored = another(tmp_path / "copy")
    states = {each["name"]: each["state"] for each in json.loads(restored.ctl("ls", "-o", "json").stdout)["flows"]}
    assert states == {"squares": "stopped", "clock": "running"}


class Clock:
    def on_tick(self, tick: Any, ctx: Any) -> int:
        return int(tick.sequence)


class Store:
    value = None

    def on_message(self, message: Any, ctx: Any) -> None:
        if message.wants_reply:
            message.reply(self.value)
        else:
            self.value = message.value()


def client(frame: Any, ctx: Any) -> Any:
    return ctx.request("price", frame.value()).value()


def test_every_call_that_the_guide_to_testing_shows_works() -> None:
    import numpy as np

    from examples.lookups.lookups import Lookup
    from examples.pictures.pictures import edges

    table = re.search(r"^\| to test \|.*?\n\n", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL | re.MULTILINE)
    assert table is not None
    names = {
        "run": chronetix.testing.run,
        "array": np.zeros((4, 4), "u1"),
        "edges": edges,
        "Clock": Clock,
        "Store": Store,
        "Client": client,
        "Lookup": Lookup,
        "words": ["ring"],
    }
    calls = re.findall(r"`(run\([^`]+\))`", table[0])
    assert len(calls) == 6
    outcomes = [eval(call, dict(names)) for call in calls]
    assert outcomes[2].sent == [1, 2, 3]
    assert outcomes[3].replies == [1]
    assert outcomes[4].sent == [7]


def test_a_received_array_is_a_view_that_cannot_be_written() -> None:
    import numpy as np

    def look(frame: Any, ctx: Any) -> Any:
        array = frame.numpy()
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
        mine = array.copy()
        mine[0, 0] = 1
        return [array.base is not None, np.shares_memory(array, array[::2].T), np.shares_memory(array, mine)]

    given = [np.zeros((4, 6), "u1")]
    ran = chronetix.testing.run(look, given, input_type=NPY)
    assert ran.sent == [[True, True, False]]


def test_what_converts_itself_to_an_array_can_be_sent() -> None:
    import numpy as np

    class Image:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.full((2, 3), 7, "u1")

    ran = chronetix.testing.run(lambda frame, ctx: Image(), [1], input_type="application/json", content_type=NPY)
    assert [(array.shape, int(array.sum())) for array in ran.sent] == [((2, 3), 42)]


def test_an_array_is_made_in_shared_memory() -> None:
    import numpy as np

    (snippet,) = (block for block in blocks("arrays.md", "python") if block.startswith("with ctx.loan"))
    background = np.arange(480 * 640, dtype="u1").reshape(480, 640)

    def make(ctx: Any) -> Iterator[None]:
        exec(snippet, {"ctx": ctx, "np": np, "background": background})
        yield None

    (sent,) = chronetix.testing.run(make, content_type="application/octet-stream").sent
    assert np.array_equal(np.frombuffer(sent, "u1").reshape(480, 640), background)


def test_a_received_table_becomes_a_data_frame_and_a_data_frame_is_sent() -> None:
    import pandas as pd
    import pyarrow as pa

    def double(frame: Any, ctx: Any) -> Any:
        assert frame.arrow()["value"].to_numpy().tolist() == [1, 2]
        return pa.Table.from_pandas(frame.arrow().to_pandas() * 2)

    given = [pa.Table.from_pandas(pd.DataFrame({"value": [1, 2]}))]
    (sent,) = chronetix.testing.run(double, given, content_type="application/arrow-ipc").sent
    assert sent["value"].to_pylist() == [2, 4]
