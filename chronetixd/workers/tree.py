"""Everything that a worker has started, and the end of it.

A worker has ended when its process was reaped and nothing is left that it started: only then its memory may be used
again, and its node started anew. The one place that decides this: the worker's control group is empty (if it has one),
and no stray carries its marks. Whoever cannot be killed keeps the worker from ending, which is said after LINGER_S.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import structlog

from chronetixd.linux.cgroups import Leaf
from chronetixd.linux.pidfd import Process
from chronetixd.linux.proc import stat
from chronetixd.workers.orphans import Marks, Orphans

LINGER_S = 5.0
"""A tree that lives on so long after SIGKILL hangs in the kernel: worth a warning."""


class Tree:
    """The process of a worker with all its descendants. Owns ``leaf``."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        orphans: Orphans,
        process: Process,
        leaf: Leaf | None,
        marks: Marks,
    ) -> None:
        self._loop = loop
        self._orphans = orphans
        self._process = process
        self._leaf = leaf
        self.marks = marks
        self._on_gone: Callable[[], None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
        orphans.add_worker(marks)

    def signal(self, *, kill: bool) -> None:
        """SIGTERM to its process group; with ``kill`` SIGKILL to all of it."""
        if kill and self._leaf is not None:
            self._leaf.kill()
        self._process.signal(signal.SIGKILL if kill else signal.SIGTERM)

    @property
    def oom_kills(self) -> int | None:
        """How many of it were killed for want of memory; None when nothing counts them."""
        return self._leaf.oom_kills() if self._leaf is not None else None

    def end(self, on_gone: Callable[[], None]) -> None:
        """Its process was reaped: kill the rest, and call ``on_gone`` once nothing is left (usually at once)."""
        self._on_gone = on_gone
        self._lingering = self._loop.call_later(LINGER_S, self._lingers)
        if self._leaf is None:
            self._empty()
            return
        self._leaf.kill()
        self._leaf.when_empty(self._empty)

    def _empty(self) -> None:
        self._orphans.end(self.marks, self._gone)

    def _gone(self) -> None:
        assert self._lingering is not None
        assert self._on_gone is not None
        self._lingering.cancel()
        if self._leaf is not None:
            self._leaf.remove()
        self._on_gone()

    def _lingers(self) -> None:
        structlog.get_logger("chronetixd.workers.tree").warning(
            "what a worker started does not die, and its flow has to wait",
            flow=self.marks.flow,
            node=self.marks.node,
            group=str(self._leaf.path) if self._leaf is not None else "",
        )


def marks_of(flow: str, node: str, pid: int, *pipes: int) -> Marks:
    """The marks of the worker ``pid``, whose output comes through ``pipes`` (our ends)."""
    found = stat(pid)
    return Marks(flow, node, pid, found.started if found else 0, frozenset(os.fstat(fd).st_ino for fd in pipes))


def discard(leaf: Leaf | None) -> None:
    """Kill whatever is in ``leaf`` and remove it as soon as it is empty."""
    if leaf is not None:
        leaf.kill()
        leaf.when_empty(leaf.remove)
