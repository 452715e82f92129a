"""The files of a worker's control group, from what its node claims. Pure.

``memory.max`` is the claimed memory plus the arena, whose pages the kernel charges to the worker because it made them.
Without a claim only the number of processes is limited. ``memory.high`` is not set: a worker that is killed for a
stated reason is easier to understand than one that has become slow.
"""

from __future__ import annotations

from chronetix.protocol.contract.types import ResourceClaims

CONTROLLERS = ("memory", "pids", "cpu")
"""The controllers whose files are written."""

MAX_PROCESSES = 1024
"""Processes and threads of one worker's whole tree: more than any plugin needs, few enough for a fork bomb to stop."""

DEFAULT_WEIGHT = 100
"""``cpu.weight`` of a node that claims nothing: as if it had claimed one processor."""


def group_files(claims: ResourceClaims) -> dict[str, dict[str, str]]:
    """Return file names and contents, by the controller that provides the files."""
    memory = "max" if claims.memory_bytes is None else str(claims.memory_bytes + claims.arena_bytes)
    return {
        "memory": {"memory.max": memory, "memory.oom.group": "1"},
        "pids": {"pids.max": str(MAX_PROCESSES)},
        "cpu": {"cpu.weight": str(weight(claims.cpu_millis))},
    }


def weight(cpu_millis: int | None) -> int:
    """Return ``cpu.weight`` (1 to 10000): a tenth of the claim, so that weights are in proportion to the claims."""
    return DEFAULT_WEIGHT if cpu_millis is None else min(10_000, max(1, cpu_millis // 10))
