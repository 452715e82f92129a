"""Notifies the service manager that set $NOTIFY_SOCKET (systemd's sd_notify protocol): ready, stopping, descriptors.

Rules: nothing is sent without a service manager; sending never blocks; a message that cannot be sent is logged, once
until a message is sent again. The service manager's queue is short (net.unix.max_dgram_qlen): messages that find no
room are sent a little later, in order. Only the watchdog's messages are not queued behind others
(:mod:`chronetixd.systemd.watchdog`), because a late one is of no use.
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
"""How long to wait before sending again to a service manager whose queue is full."""

_BUSY = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)

_broken = False


def supervised() -> bool:
    """Whether a service manager has asked for notifications."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(message: str, descriptors: Sequence[int] = ()) -> bool:
    """Send ``message``, one or several lines such as ``READY=1``, and return whether it was sent."""
    global _broken
    if not supervised():
        return False
    try:
        send(message, descriptors)
    except OSError as reason:
        if not _broken:
            log = structlog.get_logger("chronetixd")
            log.warning("the service manager could not be notified", text=message, why=str(reason))
        _broken = True
        return False
    _broken = False
    return True


def send(message: str, descriptors: Sequence[int] = ()) -> None:
    """Send as :func:`notify` does; $NOTIFY_SOCKET must be set. Raises OSError: EAGAIN when the service manager's queue
    is full."""
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = "\0" + address[1:]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendmsg([message.encode()], rights, 0, address)


class ServiceManager:
    """The service manager, to which messages are sent in order; they are queued here while its own queue is full.
    ``later`` calls a function after a number of seconds."""

    def __init__(self, later: Callable[[float, Callable[[], None]], object]) -> None:
        self._later = later
        self._waiting: deque[tuple[str, int]] = deque()
        """Queued messages, each with a duplicate of its descriptor or -1."""
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many messages are queued."""
        return len(self._waiting)

    def tell(self, text: str, descriptor: int = -1) -> bool:
        """Send or queue ``text``, with a duplicate of ``descriptor`` unless that is -1. Return False when there is no
        service manager, or it cannot be reached. Raises OSError when descriptors have run out."""
        if self._closed or not supervised():
            return False
        if not self._waiting:
            sent = _attempt(text, descriptor)
            if sent is not None:
                return sent
            self._later(RETRY_S, self._resume)
        self._waiting.append((text, os.dup(descriptor) if descriptor >= 0 else -1))
        return True

    def ready(self, status: str) -> None:
        """Notify that the daemon is ready, or that a reload has ended."""
        self.tell(f"READY=1\nSTATUS={_line(status)}\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        """Notify that the configuration is being read again, or that another image takes over; :meth:`ready` ends
        this."""
        self.tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """Notify that the daemon is stopping."""
        self.tell(f"STOPPING=1\nSTATUS={_line(status)}")

    def extend_timeout(self, seconds: float, status: str) -> None:
        """Ask the service manager to wait at least ``seconds`` longer for the start or the end of the daemon."""
        self.tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}\nSTATUS={_line(status)}")

    def status(self, text: str) -> None:
        """Send the status, one line for people."""
        self.tell(f"STATUS={_line(text)}")

    def packed(self, bag: Bag) -> list[tuple[str, int]]:
        """Return the queued messages for a snapshot, and add their descriptors to ``bag``."""
        return [(text, bag.put(fd) if fd >= 0 else -1) for text, fd in self._waiting]

    def unpack(self, packed: Iterable[tuple[str, int]], bag: Unbag) -> None:
        """Queue the messages of a snapshot again. Raises OSError when descriptors have run out."""
        self._waiting.extend((text, bag.take(fd) if fd >= 0 else -1) for text, fd in packed)
        if self._waiting:
            self._later(RETRY_S, self._resume)

    def close(self) -> None:
        """Drop the queued messages and send no further ones. Idempotent."""
        self._closed = True
        for _, fd in self._waiting:
            if fd >= 0:
                os.close(fd)
        self._waiting.clear()

    def _resume(self) -> None:
        while self._waiting:
            text, fd = self._waiting[0]
            if _attempt(text, fd) is None:
                self._later(RETRY_S, self._resume)
                return
            self._waiting.popleft()
            if fd >= 0:
                os.close(fd)


def _attempt(text: str, fd: int) -> bool | None:
    """Send a message and return whether it was sent; None if it may be sent later, because the queue is full."""
    descriptors = [fd] if fd >= 0 else []
    try:
        send(text, descriptors)
    except OSError as reason:
        return None if reason.errno in _BUSY else notify(text, descriptors)
    return True


def _line(text: str) -> str:
    return " ".join(text.split())
