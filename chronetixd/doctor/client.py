"""Checks of the way from a client to the daemon: the socket and its rights, whether a daemon answers, its version."""

from __future__ import annotations

import fcntl
import grp
import os
import stat
from pathlib import Path

from chronetix import shm
from chronetix.protocol.messages import PROTOCOL_VERSIONS
from chronetixd.doctor import Finding, Side, Surroundings, check, failure, passed, warning
from chronetixd.linux.peer import user_name


@check("client", "daemon", Side.CLIENT)
def answers(place: Surroundings) -> Finding:
    """Check that a daemon answers, or that none runs."""
    if place.daemon is not None:
        return passed(f"pid {place.daemon['pid']} answers at {place.settings.socket}")
    holder = _lock_holder(Path(place.settings.state_dir))
    if holder:
        what = f"process {holder} has the state folder {place.settings.state_dir}, but at {place.settings.socket}"
        cure = "name its socket with --socket; if it hangs, `kill -ABRT` it and start it again"
        return failure(f"{what} no daemon answers: {place.unreachable}", cure)
    cure = "start it: chronetixctl service install --now, or chronetixd"
    return warning(f"no daemon answers: {place.unreachable}", cure)


def _lock_holder(state: Path) -> str:
    """Return the pid of the process that has locked the state folder; empty if none has, or the lock cannot be read."""
    try:
        fd = os.open(state / "daemon.pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(fd, 32).decode("ascii", "replace").strip() or "?"
    finally:
        os.close(fd)
    return ""


@check("client", "rights of the socket", Side.CLIENT)
def rights(place: Surroundings) -> Finding:
    """Check that this user may connect, and that no other user may replace the socket."""
    path = Path(place.settings.socket)
    try:
        found = path.stat()
    except FileNotFoundError:
        return passed("there is no socket yet")
    except PermissionError:
        return failure(f"user {os.geteuid()} may not enter {path.parent}", _join("its owner's group"))
    group = _group_name(found.st_gid)
    mode = stat.S_IMODE(found.st_mode)
    detail = f"{path} is {mode:04o}, user {user_name(found.st_uid)}, group {group}"
    if not os.access(path, os.W_OK):
        return failure(f"{detail}: this user may not connect", _join(group))
    loose = path.parent.stat()
    if loose.st_mode & stat.S_IWOTH and not loose.st_mode & stat.S_ISVTX:
        cure = f"chmod o-w {path.parent}"
        return warning(f"{detail}; every user may replace it, because {path.parent} is writable for everyone", cure)
    return passed(detail)


def _join(group: str) -> str:
    return f"become a member of {group} (usermod -aG), or run as the daemon's user"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


@check("client", "versions", Side.CLIENT)
def versions(place: Surroundings) -> Finding:
    """Check that daemon and client are of the same release, or at least share a protocol version."""
    if place.daemon is None:
        return passed("there is no daemon to compare with")
    theirs, ours = str(place.daemon["daemon"]), str(place.facts.get("client_version", ""))
    spoken = set(place.daemon["protocol"])
    if not spoken & set(PROTOCOL_VERSIONS):
        detail = f"the daemon speaks protocol {sorted(spoken)}, this program {list(PROTOCOL_VERSIONS)}"
        return failure(detail, "install the same release of both")
    if theirs != ours or place.daemon["abi"] != shm.ABI_VERSION:
        detail = f"the daemon is {theirs} (abi {place.daemon['abi']}), this program {ours} (abi {shm.ABI_VERSION})"
        return warning(detail, "restart the daemon after an upgrade, or run the chronetixctl of its installation")
    return passed(f"{theirs}, protocol {max(spoken)}, abi {shm.ABI_VERSION}")
