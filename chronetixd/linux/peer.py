"""The process at the other end of a Unix socket, and the access rules with their names looked up.

The kernel records the credentials when the peer connects: the peer cannot change them later. SO_PEERCRED shows only the
primary group, SO_PEERGROUPS the supplementary ones.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
import socket
import struct
from collections.abc import Sequence

from chronetix.protocol.errors import error
from chronetixd.core.access import Peer, Right, Rules, strongest
from chronetixd.linux import proc

SO_PEERGROUPS = 59
SO_PEERPIDFD = 77
_libc = ctypes.CDLL(None, use_errno=True)
EVERYONE = "*"


def peer_of(sock: socket.socket) -> Peer:
    """Return the process, user and groups that connected ``sock``. Raises OSError for a socket that is not
    connected."""
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid, gid, frozenset((gid, *_groups(sock))), program_of(pid))


def pidfd_of(sock: socket.socket, peer: Peer, since_ns: int) -> int:
    """Return a pidfd of the process that connected ``sock``, which belongs to the caller. Raises ProcessLookupError if
    that process has ended, or is in a pid namespace that this process does not see.

    Linux 6.5 and later keep the process itself with the socket. Before that there is only its number, which could be
    another process's by now. That process would have started after the peer has connected, and so probably after
    ``since_ns`` (CLOCK_BOOTTIME), when the connection was accepted: such a process is refused.
    """
    if peer.pid <= 0:
        raise ProcessLookupError(errno.ESRCH, "its process is in another pid namespace")
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as reason:
        if reason.errno != errno.ENOPROTOOPT:
            raise ProcessLookupError(errno.ESRCH, "its process has ended") from None
    pidfd = os.pidfd_open(peer.pid)
    found = proc.stat(peer.pid)
    if found is None or found.started * (1_000_000_000 // os.sysconf("SC_CLK_TCK")) > since_ns:
        os.close(pidfd)
        raise ProcessLookupError(errno.ESRCH, "its process has ended")
    return pidfd


def _groups(sock: socket.socket) -> Sequence[int]:
    """Return the peer's supplementary groups. They may take more than the kilobyte that Python's getsockopt accepts."""
    size = ctypes.c_uint32(4 * 64)
    while True:
        groups = (ctypes.c_uint32 * (size.value // 4))()
        if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, groups, ctypes.byref(size)) == 0:
            return groups[: size.value // 4]
        number = ctypes.get_errno()
        if number != errno.ERANGE:
            raise OSError(number, os.strerror(number))
        # the kernel has written the needed size into ``size``


def program_of(pid: int) -> str:
    """Return the name of a process's program; empty if the process is gone or invisible (another pid namespace)."""
    if pid <= 0:
        return ""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def user_name(uid: int) -> str:
    """Return the user's name, or the number as text for a user without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_id(name: str, setting: str) -> int:
    """Return the number of the group ``name``, which may be a number itself. Raises ChronetixError ``config-invalid``,
    which names ``setting``, for an unknown name."""
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise error("config-invalid", source=setting, path=setting, reason=f"there is no group {name}") from None


def _user_id(name: str, setting: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        text = f"there is no user {name} (a group is written @{name})"
        raise error("config-invalid", source=setting, path=setting, reason=text) from None


def look_up_rules(owner: int, socket_group: int | None, allow: dict[str, Sequence[str] | None]) -> Rules:
    """Return the access rules that the settings ``allow_read``, ``allow_operate`` and ``allow_admin`` make.

    Each lists users (``ann``, ``1000``), groups (``@staff``, ``@50``) or everyone (``*``, not for admin). Where
    ``allow_operate`` is not set, the group ``socket_group`` may operate. Raises ChronetixError ``config-invalid`` for
    an unknown user or group.
    """
    users: list[tuple[int, Right]] = []
    groups: list[tuple[int, Right]] = []
    everyone = Right.NONE
    for right in (Right.READ, Right.OPERATE, Right.ADMIN):
        setting = f"allow_{right}"
        for name in allow[setting] or ():
            if name == EVERYONE:
                if right is Right.ADMIN:
                    text = "not everyone can be an admin: name users or @groups"
                    raise error("config-invalid", source=setting, path=setting, reason=text)
                everyone = right
            elif name.startswith("@"):
                groups.append((group_id(name[1:], setting), right))
            else:
                users.append((_user_id(name, setting), right))
    if allow["allow_operate"] is None and socket_group is not None:
        groups.append((socket_group, Right.OPERATE))
    return Rules(owner, strongest(users), strongest(groups), everyone)
