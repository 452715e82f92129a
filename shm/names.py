"""Named shared memory, which is used where the kernel has no sealed anonymous memory (``shm.missing_features()``).

Rules: a name says who made it (boot, PID namespace, process, when that one started, a number; see ``named.h``); its
maker takes it away; what a killed maker has left, :func:`sweep` takes away, and never what belongs to a living process,
to another user, or to a namespace whose processes cannot be seen from here.

Names are POSIX's, and removed by posix_ipc. Making is C's (``named.h``, ``memory.h``): the maker also reserves, maps
and guards, and an arena makes its next segment in the middle of a send. Opening is not posix_ipc's either: with the
interpreter's lock held it waits for a writer where somebody has put a pipe in place of the memory.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import NamedTuple

import posix_ipc

FOLDER = Path("/dev/shm")
_NAME = re.compile(r"chronetix-([0-9a-f]+)-(\d+)-(\d+)-(\d+)-\d+")


class Maker(NamedTuple):
    """Who made a named memory. ``started`` is in clock ticks after boot."""

    boot: str
    namespace: int
    pid: int
    started: int


def maker(name: str) -> Maker | None:
    """Who made the object of that name; None when it is none of ours."""
    match = _NAME.fullmatch(name)
    return match and Maker(match[1], int(match[2]), int(match[3]), int(match[4]))


def locate(fd: int) -> str:
    """Where another process of the same user can open the memory ``fd`` to read, one that cannot receive descriptors.

    A file in /dev/shm, or an entry in this process's folder in /proc: valid as long as this process has it.
    """
    target = os.readlink(f"/proc/self/fd/{fd}")
    return target if target.startswith(f"{FOLDER}/") else f"/proc/{os.getpid()}/fd/{fd}"


def open_memory(path: str) -> int:
    """A descriptor of the memory at ``path``, for ``link``, ``add_segment`` and ``check``, which look at what it is.

    The caller closes it. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def sweep() -> list[str]:
    """Take away what dead processes have left in /dev/shm; the names. Raises OSError where that is forbidden."""
    return [name for name in abandoned() if _removed(name)]


def abandoned() -> list[str]:
    """Names of what dead processes have left in /dev/shm, also those that are not ours to take away."""
    try:
        names = os.listdir(FOLDER)
    except FileNotFoundError:
        return []
    return [name for name in names if _abandoned(name)]


def _abandoned(name: str) -> bool:
    made_by = maker(name)
    if made_by is None:
        return False
    if made_by.boot != _boot():
        return True
    return made_by.namespace == _namespace() and _started(made_by.pid) != made_by.started


def _removed(name: str) -> bool:
    try:
        if (FOLDER / name).lstat().st_uid != os.geteuid():
            return False
        posix_ipc.unlink_shared_memory(f"/{name}")
    except (FileNotFoundError, posix_ipc.ExistentialError):  # another sweep was there first
        return False
    except posix_ipc.PermissionsError as refused:
        raise PermissionError(errno.EACCES, str(refused), str(FOLDER / name)) from refused
    return True


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().partition("-")[0]


def _namespace() -> int:
    return int(os.readlink("/proc/self/ns/pid")[len("pid:[") : -1])


def _started(pid: int) -> int | None:
    """When the living process ``pid`` started; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
