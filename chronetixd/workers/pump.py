"""The thread that reads the workers' output pipes, so that no worker ever waits for the daemon's loop.

A process that prints into a full pipe sleeps until the pipe is read. This thread always reads, however busy the loop
is. What fits into a stream's buffer and its token bucket waits there for the loop; the rest is dropped unread (spliced
into /dev/null) and counted. Rules:

* At most MAX_BUFFER bytes of each stream, and MAX_TOTAL of all streams, wait for the loop.
* The two threads share a stream's buffer under its lock. Until the stream is given back, only this thread reads its
  pipe.
* This thread parses nothing: it holds the interpreter's lock for a few microseconds at a time.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

from chronetixd.core.token_bucket import TokenBucket

READ_SIZE = 64 * 1024
MAX_BUFFER = 16 * 1024 * 1024
MAX_TOTAL = 64 * 1024 * 1024
RATE, BURST = 1024 * 1024, 16 * 1024 * 1024
"""How many bytes of a stream are kept: a second, and at once."""

PIPE_SIZE = 256 * 1024
"""The size that a pipe is given: the worker continues to write while the interpreter is busy with other work."""

SPLICE = 1024 * 1024

Piece = bytes | int | Literal["end"]
"""Bytes that were read, a number of bytes that were dropped, or the end: no process has the other end open any more."""


class Stream:
    """One pipe that the thread reads. ``on_ready`` is called in the loop when pieces wait, and again only after all of
    them were taken."""

    __slots__ = ("_allowance", "_notified", "_pump", "buffered", "fd", "lock", "on_ready", "pieces")

    def __init__(self, pump: Pump, fd: int, on_ready: Callable[[], None]) -> None:
        self._pump = pump
        self._allowance = TokenBucket(RATE, BURST, time.monotonic_ns())
        self._notified = False
        self.fd = fd
        self.on_ready = on_ready
        self.lock = threading.Lock()
        self.pieces: deque[Piece] = deque()
        self.buffered = 0

    def take(self) -> Piece | None:
        """Return the oldest piece. Call it in the loop. None if nothing waits; then ``on_ready`` is called again
        later."""
        with self.lock:
            if not self.pieces:
                self._notified = False
                return None
            piece = self.pieces.popleft()
            if isinstance(piece, bytes):
                self.buffered -= len(piece)
                self._pump.count(-len(piece))
        return piece

    def packed(self) -> tuple[list[bytes | int | None], tuple[float, int]]:
        """Return the pieces that wait (None for the end), and the state of the token bucket."""
        with self.lock:
            return [None if piece == "end" else piece for piece in self.pieces], self._allowance.packed()

    def unpack(self, pieces: Sequence[bytes | int | None], allowance: tuple[float, int] | None) -> None:
        """Take over what :meth:`packed` has returned, before the thread has begun to read."""
        with self.lock:
            if allowance is not None:
                self._allowance.unpack(allowance)
            for piece in pieces:
                self._add("end" if piece is None else piece)
            self._notified = True
            if self.pieces and self.pieces[-1] == "end":
                self._pump.remove(self.fd)
        self._pump.notify(self.on_ready)

    def give_back(self) -> None:
        """Let the thread read this pipe no more. Pieces that wait can still be taken. Idempotent."""
        with self.lock:
            self._pump.remove(self.fd)
            self.fd = -1

    def pull(self) -> None:
        """Read once. Call it in the thread."""
        with self.lock:
            if self.fd < 0:
                return
            try:
                piece = self._read()
            except (BlockingIOError, InterruptedError):
                return
            except MemoryError:
                piece = os.splice(self.fd, self._pump.null_fd, SPLICE) or "end"
            self._add(piece)
            if piece == "end":
                self._pump.remove(self.fd)  # under the lock: later another pipe may have this number
            said, self._notified = self._notified, True
        if not said:
            self._pump.notify(self.on_ready)

    def _read(self) -> Piece:
        full = self.buffered >= MAX_BUFFER or self._pump.total >= MAX_TOTAL
        if full or not self._allowance.left(time.monotonic_ns()):
            return os.splice(self.fd, self._pump.null_fd, SPLICE) or "end"
        data = os.read(self.fd, READ_SIZE)
        self._allowance.take(len(data))
        return data or "end"

    def _add(self, piece: Piece) -> None:
        if isinstance(piece, int) and self.pieces and isinstance(self.pieces[-1], int):
            self.pieces[-1] += piece
            return
        self.pieces.append(piece)
        if isinstance(piece, bytes):
            self.buffered += len(piece)
            self._pump.count(len(piece))


class Pump:
    """The thread and its pipes. The thread starts with the first pipe."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: dict[int, Stream] = {}
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self.null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._halted = False
        self._counting = threading.Lock()
        self.total = 0
        """How many bytes of all streams wait for the loop."""

    def count(self, count: int) -> None:
        """Add ``count`` (which may be negative) to the number of bytes that wait."""
        with self._counting:
            self.total += count

    def add(self, fd: int, on_ready: Callable[[], None]) -> Stream:
        """Let the thread read the pipe whose non-blocking read end is ``fd``."""
        with suppress(OSError):  # beyond the user's limit the pipe keeps the usual 64 KiB
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        stream = Stream(self, fd, on_ready)
        self._streams[fd] = stream
        self._epoll.register(fd, select.EPOLLIN)
        if self._thread is None and not self._halted:
            self._begin()
        return stream

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._run, name="chronetix-output", daemon=True)
        self._thread.start()

    def halt(self) -> None:
        """Stop reading until :meth:`resume`. Idempotent."""
        self._halted = True
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._thread = None
            os.eventfd_read(self._wake)

    def resume(self) -> None:
        """Read again after :meth:`halt`. Idempotent."""
        self._halted = False
        if self._thread is None and self._streams:
            self._begin()

    def remove(self, fd: int) -> None:
        """Remove the pipe ``fd``. The caller holds the stream's lock."""
        if self._streams.pop(fd, None) is not None:
            with suppress(FileNotFoundError):
                self._epoll.unregister(fd)

    def notify(self, on_ready: Callable[[], None]) -> None:
        """Have ``on_ready`` called in the loop. Call it in the thread."""
        with suppress(RuntimeError):  # the loop is closed: nothing reads the pieces any more
            self._loop.call_soon_threadsafe(on_ready)

    def close(self) -> None:
        """End the thread. All streams must have been given back. Idempotent."""
        if self._wake < 0:
            return
        self.halt()
        self._epoll.close()
        os.close(self._wake)
        os.close(self.null_fd)
        self._wake = -1

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._wake:
                    return
                stream = self._streams.get(fd)
                try:
                    if stream is not None:
                        stream.pull()
                except Exception as reason:
                    self._loop.call_soon_threadsafe(_raise, reason)
                    return


def _raise(reason: Exception) -> None:
    """Raise ``reason`` in the loop, which handles it as an internal failure. Without this thread workers that print
    would stand still."""
    raise reason
