"""Reports once what kind of shared memory this machine has, and removes named memory that dead workers have left.

Memory has a name only where the kernel cannot seal it (``chronetix.shm.names``). The names of a worker outlive it. They
are removed when its flow has ended, and at the daemon's start, in case no daemon ran when the flow ended.
"""

from __future__ import annotations

import structlog

from chronetix import shm
from chronetix.shm import names

MEANING = {
    "memfd": "no anonymous memory",
    "seals": "memories are named objects in /dev/shm; any process of the same user may truncate them",
    "future_write": "any process of the same user that has a memory may write to it",
    "noexec_seal": "memories could be mapped to be executed",
}


def begin() -> None:
    """Log which features this kernel lacks and what follows from that, and remove named memory that earlier runs have
    left."""
    log = structlog.get_logger("chronetixd.dataplane.shm_support")
    for feature in shm.missing_features():
        log.warning("the kernel lacks a feature", feature=feature, consequence=MEANING[feature])
    if swept := names.sweep():
        log.warning("shared memory of dead processes was removed", names=swept)


def flow_ended() -> None:
    """Remove the named memory of workers that are gone. Costs nothing where memory has no names."""
    if "seals" in shm.missing_features():
        names.sweep()
