"""Reads /proc: a process's identity, its parent and children, and what it holds that a worker has passed on to it.

A process may end between any two reads: for a process that is gone, or that may not be read, the answer is empty.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
"""Errors of a process that is gone, or that this user may not read."""


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat. A process's pid and start time together identify it for ever."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: int
    """Clock ticks after boot."""
    exit: int
    """The exit status of a zombie, as wait() returns it."""

    @property
    def key(self) -> tuple[int, int]:
        """Pid and start time, which no other process has."""
        return self.pid, self.started


@dataclass(frozen=True, slots=True)
class Holdings:
    """Marks that a process may have inherited from a worker: inode numbers of pipes and memfds, and two variables."""

    pipes: frozenset[int]
    memory: frozenset[int]
    flow: str
    node: str


def stat(pid: int) -> Stat | None:
    """Return the process's fields; None for a process that is gone or cannot be read now."""
    with suppress(OSError):
        return seen(pid)
    return None


def seen(pid: int) -> Stat | None:
    """Return the process's fields; None for a process that is gone. Raises OSError when descriptors have run out."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except _GONE:
        return None
    fields = text.rpartition(b")")[2].split()
    return Stat(pid, fields[0].decode(), *(int(fields[at]) for at in (1, 2, 3, 19, 49)))


def age_ns(pid: int) -> int:
    """Return how long the process has lived, as exactly as the kernel's clock ticks; 0 for a process that is gone."""
    found = stat(pid)
    if found is None:
        return 0
    born_ns = found.started * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - born_ns)


def children(pid: int) -> Iterator[int]:
    """Yield the pids of the children of ``pid``, zombies included. Raises OSError when descriptors have run out."""
    try:
        for task in os.scandir(_PROC / str(pid) / "task"):
            with suppress(ProcessLookupError):
                yield from map(int, (Path(task.path) / "children").read_bytes().split())
    except FileNotFoundError:
        if (_PROC / str(pid)).exists():  # a kernel without CONFIG_PROC_CHILDREN
            everyone = (stat(int(name)) for name in os.listdir(_PROC) if name.isdigit())
            yield from (found.pid for found in everyone if found is not None and found.parent == pid)


def descendants(pid: int) -> list[Stat]:
    """Return all processes below ``pid``, parents before children. Raises OSError when descriptors have run out."""
    found: list[Stat] = []
    queue = [pid]
    while queue:
        for child in children(queue.pop()):
            process = seen(child)
            if process is not None:
                found.append(process)
                queue.append(child)
    return found


def holdings(pid: int) -> Holdings:
    """Return the marks of a process; empty for a process that runs as another user or is gone. Raises OSError when
    descriptors have run out."""
    variables = _variables(pid)
    return Holdings(
        _pipes(pid), _memory(pid), variables.get(b"CHRONETIX_FLOW", ""), variables.get(b"CHRONETIX_NODE", "")
    )


def _pipes(pid: int) -> frozenset[int]:
    found = set()
    with suppress(*_GONE):
        for entry in os.scandir(_PROC / str(pid) / "fd"):
            with suppress(*_GONE):
                kind, _, inode = os.readlink(entry.path).partition(":")
                if kind == "pipe":
                    found.add(int(inode.strip("[]")))
    return frozenset(found)


def _memory(pid: int) -> frozenset[int]:
    with suppress(*_GONE), open(_PROC / str(pid) / "maps", "rb") as maps:
        return frozenset(int(line.split()[4]) for line in maps if b" /memfd:" in line)
    return frozenset()


def _variables(pid: int) -> dict[bytes, str]:
    with suppress(*_GONE):
        pairs = (pair.partition(b"=") for pair in (_PROC / str(pid) / "environ").read_bytes().split(b"\0"))
        return {name: value.decode("utf-8", "replace") for name, _, value in pairs}
    return {}


TRACKER_S = 1.0
"""How long a resource tracker gets to remove what its process has left, in seconds. It takes a few ms."""


def is_tracker(pid: int) -> bool:
    """Return whether the process is a resource tracker of Python's multiprocessing. It ends by itself when the
    processes that it serves are gone, after it has removed the shared memory that they have left in /dev/shm."""
    with suppress(*_GONE):
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        return any(each.startswith(b"from multiprocessing.resource_tracker import ") for each in arguments)
    return False


def private_data(pid: int) -> int:
    """Return the bytes of private writable memory of a process, as RLIMIT_DATA counts them. Raises OSError."""
    pages = int((_PROC / str(pid) / "statm").read_text().split()[5])
    return pages * os.sysconf("SC_PAGE_SIZE")


def kill_exactly(process: Stat) -> bool:
    """Send SIGKILL to ``process``, and never to a later process with its pid. Return False when this user may not
    signal it. Raises OSError when descriptors have run out."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        now = seen(process.pid)
        if now is not None and now.key == process.key:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    finally:
        os.close(pidfd)
    return True
