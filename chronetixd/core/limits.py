"""What a node claims, as the files of its control group. Pure.

``memory.max`` is what it claims for itself plus its arena, whose pages are charged to it as their maker. Without a
claim nothing is limited but the number of processes. There is no ``memory.high``: a worker that is ended with a reason
is easier to understand than one that has become slow.
"""

from __future__ import annotations

from chronetix.protocol.contract.types import ResourceClaims

CONTROLLERS = ("memory", "pids", "cpu")
"""Those that we have a use for."""

MAX_PROCESSES = 1024
"""Processes and threads of one worker's whole tree: more than any plugin needs, few enough for a fork bomb to stop."""

DEFAULT_WEIGHT = 100
"""cpu.weight of who claims nothing: as if it had claimed one processor."""


def group_files(claims: ResourceClaims) -> dict[str, dict[str, str]]:
    """File name to content, by the controller that brings the file."""
    memory = "max" if claims.memory_bytes is None else str(claims.memory_bytes + claims.arena_bytes)
    return {
        "memory": {"memory.max": memory, "memory.oom.group": "1"},
        "pids": {"pids.max": str(MAX_PROCESSES)},
        "cpu": {"cpu.weight": str(weight(claims.cpu_millis))},
    }


def weight(cpu_millis: int | None) -> int:
    """``cpu.weight`` (1 to 10000): a tenth of the claim, so that shares are as the claims are."""
    return DEFAULT_WEIGHT if cpu_millis is None else min(10_000, max(1, cpu_millis // 10))
