"""Closing what may wait: off the loop, in threads, so that one that waits keeps neither the loop nor the others.

For what the daemon's own workers have sent: strangers' descriptors never come this far (:mod:`chronetixd.inspection`).
Memory and doorbells are closed at once. The rest, and a socket whose unread bytes may bring such along, goes to a
thread; at most MOST wait at a time, what is more waits for one of them. The end of the process interrupts a socket that
lingers; only a FUSE file whose server does not answer can hold it up.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence

from chronetixd.inspector import harmless
from chronetixd.output import waiting

MOST = 16
"""Threads at a time."""

_lock = threading.Lock()
_todo: deque[Callable[[], None]] = deque()
_threads = 0


def close(*descriptors: int) -> None:
    """Close descriptors that a worker has sent; never waits."""
    for fd in descriptors:
        if harmless(fd):
            os.close(fd)
        else:
            _elsewhere(lambda fd=fd: os.close(fd))  # type: ignore[misc]


def close_all(descriptors: Sequence[int]) -> None:
    """As :func:`close`."""
    close(*descriptors)


def close_socket(sock: socket.socket) -> None:
    """Close a worker's socket; never waits for what its unread bytes bring along. (It is not shut down before: an image
    that takes over, and cannot, closes duplicates.)"""
    if waiting(sock.fileno()):
        _elsewhere(sock.close)
    else:
        sock.close()


def _elsewhere(close: Callable[[], None]) -> None:
    global _threads
    with _lock:
        _todo.append(close)
        if _threads >= MOST:
            return
        _threads += 1
    threading.Thread(target=_work, name="closer", daemon=True).start()


def _work() -> None:
    global _threads
    while True:
        with _lock:
            if not _todo:
                _threads -= 1
                return
            close = _todo.popleft()
        close()
