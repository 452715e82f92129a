"""Standard error as a stream that never waits for its reader, so that an unread log does not hold up the daemon.

A write into a pipe waits once 64 KiB are in it, and a write to a terminal waits after Ctrl-S. Rules:

* a write passes as many bytes to the kernel as it takes at once, and keeps up to MAX_PENDING bytes for the next write;
* a line for which there is no room is lost as a whole and counted; ``take_lost`` returns how many were lost.

The descriptor's O_NONBLOCK is not changed, because other processes share it.
"""

from __future__ import annotations

import os
import select
import socket
import stat

MAX_PENDING = 64 * 1024

ERROR = 2
"""The descriptor of standard error."""


class UnblockedStream:
    """Writes text to ``fd``, which the caller owns and closes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = bytearray()
        self._lost = 0
        self._ready = select.poll()
        self._ready.register(fd, select.POLLOUT)
        # A pipe that is ready takes PIPE_BUF bytes without waiting, pipe(7). A terminal may have room for less.
        self._at_once = 64 if os.isatty(fd) else select.PIPE_BUF
        self._is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._fd)

    def write(self, line: str) -> None:
        """Write the kept bytes and ``line``; keep ``line`` if the kernel does not take it now, or drop it if there is
        no room. Raises OSError if the reader is gone; ``line`` is lost then."""
        self.flush()
        data = line.encode(errors="backslashreplace")
        if self._pending and len(self._pending) + len(data) > MAX_PENDING:
            self._lost += 1
            return
        self._pending += data
        self.flush()

    def flush(self) -> None:
        """Write as many of the kept bytes as the kernel takes now. Raises OSError if the reader is gone; the kept lines
        are lost then."""
        try:
            while self._pending and self._ready.poll(0):
                del self._pending[: self._hand_over(bytes(self._pending[: self._at_once]))]
        except BlockingIOError:
            return
        except OSError:
            self._lost += self._pending.count(b"\n")
            self._pending.clear()
            raise

    def take_lost(self) -> int:
        """Return the number of lines lost since the last call, and reset it; 0 while bytes are still kept, because
        there is no room for a line that reports the loss."""
        if self._pending:
            return 0
        lost, self._lost = self._lost, 0
        return lost

    def _hand_over(self, data: bytes) -> int:
        if not self._is_socket:
            return os.write(self._fd, data)
        with socket.socket(fileno=os.dup(self._fd)) as sock:
            return sock.send(data, socket.MSG_DONTWAIT)
