"""Stdout and stderr of a worker that outlives its daemon, which reads both.

Whoever writes into a pipe that nobody reads gets SIGPIPE or EPIPE: Python's print, a C library, a child process. So
both are opened for reading too: whoever has one of them is also its reader, and the pipe stays. It is full after a
while, and then writing sleeps; so while no daemon is there a thread takes the oldest of it away and counts that. It
sleeps while nothing is there. The next daemon is shown the pipes and reads on: what fits is late, and what does not is
told.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import termios
import threading
from collections.abc import Sequence
from struct import unpack

NAMES = {1: "stdout", 2: "stderr"}

PAUSE_S = 0.005
"""Between two looks while somebody prints: a pipe of 256 KiB takes 25 MB/s without anybody waiting."""

LOOK_S = 0.1
"""Between two looks while bytes stay in a pipe: a write that finds it filled by itself sleeps and tells no reader."""

_SPLICE = 1 << 20


class Streams:
    """Those of this process that are pipes."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}
        """A reading end of our own for each."""
        self._lost: dict[int, int] = {}
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._thread: threading.Thread | None = None

    def hold(self) -> None:
        """A daemon reads them now, and may die from now on. Raises OSError."""
        self._let_go()
        for number in _pipes():
            own = os.open(f"/proc/self/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
            os.dup2(own, number)
            os.close(own)
            self._held[number] = os.open(f"/proc/self/fd/{number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def shown(self) -> list[int]:
        """Reading ends for the next daemon, of stdout and stderr; nothing unless both are pipes."""
        return list(self._held.values()) if len(self._held) == len(NAMES) else []

    @property
    def lost(self) -> dict[str, int]:
        """Bytes of each that were taken away and not told, where there are some."""
        return {NAMES[number]: count for number, count in self._lost.items() if count}

    def begin(self) -> None:
        """The daemon is gone: keep room in the pipes. Idempotent."""
        if self._thread is None and self._held:
            self._thread = threading.Thread(target=self._keep_room, name="chronetix-print", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """A daemon reads again. Idempotent."""
        if self._thread is not None:
            os.eventfd_write(self._bell, 1)
            self._thread.join()
            os.eventfd_read(self._bell)
            self._thread = None

    def take(self, descriptors: Sequence[int]) -> None:
        """Print into what the next daemon has given for stdout and stderr, and close that."""
        for number, descriptor in zip(NAMES, descriptors, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)

    def told(self) -> None:
        """Of all that was lost."""
        self._lost.clear()

    def silence(self) -> None:
        """This process ends and no daemon will read: print to nowhere."""
        for number in _pipes():
            os.dup2(self._nowhere, number)
        self.end()
        self._let_go()

    def close(self) -> None:
        """Give everything back; what this process has as stdout and stderr stays. Idempotent."""
        self.end()
        self._let_go()
        for descriptor in (self._bell, self._nowhere):
            if descriptor >= 0:
                os.close(descriptor)
        self._bell = self._nowhere = -1

    def _let_go(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def _keep_room(self) -> None:
        """The thread: it looks after something was printed (the edge of it), at most once in PAUSE_S, and every LOOK_S
        while bytes stay. The kernel gives no edge for a write that fills a pipe which was not empty, and sleeps."""
        over = select.poll()
        over.register(self._bell, select.POLLIN)
        with select.epoll() as epoll:
            epoll.register(self._bell, select.EPOLLIN)
            for descriptor in self._held.values():
                epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)
            while True:
                stays = any(_waiting(descriptor) for descriptor in self._held.values())
                if any(fd == self._bell for fd, _ in epoll.poll(LOOK_S if stays else None)):
                    return
                taken = sum([self._make_room(number) for number in self._held])
                if over.poll(0 if taken else 1000 * PAUSE_S):
                    return

    def _make_room(self, number: int) -> int:
        """Take the oldest away once a quarter of the pipe is full. (A pipe is full when all its pages are begun, which
        may be with half of its bytes.) How much that was."""
        descriptor, taken = self._held[number], 0
        size = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
        while (there := _waiting(descriptor)) > size // 4:
            try:
                taken += os.splice(descriptor, self._nowhere, min(there - size // 8, _SPLICE))
            except BlockingIOError:  # a daemon that was shown the pipe has just emptied it
                break
        self._lost[number] = self._lost.get(number, 0) + taken
        return taken


class ForeignStreams:
    """Those of a process that no daemon has started: they are nobody's business but its own."""

    shown: list[int] = []
    lost: dict[str, int] = {}

    def hold(self) -> None:
        """Nothing."""

    begin = end = told = silence = close = hold

    def take(self, descriptors: Sequence[int]) -> None:
        """Close what a daemon has given for stdout and stderr."""
        for descriptor in descriptors:
            os.close(descriptor)


def _waiting(descriptor: int) -> int:
    (count,) = unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return int(count)


def _pipes() -> list[int]:
    return [number for number in NAMES if stat.S_ISFIFO(os.fstat(number).st_mode)]
