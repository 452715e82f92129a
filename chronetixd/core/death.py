"""How a worker's process ended, as it is remembered, and whether want of memory was the cause. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chronetixd.core.worker import Exit

KEPT = 32
"""Deaths remembered of each node."""

MAX_STDERR = 8 * 1024
"""Characters of stderr that are kept of one death, the last ones."""

OutOfMemory = Literal["yes", "no", "suspected", "unknown"]


class HeldFrames(msgspec.Struct, frozen=True, kw_only=True):
    """Frames of one route that it had taken and not returned: how many, and sequence numbers of some of them."""

    route: str
    count: int
    sequences: list[int] = []


class ExitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One exit. ``killed_with`` is the last signal that we sent it. Processor time and the most memory are 0 where the
    kernel did not tell; they are of the process and of the children that it waited for."""

    flow: str
    node: str
    incarnation: int
    unix_ns: int
    pid: int
    code: int | None = None
    signal: str | None = None
    killed_with: str = ""
    out_of_memory: OutOfMemory = "unknown"
    fault: str = ""
    stderr: list[str] = []
    held: list[HeldFrames] = []
    uptime_ns: int = 0
    cpu_ns: int = 0
    max_rss_bytes: int = 0

    @property
    def exit(self) -> Exit:
        """How it ended."""
        return Exit(self.code, self.signal)

    def essence(self) -> dict[str, Any]:
        """What its event carries: all but what a line has no room for."""
        told = msgspec.to_builtins(self)
        kept = ("code", "signal", "killed_with", "out_of_memory", "uptime_ns", "cpu_ns", "max_rss_bytes", "incarnation")
        return {**{name: told[name] for name in kept}, "held": sum(frames.count for frames in self.held)}


def out_of_memory(
    exit: Exit, killed_with: str, own_kills: int | None, others_before: int | None, others_now: int | None
) -> OutOfMemory:
    """Whether the kernel ended it for want of memory, which it does by SIGKILL.

    ``own_kills`` is the count of the worker's own control group. Without one there is only a count that it shares with
    others, from its birth and from now: that it stood still proves that it was not, that it moved proves nothing.
    """
    if exit.signal != "SIGKILL" or killed_with == "SIGKILL":
        return "no"
    if own_kills is not None:
        return "yes" if own_kills else "no"
    if others_before is None or others_now is None:
        return "unknown"
    return "suspected" if others_now > others_before else "no"


def last_lines(lines: list[str]) -> list[str]:
    """The end of ``lines`` that MAX_STDERR has room for; a line that is too long alone is cut."""
    kept: list[str] = []
    room = MAX_STDERR
    for line in reversed(lines):
        if room <= 0:
            break
        kept.append(line[:room])
        room -= len(line) + 1
    return kept[::-1]
