"""Closing descriptors that may make the closer wait: in threads, so that a close that waits stops neither the loop nor
other closes.

This is for descriptors that the daemon's own workers have sent, and for the memory that an ended flow leaves;
descriptors of strangers are never received here (:mod:`chronetixd.loop.inspection`). Small memory is closed at once.
Closing the last descriptor of LARGE memory frees its pages, which takes a second for a gigabyte; so a thread closes it.
A thread also closes descriptors that may wait: those of any other kind, and sockets whose unread bytes may bring
descriptors along. At most MOST closes run at a time; others wait for one of these. The end of the process interrupts a
socket that lingers; only a FUSE file whose server does not answer can hold it up.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from chronetixd.linux.pipes import waiting
from chronetixd.loop.inspector import harmless

MOST = 16
"""How many threads close at a time."""

LARGE = 4 * 1024 * 1024
"""From how many bytes on memory is closed in a thread: freeing so much takes milliseconds."""

_lock = threading.Lock()
_todo: deque[Callable[[], None]] = deque()
_threads = 0


def close(*descriptors: int) -> None:
    """Close descriptors that a worker has sent. Never waits."""
    for fd in descriptors:
        if harmless(fd):
            close_memory(fd)
        else:
            _elsewhere(partial(os.close, fd))


def close_memory(*descriptors: int) -> None:
    """Close descriptors that are known to be memory or pidfds, and that may be the last ones. Never waits for pages to
    be freed."""
    for fd in descriptors:
        if os.fstat(fd).st_size > LARGE:
            _elsewhere(partial(os.close, fd))
        else:
            os.close(fd)


def close_all(descriptors: Sequence[int]) -> None:
    """As :func:`close`, for a sequence."""
    close(*descriptors)


def close_own(descriptors: Sequence[int]) -> None:
    """Close descriptors that the daemon has made or checked: memory, and its ends of pipes and sockets."""
    for fd in descriptors:
        os.close(fd)


def beside(close: Callable[[], None]) -> None:
    """Have ``close`` done in a thread: closing large memory, or many descriptors, takes the kernel long."""
    _elsewhere(close)


def close_socket(sock: socket.socket) -> None:
    """Close a worker's socket. Never waits for descriptors in its unread bytes. (The socket is not shut down: an image
    that fails to take over after an exec closes duplicates, and the image before still uses the connection.)"""
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
