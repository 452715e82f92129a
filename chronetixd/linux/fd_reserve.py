"""Keeps a reserve of descriptors, so that a dead worker can be cleaned up when all other descriptors are in use.

Killing a process tree, waiting for its end and searching for what is left of it open files, and only after that the
descriptors of the dead worker are free. Rules: the soft limit on descriptors (RLIMIT_NOFILE) is KEPT below the hard
one.
It is lifted in ``with everything():``, in which no descriptor may be opened that outlives the tree, and nothing may
wait. If even the reserve runs out, the action is repeated later (:mod:`chronetixd.linux.exhaustion`).
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

KEPT = 16
"""How many descriptors are kept back. The search for orphans needs three at once for one process."""


def keep() -> None:
    """Raise the soft limit to the hard limit less the reserve. A flow of n nodes needs some 10 n descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard - KEPT, hard // 2), hard))


def lift() -> None:
    """Give up the reserve, because the daemon itself ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def everything() -> Iterator[None]:
    """Permit the use of the reserve inside the ``with``. May be nested."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
