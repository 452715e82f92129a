"""The rivals of ``bench.flow``: the same plugins, each in a process of its own, between which a rival carries frames.

Rules:

* ``python -m bench.flow_peers PEER ROLE FOLDER PARAMS`` is one process: it carries frames until the stream ends, and
  writes what it has counted to ``FOLDER/ROLE.json``. dora starts these processes itself.
* Every rival is set up as fast as its documentation allows while nothing is lost on purpose: up to ``window(size)``
  frames on their way, and no copy in the language's binding for frames of 64 KiB and more.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench import flow_nodes
from bench.cells import window

ROLES = ("source", "map", "sink")
LARGE = 1 << 16
ROOT = Path(__file__).parents[1]


class End(Protocol):
    """A process's end: ``receive`` returns None at the end of the stream, which ``close`` announces."""

    def receive(self) -> Any: ...
    def send(self, frame: Any) -> None: ...
    def close(self) -> None: ...


def play(role: str, end: End, folder: Path, params: Mapping[str, Any]) -> None:
    """Run the role's plugin to its end, and leave what it counted in ``folder``."""
    ctx = flow_nodes.Context(params)
    function: Callable[[Any, Any], Any] = getattr(flow_nodes, params["function"])
    count = flow_nodes.Count()
    sent = 0
    if role == "source":
        for block in flow_nodes.blocks(ctx):
            end.send(block)
            sent += 1
    else:
        while (frame := end.receive()) is not None:
            if role == "sink":
                count.on_frame(frame, ctx)
            else:
                end.send(function(frame, ctx))
    write(folder, role, {"frames": sent} if role == "source" else count.on_stop(ctx))
    end.close()


# -- pyzmq -----------------------------------------------------------------------------------------------------


class ZmqEnd:
    """PUSH and PULL over ipc://, with a high-water mark on both ends. An empty message ends the stream.

    A sender stays until the sink has counted: what a PULL has not read when its peer closes may be lost.
    """

    def __init__(self, role: str, folder: Path, size: int) -> None:
        import zmq

        self._context = zmq.Context()
        self._sockets: list[Any] = []
        self._folder = folder
        self._copy = size < LARGE
        place = ROLES.index(role)
        if place > 0:
            self._pull = self._socket(zmq.PULL, size)
            self._pull.bind(f"ipc://{folder}/{place}")
        if place < 2:
            self._push = self._socket(zmq.PUSH, size)
            self._push.connect(f"ipc://{folder}/{place + 1}")

    def _socket(self, kind: Any, size: int) -> Any:
        made = self._context.socket(kind)
        made.set_hwm(window(size))
        self._sockets.append(made)
        return made

    def receive(self) -> Any:
        frame = self._pull.recv(copy=self._copy)
        return frame if len(frame) else None

    def send(self, frame: Any) -> None:
        self._push.send(frame, copy=self._copy)

    def close(self) -> None:
        if hasattr(self, "_push"):
            self._push.send(b"")
            while not (self._folder / "sink.json").exists():
                time.sleep(0.01)
        for each in self._sockets:
            each.close(-1)
        self._context.term()


# -- multiprocessing -------------------------------------------------------------------------------------------


class QueueEnd:
    """A ``multiprocessing.Queue`` on each side. None ends the stream."""

    def __init__(self, queues: Sequence[Any], role: str) -> None:
        place = ROLES.index(role)
        self._here = queues[place - 1] if place else None
        self._there = queues[place] if place < 2 else None

    def receive(self) -> Any:
        assert self._here is not None
        return self._here.get()

    def send(self, frame: Any) -> None:
        assert self._there is not None
        self._there.put(frame)

    def close(self) -> None:
        if self._there is not None:
            self._there.put(None)
            self._there.close()
            self._there.join_thread()


def queues(folder: Path, params: Mapping[str, Any]) -> None:
    """Run the three roles in processes that inherit their queues."""
    context = multiprocessing.get_context("fork")
    both = [context.Queue(window(params["size"])) for _ in range(2)]
    processes = [context.Process(target=queue_role, args=(both, role, folder, params)) for role in ROLES]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def queue_role(both: Sequence[Any], role: str, folder: Path, params: Mapping[str, Any]) -> None:
    """One of them."""
    play(role, QueueEnd(both, role), folder, params)


# -- dora ------------------------------------------------------------------------------------------------------


