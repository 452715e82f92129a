"""What a worker prints, line by line: read from its pipes without waiting, and bounded in every direction.

A thread reads the pipes (``pump.py``); in the loop their bytes become lines. Lines beyond LINES_A_SECOND are dropped,
and a line longer than MAX_LINE is cut; both are counted and reported. Bytes that are not UTF-8 are shown as escapes.
The last lines of stderr are kept, because they tell why a worker failed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable

from chronetixd.core.token_bucket import TokenBucket
from chronetixd.linux.pipes import waiting
from chronetixd.packing import Bag, Packed
from chronetixd.records.log_record import CUT, LINES_A_SECOND, LINES_AT_ONCE, MAX_LINE
from chronetixd.workers.pump import READ_SIZE, Piece, Pump

TAIL_LINES = 20
"""How many of the last lines of a stream are kept."""

MAX_TAIL_LINE = 1024
"""How many characters of each of these lines are kept."""

TURN_LINES = 256
"""How many lines of one worker are handled in one turn of the loop."""

TELL_NS = 1_000_000_000
"""The least time between two reports of what a stream has lost."""


class PackedOutput(Packed, frozen=True):
    """A pipe that a worker prints into. ``fd`` is None once its other end is closed. ``pieces`` were read from it and
    not handled yet: bytes, a number of bytes that were dropped, or None for the end."""

    fd: int | None
    lines_left: tuple[float, int]
    part: bytes = b""
    dropping: bool = False
    bytes_left: tuple[float, int] | None = None
    lost_bytes: int = 0
    lost_lines: int = 0
    told_ns: int = 0
    gap: bool = False
    rest: bytes = b""
    pieces: list[bytes | int | None] = []
    tail: list[str] = []


class LineCutter:
    """Makes lines of bytes. ``cut`` counts the lines that were too long."""

    __slots__ = ("_dropping", "_part", "cut")

    def __init__(self) -> None:
        self._part = bytearray()
        self._dropping = False
        self.cut = 0

    def packed(self) -> tuple[bytes, bool]:
        """Return the beginning of an incomplete line, and whether the rest of it is dropped."""
        return bytes(self._part), self._dropping

    def unpack(self, part: bytes, dropping: bool) -> None:
        """Take over what :meth:`packed` has returned."""
        self._part[:], self._dropping = part, dropping

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that ``data`` completes, without their line ends."""
        lines = []
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._add(piece)
            lines.append(self._line())
            self._part.clear()
            self._dropping = False
        self._add(rest)
        return lines

    def end(self) -> list[str]:
        """Return the last line, if it has no line end."""
        lines = [self._line()] if self._part else []
        self._part.clear()
        self._dropping = False
        return lines

    def _line(self) -> str:
        return _text(self._part) + (CUT if self._dropping else "")

    def _add(self, piece: bytes) -> None:
        room = MAX_LINE - len(self._part)
        if len(piece) > room and not self._dropping:
            self._dropping = True
            self.cut += 1
        self._part += piece[:room]


def _text(line: bytes | bytearray) -> str:
    return bytes(line).rstrip(b"\r").decode("utf-8", "backslashreplace")


