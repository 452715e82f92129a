"""A client that makes calls all the time, in a thread, and counts how often each call ends: it must end once, or with
its connection."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chronetix.protocol import messages as wire
from chronetix.protocol.descriptors import Channel
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.framing import encode

PAUSE_S = 0.02
ABREAST = 4
LONGEST_S = 60.0
"""A call that has not ended after this time, with a daemon that was not stopped for long, counts as one that never
ends."""


class Caller:
    """Begins at once. ``complaints`` are calls that ended twice, or never although their connection stayed open."""

    def __init__(self, path: Path, flows: Sequence[str]) -> None:
        self._path = path
        self._calls = [("list", {}), ("version", {}), ("stats", {})]
        self._calls += [("describe", {"flow": flow}) for flow in flows]
        self._calls.append(("publish", {"topic": "/nobody", "payload": b"x" * 1000}))
        self.ended = self.failed = self.cut = 0
        self.complaints: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caller")
        self._thread.start()

    def close(self) -> None:
        """Make no more calls."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PAUSE_S):
            with suppress(OSError, ChronetixError), socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(LONGEST_S)
                sock.connect(str(self._path))
                self._talk(sock)

    def _talk(self, sock: socket.socket) -> None:
        """Make calls until the connection ends."""
        channel: Channel[wire.WireMessage] = Channel(wire.ToClient)
        sock.sendall(encode(wire.Hello(protocol=[1], role="client", pid=os.getpid())))
        open_calls: dict[int, float] = {}
        number = 0
        try:
            while not self._over.is_set():
                while len(open_calls) < ABREAST:
                    number += 1
                    verb, args = self._calls[number % len(self._calls)]
                    open_calls[number] = time.monotonic()
                    sock.sendall(encode(wire.Call(id=number, verb=verb, args=args)))
                if not self._heard(sock, channel, open_calls, number):
                    return
                self._over.wait(PAUSE_S)
        finally:
            self.cut += len(open_calls)
            channel.close()

    def _heard(
        self, sock: socket.socket, channel: Channel[wire.WireMessage], calls: dict[int, float], last: int
    ) -> bool:
        if not select.select([sock], [], [], LONGEST_S)[0]:
            self.complaints.append(f"calls {sorted(calls)} have not ended in {LONGEST_S:.0f} s")
            return False
        data = sock.recv(1 << 20)
        for message, _ in channel.feed(data, []):
            if not isinstance(message, wire.Result | wire.Failure) or message.id is None:
                continue
            if calls.pop(message.id, None) is None:
                self.complaints.append(f"call {message.id} of {last} ended again: {message}")
            self.ended += 1
            self.failed += isinstance(message, wire.Failure)
        return bool(data)
