"""What a supervisor that set $NOTIFY_SOCKET is told (systemd's sd_notify protocol): ready, stopping, status.

Rules: nothing is sent without a supervisor; a message never waits, and one that cannot be sent is logged once until one
goes through again. Its queue is short (net.unix.max_dgram_qlen), and full for a moment while it is sent descriptors.
The watchdog is fed by :mod:`chronetixd.watchdog` alone.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import time
from collections.abc import Sequence

import structlog

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


def attempt(message: str, descriptors: Sequence[int] = ()) -> bool | None:
    """As :func:`notify`; None when the supervisor has too much to read now, and it can be told RETRY_S later."""
    if not supervised():
        return False
    try:
        send(message, descriptors)
    except OSError as reason:
        return None if reason.errno in _BUSY else notify(message, descriptors)
    return True


def send(message: str, descriptors: Sequence[int] = ()) -> None:
    """As :func:`notify`, to a supervisor that is there. Raises OSError: EAGAIN when it has too much to read."""
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = "\0" + address[1:]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendmsg([message.encode()], rights, 0, address)


def ready(status: str) -> bool | None:
    """The daemon is up, or a reload has ended: as :func:`attempt`, for nothing may come of it unless this is heard."""
    return attempt(f"READY=1\nSTATUS={_line(status)}\nMAINPID={os.getpid()}")


def reloading() -> None:
    """The configuration is being read again; :func:`ready` ends it."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping(status: str) -> None:
    """The end has begun."""
    notify(f"STOPPING=1\nSTATUS={_line(status)}")


def extend_timeout(seconds: float, status: str) -> None:
    """Starting or stopping goes on: the supervisor must not give up within ``seconds`` from now."""
    notify(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}\nSTATUS={_line(status)}")


def status(text: str) -> None:
    """One line for people."""
    notify(f"STATUS={_line(text)}")


def _line(text: str) -> str:
    return " ".join(text.split())
