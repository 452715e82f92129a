"""The thread that empties the workers' output pipes, so that no worker ever waits for the daemon's loop.

Whoever prints into a full pipe sleeps until somebody reads. This thread always does, however busy the loop is: what
fits into a stream's buffer and its allowance waits there for the loop, the rest is thrown away unread (spliced into
/dev/null) and counted. Rules:

* At most MAX_BUFFER bytes of each stream and MAX_TOTAL of all wait for the loop.
* The two threads share a stream's buffer under its lock; only this thread reads while the stream is in its hands.
* Nothing is parsed here: it holds the interpreter for a few microseconds at a time.
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
"""Bytes of a stream that are looked at, a second and at once."""

PIPE_SIZE = 256 * 1024
"""What a pipe is asked to hold: a worker goes on writing while the interpreter is busy elsewhere."""

SPLICE = 1024 * 1024

Piece = bytes | int | Literal["end"]
"""What came, how many bytes were thrown away, or that nobody has the other end any more."""


class Stream:
    """One pipe in the thread's hands. ``on_ready`` is called in the loop when pieces wait, once until all are taken."""

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
        """What has waited for longest; from the loop. None: nothing waits, and ``on_ready`` will be called again."""
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
        """What waits to be taken (None for the end), and what may still come."""
        with self.lock:
            return [None if piece == "end" else piece for piece in self.pieces], self._allowance.packed()

    def unpack(self, pieces: Sequence[bytes | int | None], allowance: tuple[float, int] | None) -> None:
        """The inverse; the thread has not begun to read."""
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
        """Take the pipe out of the thread's hands; what waits can still be taken. Idempotent."""
        with self.lock:
            self._pump.remove(self.fd)
            self.fd = -1

    def pull(self) -> None:
        """Read once; from the thread."""
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
                self._pump.remove(self.fd)  # now, under the lock: later the number may be another pipe's
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
    """The thread and its pipes. It starts with the first pipe."""

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
        """Bytes of all streams that wait for the loop."""

    def count(self, count: int) -> None:
        """``count`` more bytes wait, or fewer."""
        with self._counting:
            self.total += count

    def add(self, fd: int, on_ready: Callable[[], None]) -> Stream:
        """Take the non-blocking read end of a pipe into the thread's hands."""
        with suppress(OSError):  # more than this user may have; the usual 64 KiB will do
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
        """Read nothing more until :meth:`resume`. Idempotent."""
        self._halted = True
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._thread = None
            os.eventfd_read(self._wake)

    def resume(self) -> None:
        """After :meth:`halt`. Idempotent."""
        self._halted = False
        if self._thread is None and self._streams:
            self._begin()

    def remove(self, fd: int) -> None:
        """Under the stream's lock."""
        if self._streams.pop(fd, None) is not None:
            with suppress(FileNotFoundError):
                self._epoll.unregister(fd)

    def notify(self, on_ready: Callable[[], None]) -> None:
        """From the thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody will ask
            self._loop.call_soon_threadsafe(on_ready)

    def close(self) -> None:
        """End the thread. Streams must have been given back. Idempotent."""
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
    """In the loop, which takes it for what it is: an internal failure. Without this thread workers that print stand."""
    raise reason
