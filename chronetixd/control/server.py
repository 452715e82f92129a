"""The control socket: a Unix stream socket on which clients connect, made here or handed over by the supervisor.

A socket file that nobody listens on is a dead daemon's and is replaced; a live one, or anything that is no socket, is
left alone and refused. The file is removed at the end if it is still ours; a socket that was handed over stays, and
with it the clients that wait in its queue for the next daemon. Who has just connected cannot send descriptors along.
The file's mode is 0660, or 0666 where others than its group have rights: who may do what is decided by credentials.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from chronetix.protocol.errors import ChronetixError, error
from chronetixd.linux.exhaustion import AGAIN_S, wanting
from chronetixd.loop.inspection import pass_rights
from chronetixd.packing import Bag, Packed, Unbag

BACKLOG = 128

OnClient = Callable[[socket.socket], None]


class PackedServer(Packed, frozen=True):
    """The control socket. ``inode`` is 0 for one that the supervisor made."""

    fd: int
    path: str
    inode: int


class Server:
    """Listens on ``path`` and hands each accepted, non-blocking socket to ``on_client``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path, on_client: OnClient) -> None:
        self._loop = loop
        self._path = path
        self._on_client = on_client
        self._sock: socket.socket | None = None
        self._inode = 0
        self._pause: asyncio.TimerHandle | None = None

    def listen(self, inherited: socket.socket | None = None, group: int | None = None) -> None:
        """Begin, on a socket that the supervisor made (:mod:`chronetixd.systemd.activation`) or on one of our own,
        which is given to ``group``. Raises ChronetixError ``socket-in-use`` or ``socket-unusable``."""
        if inherited is not None:
            inherited.setblocking(False)
            self._sock = inherited
            self._path = Path(inherited.getsockname())
        else:
            try:
                _make_folder(self._path.parent)
                _remove_stale(self._path)
                self._sock = _bind(self._path)
                if group is not None:
                    os.chown(self._path, -1, group)
            except OSError as reason:
                self._drop()
                raise _unusable(self._path, reason.strerror or str(reason)) from None
            self._inode = os.stat(self._path).st_ino
        pass_rights(self._sock, False)
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def packed(self, bag: Bag) -> PackedServer:
        """The socket that is listened on."""
        assert self._sock is not None
        return PackedServer(fd=bag.put(self._sock.fileno()), path=str(self._path), inode=self._inode)

    def unpack(self, packed: PackedServer, bag: Unbag) -> None:
        """The inverse; nobody is accepted before :meth:`go_on`. Raises OSError, ValueError."""
        self._sock = socket.socket(fileno=bag.take(packed.fd))
        self._path, self._inode = Path(packed.path), packed.inode

    def hold(self) -> None:
        """Accept nobody until :meth:`go_on`: who connects waits."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())

    def go_on(self) -> None:
        """Accept who waits, and who comes."""
        self._resume()

    @property
    def path(self) -> Path:
        """Where clients connect."""
        return self._path

    @property
    def inherited(self) -> bool:
        """The supervisor made the socket."""
        return self._sock is not None and not self._inode

    @property
    def group(self) -> int:
        """The group that the socket's file belongs to."""
        return os.stat(self._path).st_gid

    def open_to_all(self, everyone: bool) -> None:
        """Let everyone connect, or only owner and group. Of a socket that was handed over, its unit decides."""
        if self._inode:
            self._path.chmod(0o666 if everyone else 0o660)

    def close(self) -> None:
        """Take no more clients and remove the socket's file if it is still ours. Idempotent."""
        if self._sock is None:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._drop()

    def _drop(self) -> None:
        if self._sock is None:
            return
        self._sock.close()
        self._sock = None
        with suppress(FileNotFoundError):
            if self._inode and os.stat(self._path).st_ino == self._inode:
                self._path.unlink()

    def _accept(self) -> None:
        assert self._sock is not None
        try:
            client, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as reason:
            if not wanting(reason):
                raise
            structlog.get_logger("chronetixd.control.server").error(
                "no more clients can be accepted now", reason=str(reason)
            )
            self._loop.remove_reader(self._sock.fileno())
            self._pause = self._loop.call_later(AGAIN_S, self._resume)
            return
        client.setblocking(False)
        self._on_client(client)

    def _resume(self) -> None:
        self._pause = None
        if self._sock is not None:
            self._loop.add_reader(self._sock.fileno(), self._accept)


def _make_folder(folder: Path) -> None:
    """Make the socket's folder. One in a place where everyone may make folders, as /tmp, must be ours alone: whoever
    owns it could put a socket of his own into it. Raises OSError."""
    with suppress(FileExistsError):
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shared = folder.parent.stat().st_mode & stat.S_IWOTH
        folder.mkdir(mode=0o700 if shared else 0o755)
    if folder.parent.stat().st_mode & stat.S_IWOTH and folder.parent != folder:
        found = folder.lstat()
        if found.st_uid not in (0, os.geteuid()) or not stat.S_ISDIR(found.st_mode):
            raise PermissionError(errno.EPERM, f"its folder {folder} belongs to user {found.st_uid}")


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
            structlog.get_logger("chronetixd.control.server").info("a stale socket was replaced", socket=str(path))
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
