"""What a storm sees of its processes in /proc: all of them carry its token, and nobody else's do."""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

from chronetixd.linux.proc import children, stat

TOKEN = "CHAOS_TOKEN"
_SUBREAPER = 36


def become_reaper() -> None:
    """Orphans of the storm come to us, as they would to init. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap(but: int) -> None:
    """Take orphans that have died; ``but`` is the daemon, whose status is somebody else's to take."""
    for pid in children(os.getpid()):
        found = stat(pid)
        if pid != but and found is not None and found.state == "Z" and found.parent == os.getpid():
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | 0x40000000)


def of_token(token: str) -> set[int]:
    """Living processes with that token in their environment."""
    wanted = f"{TOKEN}={token}".encode()
    found = set()
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and wanted in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                found.add(int(name))
    return found


def zombies(parents: set[int]) -> set[int]:
    """Dead children of ``parents`` that nobody has reaped."""
    return {pid for parent in parents for pid in children(parent) if (found := stat(pid)) and found.state == "Z"}


def descriptors(pid: int) -> Counter[str]:
    """Open descriptors by kind: socket, pipe, memory by its name, file by its name."""
    kinds: Counter[str] = Counter()
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                kinds[_kind(os.readlink(entry.path))] += 1
    return kinds


def _kind(target: str) -> str:
    named = target.removesuffix(" (deleted)")
    if named.startswith("/memfd:"):
        return named.removeprefix("/memfd:")
    if named.startswith("/"):
        return re.sub(r"\d+", "N", Path(named).name)
    return re.sub(r":?\[\d+\]$", "", named)


def memory(pid: int, field: str = "VmRSS") -> int:
    """A figure of /proc/PID/status in bytes; 0 for a process that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0
