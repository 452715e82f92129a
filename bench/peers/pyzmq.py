"""pyzmq: ZeroMQ sockets over ipc (a Unix stream socket), with an I/O thread on each side."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import zmq

from bench.cells import KIB, Cell, window
from bench.peers import Link, Peer

VIEW_FROM = 16 * KIB
"""From this size a received message is looked at in place; below, a copy costs less than the frame object."""


class PyZmq(Peer):
    """PUSH/PULL for throughput, PAIR for round trips; high-water marks of window(size) frames, so nothing is lost."""

    name = "pyzmq"
    about = "ZeroMQ ipc, PUSH/PULL (PAIR for round trips), high-water marks block the sender"
    distribution = "pyzmq"

    def version(self) -> str:
        return f"{zmq.__version__} (libzmq {zmq.zmq_version()})"

    def prepare(self, cell: Cell, folder: Path) -> Path:
        return folder / "zmq.sock"

    def connect(self, shared: Any, wire: socket.socket, cell: Cell, first: bool) -> Link:
        context: zmq.Context[Any] = zmq.Context()
        if cell.mode == "roundtrip":
            kind = zmq.PAIR
        else:
            kind = zmq.PUSH if first else zmq.PULL
        end = context.socket(kind)
        end.set(zmq.SNDHWM, window(cell.size))
        end.set(zmq.RCVHWM, window(cell.size))
        end.set(zmq.LINGER, 0)
        if first:
            wire.recv(1)
            end.connect(f"ipc://{shared}")
        else:
            end.bind(f"ipc://{shared}")
            wire.send(b"b")

        def receive_view() -> Any:
            return end.recv(copy=False).buffer

        def close() -> None:
            end.close()
            context.term()

        receive = receive_view if cell.size >= VIEW_FROM else end.recv
        return Link(send=end.send, receive=receive, reply=end.send, close=close)

    def release(self, shared: Any, pids: tuple[int, ...]) -> None:
        shared.unlink(missing_ok=True)
