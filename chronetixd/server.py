"""The control socket: a Unix stream socket of mode 0660 on which clients connect.

A socket file that nobody listens on is a dead daemon's and is replaced; a live one, or anything that is no socket, is
left alone and refused. The file is removed at the end if it is still ours.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import structlog

from protocol.errors import ChronetixError, error

BACKLOG = 128
ACCEPT_PAUSE_S = 0.2
"""Pause in accepting when descriptors have run out."""

OnClient = Callable[[socket.socket], None]


class Server:
    """Listens on ``path`` and hands each accepted, non-blocking socket to ``on_client``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path, on_client: OnClient) -> None:
        self._loop = loop
        self._path = path
        self._on_client = on_client
        self._sock: socket.socket | None = None
        self._inode = 0
        self._pause: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Begin. Raises ChronetixError ``socket-in-use`` or ``socket-unusable``."""
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _remove_stale(self._path)
            self._sock = _bind(self._path)
        except OSError as reason:
            raise _unusable(self._path, reason.strerror or str(reason)) from None
        self._inode = os.stat(self._path).st_ino
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Take no more clients and remove the socket's file if it is still ours. Idempotent."""
        if self._sock is None:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        self._sock = None
        try:
            if os.stat(self._path).st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            return

    def _accept(self) -> None:
        assert self._sock is not None
        try:
            client, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as reason:
            if reason.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            structlog.get_logger("chronetixd.server").error("no more clients can be accepted now", reason=str(reason))
            self._loop.remove_reader(self._sock.fileno())
            self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._resume)
            return
        client.setblocking(False)
        self._on_client(client)

    def _resume(self) -> None:
        self._pause = None
        if self._sock is not None:
            self._loop.add_reader(self._sock.fileno(), self._accept)


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o117)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def _remove_stale(path: Path) -> None:
    """Remove the socket of a daemon that is no more. Raises ChronetixError ``socket-in-use`` when one lives,
    ``socket-unusable``, OSError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _unusable(path, "there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            structlog.get_logger("chronetixd.server").info("a stale socket was replaced", socket=str(path))
            return
        except BlockingIOError:
            raise error("socket-in-use", socket=str(path), pid=None) from None  # its queue is full
        raise error("socket-in-use", socket=str(path), pid=_listener(probe))


def _listener(probe: socket.socket) -> int | None:
    """The process that a connected ``probe`` has reached; None for one of another pid namespace."""
    pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid or None


def _unusable(path: Path, reason: str) -> ChronetixError:
    return error("socket-unusable", socket=str(path), reason=reason)
