"""Descriptors that the supervisor keeps while the daemon is gone: systemd's file descriptor store.

What is pushed comes back to the next daemon as :attr:`chronetixd.activation.Received.stored`, by name. Rules: a name is
pushed whole and forgotten whole; systemd keeps nothing, and says nothing, beyond FileDescriptorStoreMax, and it hands
back a descriptor of which it knows nothing but the name: check what it is before you use it.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from chronetixd.activation import CONTROL, FOREIGN
from chronetixd.notify import RETRY_S, attempt, notify, supervised
from chronetixd.upgrade.bag import Bag, Unbag

MAX_AT_ONCE = 253
"""Descriptors that Linux takes with one message."""

UNLIMITED = 1 << 30
"""Of a supervisor that does not say how many it keeps."""

_NAME = re.compile(r"[!-9;-~]{1,255}")


def push(name: str, descriptors: Iterable[int]) -> bool:
    """Have duplicates of ``descriptors`` kept under ``name`` until :func:`forget`, also when this process dies.

    Whether all were sent; without a supervisor they are not. One that is kept already is not kept twice. They are not
    polled: a pidfd whose process ends stays. Raises ValueError for a name that cannot be one.
    """
    waiting = list(descriptors)
    text = _push(name)
    sent = True
    while waiting:
        some, waiting = waiting[:MAX_AT_ONCE], waiting[MAX_AT_ONCE:]
        sent = notify(text, some) and sent
    return sent


def forget(name: str) -> bool:
    """Have what is kept under ``name`` dropped; whether the supervisor was told."""
    return notify(_forget(name))


def _push(name: str) -> str:
    if not _NAME.fullmatch(name) or name == CONTROL or name.endswith(FOREIGN):
        raise ValueError(f"{name!r} is no name for kept descriptors: 1 to 255 printable characters, no colon, no blank")
    return f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0"


def _forget(name: str) -> str:
    return f"FDSTOREREMOVE=1\nFDNAME={name}"


def barrier() -> int:
    """Ask for a sign that everything sent so far was worked on: the returned descriptor, the caller's to close, shows
    POLLHUP then; without a supervisor at once."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        notify("BARRIER=1", [write])
    finally:
        os.close(write)
    return read


class Store:
    """Pushes and forgets in order, also when there is more of it than the supervisor has read: the rest is sent a
    little later. One descriptor for each name. ``later`` calls a function after so many seconds; ``limit`` is how many
    the supervisor keeps, as systemd tells in $FDSTORE."""

    def __init__(self, later: Callable[[float, Callable[[], None]], object], limit: int = UNLIMITED) -> None:
        self._later = later
        self.room = limit
        """How many more it takes."""
        self._waiting: deque[tuple[str, int]] = deque()
        """Messages, each with a descriptor of ours or -1."""
        self._closed = False

    @property
    def waiting(self) -> int:
        """Changes that the supervisor was not told yet."""
        return len(self._waiting)

    def push(self, name: str, descriptor: int) -> bool:
        """Have a duplicate of ``descriptor`` kept; False when there is nobody to keep it. Raises ValueError as
        :func:`push`, OSError when descriptors have run out."""
        sent = self._tell(_push(name), descriptor)
        self.room -= sent
        return sent

    def take_over(self, count: int) -> None:
        """There are as many in it already."""
        self.room -= count

    def forget(self, name: str) -> bool:
        """Have it dropped; False when there is nobody."""
        sent = self._tell(_forget(name), -1)
        self.room += sent
        return sent

    def packed(self, bag: Bag) -> list[tuple[str, int]]:
        """What waits."""
        return [(text, bag.put(fd) if fd >= 0 else -1) for text, fd in self._waiting]

    def unpack(self, packed: Iterable[tuple[str, int]], bag: Unbag) -> None:
        """The inverse."""
        self._waiting.extend((text, bag.take(fd) if fd >= 0 else -1) for text, fd in packed)
        if self._waiting:
            self._later(RETRY_S, self._go_on)

    def close(self) -> None:
        """Nothing more is sent; what waits is given up. Idempotent."""
        self._closed = True
        for _, fd in self._waiting:
            if fd >= 0:
                os.close(fd)
        self._waiting.clear()

    def _tell(self, text: str, fd: int) -> bool:
        if self._closed or not supervised():
            return False
        if not self._waiting:
            sent = _sent(text, fd)
            if sent is not None:
                return sent
            self._later(RETRY_S, self._go_on)
        self._waiting.append((text, os.dup(fd) if fd >= 0 else -1))
        return True

    def _go_on(self) -> None:
        while self._waiting:
            text, fd = self._waiting[0]
            if _sent(text, fd) is None:
                self._later(RETRY_S, self._go_on)
                return
            self._waiting.popleft()
            if fd >= 0:
                os.close(fd)


def _sent(text: str, fd: int) -> bool | None:
    """Whether it went; None when it may go later."""
    return attempt(text, [fd] if fd >= 0 else [])


def limit_of(env: Mapping[str, str]) -> int:
    """How many descriptors the supervisor says that it keeps."""
    told = env.get("FDSTORE", "")
    return int(told) if told.isascii() and told.isdecimal() and len(told) < 10 else UNLIMITED
