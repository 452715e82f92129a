"""multiprocessing.Queue: pickles in a feeder thread and sends over a pipe under locks."""

from __future__ import annotations

import multiprocessing
import platform
import socket
from pathlib import Path
from typing import Any

from bench.cells import Cell, window
from bench.peers import Link, Peer


class Queue(Peer):
    """put and get of bytes; bounded, so that a fast sender waits."""

    name = "queue"
    about = (
        "multiprocessing.Queue(maxsize), put/get of bytes; the frame is copied first, as its thread pickles it later"
    )

    def version(self) -> str:
        return platform.python_version()

    def prepare(self, cell: Cell, folder: Path) -> Any:
        context = multiprocessing.get_context("fork")
        return context.Queue(window(cell.size)), context.Queue(window(cell.size))

    def connect(self, shared: Any, wire: socket.socket, cell: Cell, first: bool) -> Link:
        there, back = shared if first else reversed(shared)

        def send(frame: Any) -> None:
            there.put(bytes(frame))

        def close() -> None:
            there.close()
            there.cancel_join_thread()

        return Link(send=send, receive=back.get, reply=there.put, close=close)

    def release(self, shared: Any, pids: tuple[int, ...]) -> None:
        for queue in shared:
            queue.close()