class Output:
    """One output pipe of one worker; owns its read end.

    ``on_cut`` is called for each line that was too long. ``on_dropped`` is called at most once in TELL_NS, and at the
    end, with the number of bytes that were dropped because the worker prints too fast, and the number of whole lines
    known to be among them. Without ``pump`` the loop itself reads the pipe.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        on_line: Callable[[str], None],
        on_cut: Callable[[], None],
        *,
        pump: Pump | None = None,
        on_dropped: Callable[[int, int], None] = lambda _bytes, _lines: None,
    ) -> None:
        """``fd`` is -1 for a pipe that has ended already."""
        if fd >= 0:
            os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._on_line = on_line
        self._on_cut = on_cut
        self._on_dropped = on_dropped
        self._cutter = LineCutter()
        self._allowance = TokenBucket(LINES_A_SECOND, LINES_AT_ONCE, time.monotonic_ns())
        self._lost_bytes = self._lost_lines = 0
        self._reported_ns = 0
        self._unhandled = b""
        """Bytes that the thread has read and the loop has not handled yet."""
        self._gap = False
        """Whether the rest of a line is dropped because its beginning was."""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._stream = pump.add(fd, self._ready) if pump is not None and fd >= 0 else None
        if pump is None and fd >= 0:
            loop.add_reader(fd, self._readable)

    def packed(self, bag: Bag) -> PackedOutput:
        """Return all of the state. The thread must not read meanwhile, or the result may be incomplete."""
        pieces, bytes_left = self._stream.packed() if self._stream is not None else ([], None)
        part, dropping = self._cutter.packed()
        return PackedOutput(
            fd=bag.put(self._fd) if self._fd >= 0 else None,
            part=part,
            dropping=dropping,
            lines_left=self._allowance.packed(),
            bytes_left=bytes_left,
            lost_bytes=self._lost_bytes,
            lost_lines=self._lost_lines,
            told_ns=self._reported_ns,
            gap=self._gap,
            rest=self._unhandled,
            pieces=pieces,
            tail=list(self.tail),
        )

    def unpack(self, packed: PackedOutput) -> None:
        """Continue as ``packed`` says; nothing was read from the pipe by this object."""
        self._cutter.unpack(packed.part, packed.dropping)
        self._allowance.unpack(packed.lines_left)
        self._lost_bytes, self._lost_lines, self._reported_ns = packed.lost_bytes, packed.lost_lines, packed.told_ns
        self._gap, self._unhandled = packed.gap, packed.rest
        self.tail.extend(packed.tail)
        if self._stream is not None:
            self._stream.unpack(packed.pieces, packed.bytes_left)

    def finish(self) -> None:
        """Read what is in the pipe now, then close it. Call it when the worker has ended. Idempotent.

        What is printed meanwhile is not waited for: a process that has left the worker's group may go on printing for
        ever.
        """
        self._take_all()
        left = waiting(self._fd) if self._fd >= 0 else 0
        while left > 0 and self._fd >= 0 and self._readable():
            left -= READ_SIZE
        self.close()

    def close(self) -> None:
        """Close the pipe without reading it. Idempotent."""
        if self._fd < 0:
            return
        if self._stream is None:
            self._loop.remove_reader(self._fd)
        fd, self._fd = self._fd, -1
        self._take_all()
        os.close(fd)
        self._pass_on(self._cutter.end())
        self._report_lost(0)

    def _take_all(self) -> None:
        """Take the pipe from the thread, and handle everything that the thread has read."""
        if self._stream is not None:
            self._stream.give_back()
            while (piece := self._next()) is not None:
                self._handle(piece)

    def _ready(self) -> None:
        """Handle a part of what the thread has read; the rest follows in the next turn of the loop."""
        piece = self._next()
        if piece is not None:
            self._handle(piece)
            self._loop.call_soon(self._ready)

    def _next(self) -> Piece | None:
        """Return at most TURN_LINES lines of the oldest unhandled piece."""
        assert self._stream is not None
        piece = self._unhandled or self._stream.take()
        self._unhandled = b""
        if isinstance(piece, bytes) and piece.count(b"\n") > TURN_LINES:
            self._unhandled = piece.split(b"\n", TURN_LINES)[-1]
            piece = piece[: len(piece) - len(self._unhandled)]
        return piece

    def _readable(self) -> bool:
        """Read once. Returns False if nothing (more) is there."""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return False
        self._handle(data or "end")
        return bool(data)

    def _handle(self, piece: Piece) -> None:
        if piece == "end":
            self.close()
        elif isinstance(piece, int):
            self._pass_on(self._cutter.end())
            self._gap = True
            self._count_lost(piece, 0)
        else:
            self._feed(piece)

    def _count_lost(self, size: int, lines: int) -> None:
        self._lost_bytes += size
        self._lost_lines += lines
        self._report_lost(TELL_NS)

    def _report_lost(self, since_ns: int) -> None:
        now = time.monotonic_ns()
        if self._lost_bytes and (now - self._reported_ns >= since_ns or not self._reported_ns):
            self._reported_ns = now
            self._on_dropped(self._lost_bytes, self._lost_lines)
            self._lost_bytes = self._lost_lines = 0

    def _feed(self, data: bytes) -> None:
        if self._gap:
            lost, newline, data = data.partition(b"\n")
            self._count_lost(len(lost) + len(newline), 0)
            self._gap = not newline
        lines = data.count(b"\n")
        room = self._allowance.left(time.monotonic_ns())
        if lines > room:
            data = self._leave_out(data, lines, room)
            lines = room
        self._allowance.take(lines)
        cut = self._cutter.cut
        self._pass_on(self._cutter.feed(data))
        for _ in range(self._cutter.cut - cut):
            self._on_cut()

    def _leave_out(self, data: bytes, lines: int, room: int) -> bytes:
        """Return only the last ``room`` of the ``lines`` lines of ``data``: the last lines tell more than the first
        ones."""
        self._pass_on(self._cutter.end())
        size = len(data.rsplit(b"\n", room + 1)[0]) + 1
        self._count_lost(size, lines - room)
        return data[size:]

    def _pass_on(self, lines: list[str]) -> None:
        for line in lines:
            self.tail.append(line[:MAX_TAIL_LINE])
            self._on_line(line)
