"""What a supervisor that set $NOTIFY_SOCKET is told (systemd's sd_notify protocol): ready, stopping, what to keep.

Rules: nothing is sent without a supervisor; a message never waits, and one that cannot be sent is logged once until one
goes through again. The supervisor's queue is short (net.unix.max_dgram_qlen): what finds no room there is sent a little
later, in order. The watchdog alone does not wait its turn (:mod:`chronetixd.systemd.watchdog`): a late beat is none.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import structlog

from chronetixd.packing import Bag, Unbag

RETRY_S = 0.02
"""A supervisor that has too much to read is tried again after this."""

_BUSY = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)

_broken = False


def supervised() -> bool:
    """Whether somebody is there to be told."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(message: str, descriptors: Sequence[int] = ()) -> bool:
    """Send ``message`` (such as ``READY=1``, several lines at once if need be); whether it was sent."""
    global _broken
    if not supervised():
        return False
    try:
        send(message, descriptors)
    except OSError as reason:
        if not _broken:
            log = structlog.get_logger("chronetixd")
            log.warning("the supervisor could not be told", text=message, why=str(reason))
        _broken = True
        return False
    _broken = False
    return True


def send(message: str, descriptors: Sequence[int] = ()) -> None:
    """As :func:`notify`, to a supervisor that is there. Raises OSError: EAGAIN when it has too much to read."""
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = "\0" + address[1:]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendmsg([message.encode()], rights, 0, address)


class ServiceManager:
    """Is told everything in order, also when there is more of it than it has read. ``later`` calls a function after so
    many seconds."""

    def __init__(self, later: Callable[[float, Callable[[], None]], object]) -> None:
        self._later = later
        self._waiting: deque[tuple[str, int]] = deque()
        """Messages, each with a descriptor of ours or -1."""
        self._closed = False

    @property
    def waiting(self) -> int:
        """Messages that it has not been sent yet."""
        return len(self._waiting)

    def tell(self, text: str, descriptor: int = -1) -> bool:
        """Send ``text``, with a duplicate of ``descriptor``; False when there is nobody, or it cannot be told. Raises
        OSError when descriptors have run out."""
        if self._closed or not supervised():
            return False
        if not self._waiting:
            sent = _attempt(text, descriptor)
            if sent is not None:
                return sent
            self._later(RETRY_S, self._go_on)
        self._waiting.append((text, os.dup(descriptor) if descriptor >= 0 else -1))
        return True

    def ready(self, status: str) -> None:
        """The daemon is up, or a reload has ended."""
        self.tell(f"READY=1\nSTATUS={_line(status)}\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        """The configuration is being read again, or another image takes over; :meth:`ready` ends it."""
        self.tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self.tell(f"STOPPING=1\nSTATUS={_line(status)}")

    def extend_timeout(self, seconds: float, status: str) -> None:
        """Starting or stopping goes on: it must not give up within ``seconds`` from now."""
        self.tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}\nSTATUS={_line(status)}")

    def status(self, text: str) -> None:
        """One line for people."""
        self.tell(f"STATUS={_line(text)}")

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

    def _go_on(self) -> None:
        while self._waiting:
            text, fd = self._waiting[0]
            if _attempt(text, fd) is None:
                self._later(RETRY_S, self._go_on)
                return
            self._waiting.popleft()
            if fd >= 0:
                os.close(fd)


def _attempt(text: str, fd: int) -> bool | None:
    """Whether it went; None when it may go later."""
    descriptors = [fd] if fd >= 0 else []
    try:
        send(text, descriptors)
    except OSError as reason:
        return None if reason.errno in _BUSY else notify(text, descriptors)
    return True


def _line(text: str) -> str:
    return " ".join(text.split())