class DoraEnd:
    """A node of a dataflow under ``dora run``. The end of the stream is the end of its input."""

    def __init__(self) -> None:
        import pyarrow as pa
        from dora import Node

        self._node = Node()
        self._pa = pa

    def receive(self) -> Any:
        while True:
            event = self._node.next()
            if event is None or event["type"] in ("STOP", "INPUT_CLOSED"):
                return None
            if event["type"] == "INPUT":
                return event["value"].buffers()[1]

    def send(self, frame: Any) -> None:
        data = self._pa.py_buffer(frame)
        self._node.send_output("out", self._pa.UInt8Array.from_buffers(self._pa.uint8(), data.size, [None, data]))

    def close(self) -> None:
        pass


def dora(folder: Path, params: Mapping[str, Any]) -> None:
    """Run the dataflow to its end."""
    program = shutil.which("dora", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if program is None:
        raise FileNotFoundError("the program dora is not installed (PyPI: dora-rs-cli)")

    def node(role: str) -> dict[str, Any]:
        place = ROLES.index(role)
        inputs = {"source": f"{ROLES[place - 1]}/out", "queue_size": max(2, window(params["size"]) // 10)}
        return {
            "id": role,
            "path": sys.executable,
            "args": f"-m bench.flow_peers dora {role} {folder} {folder / 'params.json'}",
            "env": {"PYTHONPATH": str(ROOT), "RUST_LOG": "off"},
            **({"outputs": ["out"]} if place < 2 else {}),
            **({"inputs": {"in": inputs | {"queue_policy": "backpressure"}}} if place else {}),
        }

    (folder / "flow.yml").write_text(json.dumps({"nodes": [node(role) for role in ROLES]}))
    with (folder / "dora.log").open("wb") as log:
        subprocess.run(
            [program, "run", str(folder / "flow.yml"), "--log-level", "error"],
            cwd=folder,
            env=os.environ | {"RUST_LOG": "off", "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=params["seconds"] + 60,
            check=False,
        )


# -- Ray -------------------------------------------------------------------------------------------------------


def ray(folder: Path, params: Mapping[str, Any]) -> None:
    """A compiled graph of two actors; the driver is the source. A result is awaited when the graph has no room left."""
    import ray as runtime
    from ray.dag import InputNode

    runtime.init(num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)

    class Map:
        def __init__(self) -> None:
            self.function = getattr(flow_nodes, params["function"])

        def step(self, frame: Any) -> Any:
            return self.function(frame, None)

    class Sink:
        def __init__(self) -> None:
            self.count = flow_nodes.Count()

        def step(self, frame: Any) -> int:
            self.count.on_frame(frame, None)
            return self.count.frames

        def result(self) -> dict[str, Any]:
            return self.count.on_stop(None)

    try:
        first, last = runtime.remote(Map).remote(), runtime.remote(Sink).remote()
        with InputNode() as frame:
            graph = last.step.bind(first.step.bind(frame))
        room = 32
        compiled = graph.experimental_compile(
            _buffer_size_bytes=params["size"] + (1 << 16), _max_inflight_executions=room
        )
        waiting: list[Any] = []
        sent = 0
        for block in flow_nodes.blocks(flow_nodes.Context(params)):
            waiting.append(compiled.execute(block))
            sent += 1
            if len(waiting) == room:
                runtime.get(waiting.pop(0))
        for result in waiting:
            runtime.get(result)
        compiled.teardown()
        write(folder, "source", {"frames": sent})
        write(folder, "sink", runtime.get(last.result.remote()))
    finally:
        runtime.shutdown()


# -- all of them -----------------------------------------------------------------------------------------------


def zmq(folder: Path, params: Mapping[str, Any]) -> None:
    """Run the three roles as programs."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.flow_peers", "pyzmq", role, str(folder), str(folder / "params.json")],
            cwd=ROOT,
        )
        for role in reversed(ROLES)
    ]
    try:
        for program in programs:
            program.wait(params["seconds"] + 60)
    finally:
        for program in programs:
            program.kill()
            program.wait()


def write(folder: Path, role: str, counted: Mapping[str, Any]) -> None:
    """Leave what a role has counted for the process that started it."""
    (folder / f"{role}.json").write_text(json.dumps(counted))


PEERS: Mapping[str, tuple[str, Callable[[Path, Mapping[str, Any]], None]]] = {
    "pyzmq": ("pyzmq", zmq),
    "queue": ("", queues),
    "dora": ("dora-rs", dora),
    "ray": ("ray", ray),
}
"""By name: the distribution (empty: Python's own), and what runs a flow of it to its end."""


def main(arguments: Sequence[str]) -> int:
    """One process of a rival whose roles are programs."""
    peer, role, folder, params_path = arguments
    params = json.loads(Path(params_path).read_text())
    end: End = DoraEnd() if peer == "dora" else ZmqEnd(role, Path(folder), params["size"])
    play(role, end, Path(folder), params)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
