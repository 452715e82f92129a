"""All processes that a worker has started, and their end.

A worker has ended when its process is reaped and no process that it has started is left; only then its memory may be
used again and its node restarted. This module alone decides that: the worker's control group is empty (if there is
one), and no orphan has the worker's marks. A process that cannot be killed keeps the worker from ending, which is
reported after LINGER_S.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import structlog

from chronetixd.linux.cgroups import Leaf
from chronetixd.linux.pidfd import Process
from chronetixd.linux.proc import TRACKER_S, is_tracker, stat
from chronetixd.workers.orphans import Marks, Orphans

LINGER_S = 5.0
"""After how long a tree that survives SIGKILL is reported: its processes hang in the kernel."""


class Tree:
    """The process of a worker with all its descendants. Owns ``leaf``. Without ``orphans`` the daemon has not started
    the process, and nothing of what it has started is known: the tree is the process alone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        orphans: Orphans | None,
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
        self._sparing: asyncio.TimerHandle | None = None
        if orphans is not None:
            orphans.add_worker(marks)

    def signal(self, *, kill: bool) -> None:
        """Send SIGTERM to the worker's process group or, with ``kill``, SIGKILL to the whole tree; what is in no
        control group is killed when the worker is reaped."""
        if not kill:
            self._process.signal(signal.SIGTERM)
            return
        if self._leaf is not None:
            self._kill(self._leaf)
        self._process.kill_alone()

    @property
    def oom_kills(self) -> int | None:
        """How many processes of the tree the kernel has killed because memory ran out; None if nothing counts them."""
        return self._leaf.oom_kills() if self._leaf is not None else None

    def end(self, on_gone: Callable[[], None]) -> None:
        """The worker's process was reaped: kill the rest of the tree, and call ``on_gone`` once nothing is left
        (usually in the next turn of the loop)."""
        self._on_gone = on_gone
        self._lingering = self._loop.call_later(LINGER_S, self._lingers)
        if self._leaf is None:
            self._empty()
            return
        self._kill(self._leaf)
        self._leaf.when_empty(self._empty)

    def _kill(self, leaf: Leaf) -> None:
        """Kill what is in ``leaf``, a resource tracker of multiprocessing only if it does not end by itself: it removes
        the shared memory that the plugin has left, which stays in /dev/shm for ever without it."""
        if leaf.kill_sparing(is_tracker) and self._sparing is None:
            self._sparing = self._loop.call_later(TRACKER_S, leaf.kill)

    def _empty(self) -> None:
        if self._sparing is not None:
            self._sparing.cancel()
        if self._orphans is None:
            self._loop.call_soon(self._gone)
        else:
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
            "processes that a worker has started survive SIGKILL; the worker's flow waits for their end",
            flow=self.marks.flow,
            node=self.marks.node,
            group=str(self._leaf.path) if self._leaf is not None else "",
        )


def marks_of(flow: str, node: str, pid: int, *pipes: int) -> Marks:
    """Return the marks of the worker ``pid``, whose output arrives through ``pipes`` (the daemon's ends)."""
    found = stat(pid)
    return Marks(flow, node, pid, found.started if found else 0, frozenset(os.fstat(fd).st_ino for fd in pipes))


def discard(leaf: Leaf | None) -> None:
    """Kill every process in ``leaf``, and remove it once it is empty."""
    if leaf is not None:
        leaf.kill()
        leaf.when_empty(leaf.remove)
