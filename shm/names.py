"""Named shared memory, which is used where the kernel has no sealed anonymous memory (``shm.missing_features()``).

Rules: a name tells its maker (boot, PID namespace, process, start time of the process, a number; see ``named.h``). The
maker removes the name. :func:`sweep` removes the names that killed makers have left, and never those of a living
process, of another user, or of a PID namespace whose processes are invisible from here.

posix_ipc removes the names. C code makes them (``named.h``, ``memory.h``), because the maker also reserves, maps and
guards the memory, and an arena makes its next segment in the middle of a send. posix_ipc does not open memories either:
if a pipe is in the memory's place, it waits for a writer while it holds the interpreter's lock.
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
    """The process that made a named memory. ``started`` is in clock ticks after boot."""

    boot: str
    namespace: int
    pid: int
    started: int


def maker(name: str) -> Maker | None:
    """Return the maker of the object ``name``; None if it is no memory of Chronetix."""
    match = _NAME.fullmatch(name)
    return match and Maker(match[1], int(match[2]), int(match[3]), int(match[4]))


def locate(fd: int) -> str:
    """Return the path at which another process of the same user, which cannot receive descriptors, can open the memory
    ``fd`` for reading.

    The path is a file in /dev/shm, or an entry in this process's folder in /proc, which is valid while this process has
    ``fd`` open.
    """
    target = os.readlink(f"/proc/self/fd/{fd}")
    return target if target.startswith(f"{FOLDER}/") else f"/proc/{os.getpid()}/fd/{fd}"


def open_memory(path: str) -> int:
    """Return a descriptor of the memory at ``path``, for ``link``, ``add_segment`` and ``check``, which check what it
    is.

    The caller closes it. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def sweep() -> list[str]:
    """Remove the memories that dead processes have left in /dev/shm, and return their names. Raises OSError if that is
    forbidden."""
    return [name for name in abandoned() if _removed(name)]


def abandoned() -> list[str]:
    """Return the names of memories that dead processes have left in /dev/shm, also those that this user may not
    remove."""
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
    except (FileNotFoundError, posix_ipc.ExistentialError):  # another process has removed it
        return False
    except posix_ipc.PermissionsError as refused:
        raise PermissionError(errno.EACCES, str(refused), str(FOLDER / name)) from refused
    return True


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().partition("-")[0]


def _namespace() -> int:
    return int(os.readlink("/proc/self/ns/pid")[len("pid:[") : -1])


def _started(pid: int) -> int | None:
    """Return the start time of the living process ``pid`` in clock ticks after boot; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
