"""Checks which user listens on a control socket, before a client or worker sends anything to it.

In a folder that everyone may write to, any user may have made the socket first. Rules: the kernel tells which user
listens (SO_PEERCRED). Trusted are root, this process's own user, a user that the caller names, and the user to whom
root has given the socket's folder (:func:`heir`).
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
import struct
from pathlib import PurePosixPath

from chronetix.protocol.errors import ChronetixError, error


def listener(sock: socket.socket) -> int:
    """Return the user id of the process that listens at the other end of ``sock``. Raises OSError."""
    _pid, uid, _gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def heir(path: str) -> int | None:
    """Return the user id to whom root has given the folder of ``path``: the owner of the first folder above it that
    does not belong to root. None if all folders belong to root, or if another user could have made that folder or one
    below it."""
    found = None
    for folder in reversed(PurePosixPath(os.path.realpath(path)).parents):
        try:
            status = os.lstat(folder)
        except OSError:
            return None
        others = stat.S_IWOTH | (stat.S_IWGRP if status.st_uid == 0 and status.st_gid != 0 else 0)
        if status.st_mode & others:
            return None
        if status.st_uid != 0:
            if found not in (None, status.st_uid):
                return None
            found = status.st_uid
    return found


def check(sock: socket.socket, path: str, named: str | None = None) -> None:
    """Raise ChronetixError ``server-not-trusted`` unless the user that listens at the other end of ``sock`` is trusted.
    ``path`` is the socket's path; ``named`` is a further trusted user, by name or number. Raises OSError."""
    found = listener(sock)
    own = os.geteuid()
    if found in (0, own) or (named and found == _user(named, path)) or found == heir(path):
        return
    raise error("server-not-trusted", socket=path, uid=found, own=own)


def _user(name: str, path: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise _no_user(name, path) from None


def _no_user(name: str, path: str) -> ChronetixError:
    reason = f"CHRONETIX_DAEMON_USER names {name}, and there is no such user"
    return error("socket-unusable", socket=path, reason=reason)
