"""Closing what may wait: off the loop, in threads, so that one that waits keeps neither the loop nor the others.

For what the daemon's own workers have sent, and for the memory that a flow leaves: strangers' descriptors never come
this far (:mod:`chronetixd.loop.inspection`).
Memory is closed at once, but for LARGE memory: whoever closes the last descriptor of it frees its pages, and of a
gigabyte that takes a second. That goes to a thread, as does what may wait: a descriptor of another kind, or a socket
whose unread bytes may bring one along. At most MOST close at a time, what is more waits for one of them. The end of the
process interrupts a socket that lingers; only a FUSE file whose server does not answer can hold it up.
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
"""Threads at a time."""

LARGE = 4 * 1024 * 1024
"""Bytes of memory that is closed in a thread: freeing as much takes milliseconds."""

_lock = threading.Lock()
_todo: deque[Callable[[], None]] = deque()
_threads = 0


def close(*descriptors: int) -> None:
    """Close descriptors that a worker has sent; never waits."""
    for fd in descriptors:
        if harmless(fd):
            close_memory(fd)
        else:
            _elsewhere(partial(os.close, fd))


def close_memory(*descriptors: int) -> None:
    """Close descriptors that are known to be memory or pidfds, of which these may be the last; never waits
    for their pages to be freed."""
    for fd in descriptors:
        if os.fstat(fd).st_size > LARGE:
            _elsewhere(partial(os.close, fd))
        else:
            os.close(fd)


def close_all(descriptors: Sequence[int]) -> None:
    """As :func:`close`."""
    close(*descriptors)


def close_own(descriptors: Sequence[int]) -> None:
    """Close what we have made or checked, and have sent or not: memory, and our ends of pipes and sockets."""
    for fd in descriptors:
        os.close(fd)


def beside(close: Callable[[], None]) -> None:
    """Have ``close`` done in a thread: what many have left, and what is large, takes the kernel its time."""
    _elsewhere(close)


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
