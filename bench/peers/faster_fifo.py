"""faster-fifo: a ring of bytes in anonymous shared memory under a process-shared mutex and condition variable."""

from __future__ import annotations

import socket
from collections import deque
from pathlib import Path
from typing import Any

import faster_fifo  # type: ignore[import-untyped,import-not-found,unused-ignore]

from bench.cells import Cell, window
from bench.peers import Link, Peer

PREFIX = 64
"""Room for the length that the queue stores with each message, and to spare."""


def same(data: Any) -> Any:
    """In place of pickle: frames are bytes already."""
    return data


class FasterFifo(Peer):
    """put, and get_many for throughput, which is what it is made for; no pickling."""

    name = "faster-fifo"
    about = "faster-fifo Queue without pickling, put and get_many (get for round trips)"
    distribution = "faster-fifo"

    def prepare(self, cell: Cell, folder: Path) -> Any:
        room = window(cell.size) * (cell.size + PREFIX)
        return [faster_fifo.Queue(max_size_bytes=room, loads=same, dumps=same) for _ in range(2)]

    def connect(self, shared: Any, wire: socket.socket, cell: Cell, first: bool) -> Link:
        there, back = shared if first else reversed(shared)
        waiting: deque[bytes] = deque()

        def send(frame: Any) -> None:
            there.put(bytes(frame), timeout=30.0)

        def receive_many() -> bytes:
            if not waiting:
                waiting.extend(back.get_many(timeout=30.0))
            return waiting.popleft()

        def receive_one() -> Any:
            return back.get(timeout=30.0)

        receive = receive_one if cell.mode == "roundtrip" else receive_many
        return Link(send=send, receive=receive, reply=send, close=lambda: None)
