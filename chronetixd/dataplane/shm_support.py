"""What kind of shared memory this machine has, told once, and the sweeping of named memory.

Memory has a name only where the kernel cannot seal it (``chronetix.shm.names``). A worker leaves its names behind: they
are swept when its flow has ended, and, should nobody have been there to do it, at the daemon's start.
"""

from __future__ import annotations

import structlog

from chronetix import shm
from chronetix.shm import names

MEANING = {
    "memfd": "no anonymous memory",
    "seals": "memories are named objects in /dev/shm; whoever runs as the same user may cut them short",
    "future_write": "whoever runs as the same user and has a memory may write to it",
    "noexec_seal": "memories could be mapped to be executed",
}


def begin() -> None:
    """Log what this kernel lacks and what that means, and take away what earlier runs have left."""
    log = structlog.get_logger("chronetixd.dataplane.shm_support")
    for feature in shm.missing_features():
        log.warning("the kernel lacks a feature", feature=feature, consequence=MEANING[feature])
    if swept := names.sweep():
        log.warning("shared memory of dead processes was removed", names=swept)


def flow_ended() -> None:
    """The workers of a flow are gone, and take no names away as they go. Costs nothing where memory has no names."""
    if "seals" in shm.missing_features():
        names.sweep()
