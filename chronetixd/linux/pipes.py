"""The pipes of a worker that outlives its daemon: new ones, or those that it has, from which is read on.

What a worker shows is opened anew: the flags of an open file belong to everyone who has it, and a worker that clears
O_NONBLOCK would have the reading thread wait.
"""

from __future__ import annotations

import fcntl
import os
import sys
import termios
from contextlib import ExitStack


def two_pipes() -> tuple[int, int, int, int]:
    """Each as reading and writing end. Raises OSError, and nothing is left open then."""
    first = os.pipe()
    try:
        return *first, *os.pipe()
    except OSError:
        for fd in first:
            os.close(fd)
        raise


def pipes_again(out: int, err: int) -> tuple[int, int, int, int]:
    """The same of two pipes of which these are any ends, which :func:`is_pipe`, and which stay the caller's. Raises
    OSError; nothing is left open then."""
    with ExitStack() as opened:
        found = []
        for fd in (out, err):
            for flags in (os.O_RDONLY | os.O_NONBLOCK, os.O_RDWR):
                found.append(os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC))
                opened.callback(os.close, found[-1])
        opened.pop_all()
    read_out, write_out, read_err, write_err = found
    return read_out, write_out, read_err, write_err


def is_pipe(fd: int) -> bool:
    """A pipe without a name: one that has a name is on somebody's file system, which decides how long anything takes.
    (So it is not asked by fstat, either.)"""
    return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:[")


def waiting(fd: int) -> int:
    """Bytes that could be read from a pipe or stream socket now."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
