"""The output pipes of a worker that outlives its daemon: makes new ones, or opens those that the worker has.

A pipe that a worker shows is opened anew, because all owners of an open file share its flags: a worker that clears
O_NONBLOCK would make the daemon's reading thread wait.
"""

from __future__ import annotations

import fcntl
import os
import sys
import termios
from contextlib import ExitStack


def two_pipes() -> tuple[int, int, int, int]:
    """Make two pipes and return their ends: read and write end of the first, read and write end of the second. Raises
    OSError, and nothing is left open then."""
    first = os.pipe()
    try:
        return *first, *os.pipe()
    except OSError:
        for fd in first:
            os.close(fd)
        raise


def pipes_again(out: int, err: int) -> tuple[int, int, int, int]:
    """Open two pipes anew, of which ``out`` and ``err`` are any ends, and return their ends as :func:`two_pipes` does.
    Both must pass :func:`is_pipe`, and stay the caller's. Raises OSError, and nothing is left open then."""
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
    """Whether ``fd`` is a pipe without a name. A named pipe is on a file system that decides how long a call takes, so
    this function does not call fstat, either."""
    return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:[")


def waiting(fd: int) -> int:
    """Return how many bytes can be read from a pipe or stream socket now."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
