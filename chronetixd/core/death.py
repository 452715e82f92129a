"""The record of how a worker's process ended, and whether a lack of memory was the cause. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chronetixd.core.worker import Exit

KEPT = 32
"""Exit records kept for each node."""

MAX_STDERR = 8 * 1024
"""Characters of stderr that are kept for one exit: the last ones."""

OutOfMemory = Literal["yes", "no", "suspected", "unknown"]


class HeldFrames(msgspec.Struct, frozen=True, kw_only=True):
    """Frames of one route that a worker had taken and not returned: how many, and the sequence numbers of some of
    them."""

    route: str
    count: int
    sequences: list[int] = []


class ExitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One exit of a worker's process. ``attached``: the daemon had not started the process, which may live on.
    ``killed_with`` is the last signal that the daemon sent to it. ``cpu_ns`` and
    ``max_rss_bytes`` cover the process and the children that it waited for; they are 0 where the kernel reported
    nothing."""

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
    attached: bool = False

    @property
    def exit(self) -> Exit:
        """How the process ended: by an exit code or by a signal."""
        return Exit(self.code, self.signal, self.attached)

    def essence(self) -> dict[str, Any]:
        """Return what the exit's event carries: all fields that fit into one line."""
        told = msgspec.to_builtins(self)
        kept = ("code", "signal", "killed_with", "out_of_memory", "uptime_ns", "cpu_ns", "max_rss_bytes", "incarnation")
        return {**{name: told[name] for name in kept}, "held": sum(frames.count for frames in self.held)}


def out_of_memory(
    exit: Exit, killed_with: str, own_kills: int | None, others_before: int | None, others_now: int | None
) -> OutOfMemory:
    """Return whether the kernel killed the process for lack of memory, which it does by SIGKILL.

    ``own_kills`` is the kill count of the worker's own control group. A worker without one shares a count with others:
    ``others_before`` is that count when the worker was started, ``others_now`` the present one. An unchanged shared
    count proves that the worker was not killed for lack of memory; a higher one proves nothing.
    """
    if exit.signal != "SIGKILL" or killed_with == "SIGKILL":
        return "no"
    if own_kills is not None:
        return "yes" if own_kills else "no"
    if others_before is None or others_now is None:
        return "unknown"
    return "suspected" if others_now > others_before else "no"


def last_lines(lines: list[str]) -> list[str]:
    """Return the last of ``lines`` that fit into MAX_STDERR characters. A line that is too long alone is cut."""
    kept: list[str] = []
    room = MAX_STDERR
    for line in reversed(lines):
        if room <= 0:
            break
        kept.append(line[:room])
        room -= len(line) + 1
    return kept[::-1]
