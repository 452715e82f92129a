"""What a storm reads of its processes in /proc: all of them carry its token, and no other process does."""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from chronetixd.linux.proc import children, stat

TOKEN = "CHAOS_TOKEN"
_SUBREAPER = 36
LOOKS = 50
LOOKS_AT_REST = 5
LOOK_AGAIN_S = 0.001


def become_reaper() -> None:
    """Make this process the parent of the storm's orphans, as init would be. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap(but: int) -> None:
    """Reap orphans that have died. ``but`` is the daemon, whose status another part reads."""
    for pid in children(os.getpid()):
        found = stat(pid)
        if pid != but and found is not None and found.state == "Z" and found.parent == os.getpid():
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | 0x40000000)


def of_token(token: str) -> set[int]:
    """Return living processes with that token in their environment."""
    wanted = f"{TOKEN}={token}".encode()
    found = set()
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and wanted in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                found.add(int(name))
    return found


def zombies(parents: set[int]) -> set[int]:
    """Return children of ``parents`` that have died and are not reaped."""
    return {pid for parent in parents for pid in children(parent) if (found := stat(pid)) and found.state == "Z"}


def descriptors(pid: int) -> Counter[str]:
    """Return open descriptors by kind: socket, pipe, memory by its name, file by its name."""
    kinds: Counter[str] = Counter()
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                kinds[_kind(os.readlink(entry.path))] += 1
    return kinds


def steady(pid: int) -> Counter[str]:
    """Return the open descriptors by kind without those that are open for a moment: the fewest of each kind in some
    looks."""
    fewest = descriptors(pid)
    for _ in range(LOOKS_AT_REST):
        time.sleep(LOOK_AGAIN_S)
        fewest &= descriptors(pid)
    return fewest


def lasting(pid: int, wrong: Callable[[Counter[str]], list[str]]) -> list[str]:
    """Return what is ``wrong`` with the open descriptors in each of some looks. What a process opens only to read it,
    again and again, is missing in one of them; a descriptor that leaked is there in all."""
    for _ in range(LOOKS):
        if not (found := wrong(descriptors(pid))):
            break
        time.sleep(LOOK_AGAIN_S)
    return found


def _kind(target: str) -> str:
    named = target.removesuffix(" (deleted)")
    if named.startswith("/memfd:"):
        return named.removeprefix("/memfd:")
    if named.startswith("/"):
        return re.sub(r"\d+", "N", Path(named).name)
    return re.sub(r":?\[\d+\]$", "", named)


def memory(pid: int, field: str = "VmRSS") -> int:
    """Return a figure of /proc/PID/status in bytes; 0 for a process that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0
