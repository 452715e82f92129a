"""The control socket: a Unix stream socket on which clients connect, made here or handed over by the service manager.

Rules: a socket file without a listener is a dead daemon's and is replaced; a socket with a listener, and a file that is
no socket, is refused and left alone. The file is removed at the end if this daemon made it. A socket that was handed
over stays, and with it the clients that wait in its queue for the next daemon. A new connection cannot send
descriptors. The file's mode is 0660, or 0666 if users outside of its group have rights: the daemon decides by
credentials. A socket file that another program removes, for example one that cleans /tmp, is made anew, and no client
is disconnected.
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
from typing import Any

import structlog

from chronetix.protocol.errors import ChronetixError, error
from chronetixd.linux.exhaustion import AGAIN_S, wanting
from chronetixd.linux.removal import RemovalWatch
from chronetixd.loop.inspection import pass_rights
from chronetixd.packing import Bag, Packed, Unbag

BACKLOG = 128

OnClient = Callable[[socket.socket], None]


class PackedServer(Packed, frozen=True):
    """The control socket in a snapshot. ``inode`` is 0 for a socket that the service manager made. For a file that the
    daemon made and may make anew, ``given_to`` is its group, and ``everyone`` tells whether every user may connect."""

    fd: int
    path: str
    inode: int
    given_to: int | None = None
    everyone: bool = False


class Server:
    """Listens on ``path`` and hands each accepted, non-blocking socket to ``on_client``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path, on_client: OnClient) -> None:
        self._loop = loop
        self._path = path
        self._on_client = on_client
        self._sock: socket.socket | None = None
        self._inode = 0
        self._given_to: int | None = None
        self._group = -1
        self._everyone = False
        self._trouble = ""
        self._pause: asyncio.TimerHandle | None = None
        self._watch: RemovalWatch | None = None

    def listen(self, inherited: socket.socket | None = None, group: int | None = None) -> None:
        """Begin to listen: on ``inherited``, which the service manager made (:mod:`chronetixd.systemd.activation`), or
        on a new socket whose file is given to ``group``. Raises ChronetixError ``socket-in-use`` or
        ``socket-unusable``."""
        if inherited is not None:
            inherited.setblocking(False)
            self._path = Path(inherited.getsockname())
            self._begin(inherited)
        else:
            self._given_to = group
            self._begin(self._make())
            self._watch_file()

    def _make(self) -> socket.socket:
        """Make a socket bound to the path and return it. Raises ChronetixError, and nothing has changed then."""
        try:
            _make_folder(self._path.parent)
            _remove_stale(self._path)
            made = _bind(self._path)
        except OSError as reason:
            raise _unusable(self._path, reason.strerror or str(reason)) from None
        try:
            if self._given_to is not None:
                os.chown(self._path, -1, self._given_to)
            self._inode = os.stat(self._path).st_ino
            self.open_to_all(self._everyone)
        except OSError as reason:
            made.close()
            with suppress(FileNotFoundError):
                self._path.unlink()
            raise _unusable(self._path, reason.strerror or str(reason)) from None
        return made

    def _begin(self, sock: socket.socket) -> None:
        """Accept clients on ``sock``."""
        self._sock = sock
        pass_rights(sock, False)
        self._loop.add_reader(sock.fileno(), self._accept)

    # -- a socket file that another program removes -----------------------------------------------------------

    def renew(self) -> None:
        """Make the socket's file anew if it is gone; another file in its place is left alone. Does nothing for a socket
        that was handed over, whose file the service manager makes. Raises ChronetixError ``socket-in-use``,
        ``socket-unusable``."""
        if self._sock is None or not self._inode or self._is_there():
            return
        made, former = self._make(), self._sock
        self._take_waiting(former)
        self._begin(made)
        self._watch_file()
        _log().warning("the control socket was removed, and was made anew", socket=str(self._path))

    def _is_there(self) -> bool:
        try:
            return os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _take_waiting(self, former: socket.socket) -> None:
        """Accept the clients that wait on a socket whose file is gone, and close it."""
        self._loop.remove_reader(former.fileno())
        with former, suppress(OSError):
            while True:
                client, _ = former.accept()
                client.setblocking(False)
                self._on_client(client)

    def _watch_file(self) -> None:
        """Watch the socket's file by inotify. Without inotify, or beyond its limits, only a reload makes the file
        anew."""
        self._unwatch()
        try:
            self._watch = RemovalWatch(self._loop, self._path.parent, self._renew_if_possible)
        except OSError as reason:
            text = "the control socket's file is not watched: if it is removed, a reload makes it anew"
            _log().warning(text, reason=str(reason))

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _renew_if_possible(self) -> None:
        """Make the file anew if it is gone, and log a failure once for each reason: other files in its folder may
        change often."""
        told, self._trouble = self._trouble, ""
        try:
            self.renew()
        except ChronetixError as reason:
            self._trouble = reason.message
            if told != reason.message:
                _log().error("the control socket was removed, and cannot be made anew", reason=reason.message)

    def packed(self, bag: Bag) -> PackedServer:
        """Return the listening socket for a snapshot, and add its descriptor to ``bag``."""
        assert self._sock is not None
        return PackedServer(
            fd=bag.put(self._sock.fileno()),
            path=str(self._path),
            inode=self._inode,
            given_to=self._given_to,
            everyone=self._everyone,
        )

    def unpack(self, packed: PackedServer, bag: Unbag) -> None:
        """Take over the socket of a snapshot; no connection is accepted before :meth:`resume`. Raises OSError,
        ValueError."""
        self._sock = socket.socket(fileno=bag.take(packed.fd))
        self._path, self._inode = Path(packed.path), packed.inode
        self._given_to, self._everyone = packed.given_to, packed.everyone

    def hold(self) -> None:
        """Accept no connection until :meth:`resume`; new clients wait in the socket's queue."""
        self._unwatch()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())

    def resume(self) -> None:
        """Accept connections again, those that wait first."""
        self._resume()
        if self._inode:
            self._watch_file()
            self._renew_if_possible()

    @property
    def path(self) -> Path:
        """The path of the socket's file."""
        return self._path

    @property
    def inherited(self) -> bool:
        """Whether the service manager made the socket."""
        return self._sock is not None and not self._inode

    @property
    def group(self) -> int:
        """The group of the socket's file; the last known one if the file is gone."""
        with suppress(FileNotFoundError):
            self._group = os.stat(self._path).st_gid
        return self._group

    def open_to_all(self, everyone: bool) -> None:
        """Let every user connect, or only owner and group. Does nothing to a socket that was handed over: its unit sets
        the mode."""
        self._everyone = everyone
        if self._inode:
            self._path.chmod(0o666 if everyone else 0o660)

    def close(self) -> None:
        """Accept no more clients, and remove the socket's file if this daemon made it. Idempotent."""
        if self._sock is None:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._drop()

    def _drop(self) -> None:
        self._unwatch()
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
            _log().error("no more clients can be accepted now", reason=str(reason))
            self._loop.remove_reader(self._sock.fileno())
            self._pause = self._loop.call_later(AGAIN_S, self._resume)
            return
        client.setblocking(False)
        self._on_client(client)

    def _resume(self) -> None:
        self._pause = None
        if self._sock is not None:
            self._loop.add_reader(self._sock.fileno(), self._accept)


def _log() -> Any:
    return structlog.get_logger("chronetixd.control.server")


def _make_folder(folder: Path) -> None:
    """Make the socket's folder. Below a folder that everyone may write to, as /tmp, it must belong to root or to the
    daemon's user, because its owner could put another socket into it. Raises OSError."""
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
    """Remove the socket of a daemon that has ended. Raises ChronetixError ``socket-in-use`` when a process listens on
    it, ``socket-unusable`` for a file that is no socket, OSError."""
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
            _log().info("a stale socket was replaced", socket=str(path))
            return
        except BlockingIOError:
            raise error("socket-in-use", socket=str(path), pid=None) from None  # its queue is full
        raise error("socket-in-use", socket=str(path), pid=_listener(probe))


def _listener(probe: socket.socket) -> int | None:
    """Return the pid of the process that listens at the other end of ``probe``; None if it is in another pid
    namespace."""
    pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid or None


def _unusable(path: Path, reason: str) -> ChronetixError:
    return error("socket-unusable", socket=str(path), reason=reason)
