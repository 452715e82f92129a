"""What a worker prints, line by line: read from its pipes without waiting, bounded in every direction.

A line longer than MAX_LINE is cut and the rest of it dropped, which is counted; bytes that are not UTF-8 are shown as
escapes. The last lines of stderr are kept for the reason of a failure.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import termios
from collections import deque
from collections.abc import Callable

MAX_LINE = 16 * 1024
"""Bytes of a line that are kept."""

TAIL_LINES = 20
"""Last lines of a stream that are kept."""

MAX_TAIL_LINE = 1024
"""Characters of each of them."""

READ_SIZE = 64 * 1024
"""One turn of reading: a pipe's usual capacity, so that no worker holds the loop for long."""


def waiting(fd: int) -> int:
    """Bytes that could be read from a pipe or stream socket now."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


class LineCutter:
    """Bytes in, lines out. ``cut`` counts lines that were too long."""

    __slots__ = ("_dropping", "_part", "cut")

    def __init__(self) -> None:
        self._part = bytearray()
        self._dropping = False
        self.cut = 0

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes, without their ends."""
        lines = []
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._add(piece)
            lines.append(_text(self._part))
            self._part.clear()
            self._dropping = False
        self._add(rest)
        return lines

    def end(self) -> list[str]:
        """The line that had no end, if there is one."""
        lines = [_text(self._part)] if self._part else []
        self._part.clear()
        self._dropping = False
        return lines

    def _add(self, piece: bytes) -> None:
        room = MAX_LINE - len(self._part)
        if len(piece) > room and not self._dropping:
            self._dropping = True
            self.cut += 1
        self._part += piece[:room]


def _text(line: bytes | bytearray) -> str:
    return bytes(line).rstrip(b"\r").decode("utf-8", "backslashreplace")


class Output:
    """One pipe of one worker; owns its read end."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, on_line: Callable[[str], None], on_cut: Callable[[], None]
    ) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._on_line = on_line
        self._on_cut = on_cut
        self._cutter = LineCutter()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        loop.add_reader(fd, self._readable)

    def finish(self) -> None:
        """Read what is there now, then close. For when the worker has gone; idempotent.

        What comes meanwhile is not waited for: a process that left the worker's group may go on writing for ever.
        """
        left = waiting(self._fd) if self._fd >= 0 else 0
        while left > 0 and self._fd >= 0 and self._readable():
            left -= READ_SIZE
        self.close()

    def close(self) -> None:
        """Close without reading; idempotent."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._pass_on(self._cutter.end())

    def _readable(self) -> bool:
        """Read once; False when nothing (more) is there."""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        cut = self._cutter.cut
        self._pass_on(self._cutter.feed(data))
        for _ in range(self._cutter.cut - cut):
            self._on_cut()
        return True

    def _pass_on(self, lines: list[str]) -> None:
        for line in lines:
            self.tail.append(line[:MAX_TAIL_LINE])
            self._on_line(line)
