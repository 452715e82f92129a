"""Descriptors that are kept back, so that what has to end can be ended when all others are in use.

Who kills a tree, waits for it to die, or looks whether anything is left of it opens files; and only when that is done
the descriptors of the worker that has died are free. Rules: the soft limit on descriptors (RLIMIT_NOFILE) is KEPT below
the hard one; it is lifted in ``with everything():``, where nothing may be opened that outlives the tree, and nothing
may be waited for. Where even these run out it is tried again later (:mod:`chronetixd.linux.exhaustion`).
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

KEPT = 16
"""A look at a stray takes three at once."""


def keep() -> None:
    """Take as many descriptors as the hard limit gives, but for those kept back. A flow of n nodes needs some 10 n."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard - KEPT, hard // 2), hard))


def lift() -> None:
    """The daemon itself ends: nothing is kept back any more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def everything() -> Iterator[None]:
    """Also those that are kept back. May be entered again inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
