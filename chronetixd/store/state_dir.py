"""The daemon's state folder, which only one daemon uses at a time: it holds an flock on ``daemon.pid``.

The lock decides, not the file with the pid: the kernel releases the lock however the daemon ends, so a file that a
crash left behind does no harm.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from pathlib import Path
from urllib.parse import quote

from chronetix.protocol.errors import error

MAX_NAME = 200
"""The longest name of a node's file in bytes, without its ending; file systems take 255."""


class StateDir:
    """The state folder at ``path``, locked from :meth:`claim` until :meth:`release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def claim(self) -> None:
        """Make the folder (mode 0700) and lock it. Raises ChronetixError ``daemon-already-running`` with the pid of
        the one that has it, ``config-invalid`` when the folder cannot be made or written."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(self.path)
            fd = os.open(self.path / "daemon.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as reason:
            raise self._unusable(reason) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode("ascii", "replace").strip()
            os.close(fd)
            raise error("daemon-already-running", state_dir=str(self.path), pid=pid or "unknown") from None
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as reason:
            os.close(fd)
            raise self._unusable(reason) from None
        self._fd = fd

    def _unusable(self, reason: OSError) -> Exception:
        return error("config-invalid", source=str(self.path), path="state_dir", reason=str(reason))

    @property
    def lock(self) -> int:
        """The descriptor that holds the lock."""
        return self._fd

    def unpack(self, lock: int) -> None:
        """Take over the descriptor ``lock`` of an earlier image, which holds the lock."""
        self._fd = lock

    def release(self) -> None:
        """Release the lock; the file stays, empty. Idempotent."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def _check_owner(folder: Path) -> None:
    """Check that no other user can write to the folder, because the daemon trusts its content. Raises
    PermissionError."""
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, f"it belongs to user {found.st_uid}, and the daemon trusts its content")
    if found.st_mode & stat.S_IWOTH:
        raise PermissionError(errno.EPERM, "everyone may write to it, and the daemon trusts its content (chmod o-w)")


def node_file_name(flow: str, node: str) -> str:
    """Return a file name for ``node`` of ``flow``: readable, unique to the node, and short enough to get an ending."""
    name = f"{quote(flow, safe='')}+{quote(node, safe='')}"
    return name if len(name) <= MAX_NAME else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()}"
