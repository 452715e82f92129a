"""Checks of the folders that the daemon needs, and of the room in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from chronetixd.doctor import Finding, Surroundings, check, failure, passed, warning

LITTLE = 64 * 1024 * 1024
"""Free bytes on a disk below which a journal or an audit log may soon fail to be written."""


@check("folders", "state folder")
def state_folder(place: Surroundings) -> Finding:
    """Check that the state folder exists and is writable, or can be made."""
    path = Path(place.settings.state_dir)
    problem = _problem(path)
    cure = f"make {path} a folder of user {os.geteuid()}, or choose another with --state-dir"
    return failure(f"{path}: {problem}", cure) if problem else passed(str(path))


@check("folders", "control socket")
def socket_place(place: Surroundings) -> Finding:
    """Check that the control socket exists, or can be made."""
    path = Path(place.settings.socket)
    cure = f"remove {path}, or choose another path with --socket"
    if _there(path) and not stat.S_ISSOCK(path.lstat().st_mode):
        return failure(f"{path} exists and is no socket", cure)
    problem = "" if _there(path) else _problem(path.parent)
    if problem:
        return failure(f"{path}: {problem}", f"make {path.parent} a folder of user {os.geteuid()}, or use --socket")
    return passed(str(path))


@check("folders", "room on the disk")
def state_room(place: Surroundings) -> Finding:
    """Check that the disk of the state folder has room for what the daemon writes."""
    found = os.statvfs(_nearest(Path(place.settings.state_dir)))
    free = found.f_bavail * found.f_frsize
    detail = f"{free >> 20} MiB, {found.f_favail} files free"
    if free < LITTLE or (found.f_files > 0 and found.f_favail < 1000):
        return warning(detail, "make room: on a full disk submissions are refused and audit records are lost")
    return passed(detail)


@check("folders", "journal")
def journal(place: Surroundings) -> Finding:
    """Check that the journal has everything that the next daemon has to know."""
    if trouble := place.facts.get("journal_trouble"):
        cure = "make room on the disk of the state folder; until then a crash would lose what the journal lacks"
        return failure(trouble, cure)
    return passed("complete" if "journal_trouble" in place.facts else "no daemon writes one")


@check("folders", "audit log")
def audit(place: Surroundings) -> Finding:
    """Check that no audit record was lost."""
    lost = place.facts.get("audit_lost", 0)
    if lost:
        return warning(f"{lost} records could not be written", "make room on the disk of the state folder")
    return passed("nothing was lost" if "audit_lost" in place.facts else "no daemon writes one")


def _there(path: Path) -> bool:
    """Whether ``path`` exists and this user may see it."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _nearest(path: Path) -> Path:
    while not _there(path):
        path = path.parent
    return path


def _problem(path: Path) -> str:
    nearest = _nearest(path)
    if not nearest.is_dir():
        return f"{nearest} is no folder"
    if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
        return f"{nearest} is not writable for user {os.geteuid()}"
    return ""
