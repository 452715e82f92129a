"""Who may be at the other end of a control socket: whoever connects to a path looks before it says anything.

A path in a folder that everyone may write to leads to whoever was there first. Rules: the kernel tells which user
listens (SO_PEERCRED); believed are root, this process's own user, whom the caller names, and whom root has given the
folder to (:func:`heir`).
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
    """The user who listens where ``sock`` is connected to. Raises OSError."""
    _pid, uid, _gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def heir(path: str) -> int | None:
    """The user to whom root has given the folder of ``path``: the owner of the first folder on the way that is not
    root's, when nobody else could have put it or anything below it there. None if there is none, or somebody could."""
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
    """Raises ChronetixError ``server-not-trusted`` unless whoever listens at ``path``, where ``sock`` is connected to,
    is to be believed; ``named`` is a user, by name or number, who is. Raises OSError."""
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
