"""multiprocessing.Pipe: a socket pair with a length before each message; the kernel copies in and out."""

from __future__ import annotations

import platform
import socket
from multiprocessing import Pipe as make_pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.cells import Cell
from bench.peers import Link, Peer


class Pipe(Peer):
    """send_bytes and recv_bytes on a duplex pipe."""

    name = "pipe"
    about = "multiprocessing.Pipe, send_bytes/recv_bytes; one-way os.pipe for throughput, duplex for round trips"

    def version(self) -> str:
        return platform.python_version()

    def prepare(self, cell: Cell, folder: Path) -> tuple[Connection, Connection]:
        if cell.mode == "roundtrip":
            return make_pipe(duplex=True)
        receiving, sending = make_pipe(duplex=False)
        return sending, receiving

    def connect(self, shared: Any, wire: socket.socket, cell: Cell, first: bool) -> Link:
        mine: Connection = shared[0 if first else 1]
        shared[1 if first else 0].close()
        return Link(send=mine.send_bytes, receive=mine.recv_bytes, reply=mine.send_bytes, close=mine.close)

    def release(self, shared: Any, pids: tuple[int, ...]) -> None:
        for connection in shared:
            connection.close()
