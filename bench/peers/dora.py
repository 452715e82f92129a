"""dora-rs: two nodes of one dataflow under ``dora run`` (its own daemon), Python API on both sides.

dora has no setting that makes a sender wait for a slow receiver: a full queue drops. Each size gets an output of its
own with an input queue of up to 20 000 frames or 1 GiB (``queue_policy: backpressure`` buffers ten times
``queue_size``), far more than the others get; what is still lost is reported. The daemon's processor time is counted
with that of the two nodes.

dora starts the nodes itself, so this peer has no ``connect``: its host starts the dataflow once, and each node serves
cells over a socket to the host until the host hangs up.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import ends
from bench.cells import LOAN_SIZES, SIZES, Cell
from bench.peers import Link, Peer

QUEUE_LIMIT = 20_000
"""Frames in an input queue, at most."""
QUEUE_BYTES = 1 << 30
START_LIMIT = 25.0
"""Seconds for the dataflow to come up."""


class Dora(Peer):
    """A dataflow that stays up for all cells."""

    name = "dora"
    about = "dora run, two Python nodes, send_output of a UInt8 array, long input queues; daemon's CPU counted"
    distribution = "dora-rs"

    def prepare(self, cell: Cell, folder: Path) -> Any:
        raise NotImplementedError("dora starts its own nodes: see Dataflow")


def queue_size(size: int) -> int:
    """Configured queue size in frames, a tenth of what the input then holds."""
    return max(2, min(QUEUE_LIMIT, QUEUE_BYTES // size) // 10)


def descriptor(folder: Path, sizes: tuple[int, ...]) -> dict[str, Any]:
    """The dataflow: outputs and inputs ``data-<size>`` from first to second and ``echo-<size>`` back."""
    python = sys.executable
    args = "-m bench.peers.dora " + str(folder / "host.sock")
    root = str(Path(__file__).parents[2])

    def node(name: str, peer: str, sends: str, takes: str) -> dict[str, Any]:
        return {
            "id": name,
            "path": python,
            "args": f"{args} {name}",
            "env": {"PYTHONPATH": root, "RUST_LOG": "off"},
            "outputs": [f"{sends}-{size}" for size in sizes],
            "inputs": {
                f"{takes}-{size}": {
                    "source": f"{peer}/{takes}-{size}",
                    "queue_size": queue_size(size),
                    "queue_policy": "backpressure",
                }
                for size in sizes
            },
        }

    return {"nodes": [node("first", "second", "data", "echo"), node("second", "first", "echo", "data")]}


class Dataflow:
    """The running dataflow, seen from the host. ``run`` measures a cell, ``close`` ends every process by its pid."""

    def __init__(self, folder: Path, sizes: tuple[int, ...] = tuple(sorted({*SIZES, *LOAN_SIZES}))) -> None:
        self.folder = folder
        self.nodes: dict[str, socket.socket] = {}
        self.pids: list[int] = []
        program = shutil.which("dora", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        if program is None:
            raise FileNotFoundError("the program dora is not installed (PyPI: dora-rs-cli)")
        (folder / "flow.yml").write_text(json.dumps(descriptor(folder, sizes)))
        self.log = (folder / "dora.log").open("wb")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(folder / "host.sock"))
        listener.listen(2)
        listener.settimeout(START_LIMIT)
        self.daemon = subprocess.Popen(
            [program, "run", str(folder / "flow.yml"), "--log-level", "error"],
            cwd=folder,
            env=os.environ | {"RUST_LOG": "off", "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        try:
            for _ in range(2):
                node, _ = listener.accept()
                hello = ends.listen(node)
                self.nodes[hello["name"]] = node
                self.pids.append(hello["pid"])
        except TimeoutError:
            self.close()
            raise TimeoutError(f"dora's nodes did not come up within {START_LIMIT:.0f} s: {self.tail()}") from None
        finally:
            listener.close()

    def tail(self) -> str:
        """The end of what dora printed."""
        return (self.folder / "dora.log").read_text(errors="replace")[-400:].strip()

    def run(self, cell: Cell, limit: float) -> dict[str, Any]:
        """Measure ``cell``; TimeoutError after ``limit`` seconds, after which the dataflow is of no use any more."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = json.dumps({"cell": ends.cell_as_json(cell), "others": [self.daemon.pid]}).encode()
        with here, there:
            for name, wire in (("first", here), ("second", there)):
                socket.send_fds(self.nodes[name], [command], [wire.fileno()])
        report: dict[str, Any] = {}
        for name in ("first", "second"):
            self.nodes[name].settimeout(limit)
            report |= ends.listen(self.nodes[name])
        return report

    def close(self) -> None:
        """Close the sockets of the nodes, which then exit; kill processes that are left by their pids."""
        for node in self.nodes.values():
            node.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.daemon.wait(2.0)
        for pid in self.pids if self.daemon.returncode is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.daemon.returncode is None:
            self.daemon.terminate()
            try:
                self.daemon.wait(3.0)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
        self.log.close()


# -- in the nodes --------------------------------------------------------------------------------------------


def node_main(path: str, name: str) -> None:
    """Serve cells until the host hangs up."""
    import pyarrow as pa
    from dora import Node

    node = Node()
    host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    host.connect(path)
    ends.tell(host, {"name": name, "pid": os.getpid()})
    first = name == "first"
    while True:
        message, descriptors, _, _ = socket.recv_fds(host, 1 << 16, 1)
        if not message:
            return
        command = json.loads(message)
        cell = Cell(**command["cell"])
        with socket.socket(fileno=descriptors[0]) as wire:
            link = connect(node, pa, cell, first)
            report = ends.run(link, wire, cell, first, command["others"] if first else ())
        ends.tell(host, report)


def connect(node: Any, pa: Any, cell: Cell, first: bool) -> Link:
    """The outputs and inputs of this cell's size. What arrives for another size is left over and skipped."""
    there, back = ("data", "echo") if first else ("echo", "data")
    output, wanted = f"{there}-{cell.size}", f"{back}-{cell.size}"
    put, take = node.send_output, node.next
    arrays: dict[int, Any] = {}

    def send(frame: Any) -> None:
        array = arrays.get(id(frame))
        if array is None:
            array = pa.UInt8Array.from_buffers(pa.uint8(), len(frame), [None, pa.py_buffer(frame)])
            arrays[id(frame)] = array
        put(output, array)

    value: Any = None

    def receive() -> Any:
        nonlocal value
        while True:
            event = take()
            if event is None or event["type"] == "STOP":
                raise ends.EndLost("dora stopped the dataflow")
            if event["type"] == "INPUT" and event["id"] == wanted:
                value = event["value"]
                return value.buffers()[1]

    def reply(_frame: Any) -> None:
        put(output, value)

    return Link(send=send, receive=receive, reply=reply, close=lambda: None)


if __name__ == "__main__":
    node_main(sys.argv[1], sys.argv[2])
