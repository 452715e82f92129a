"""Processes whose parent has ended: the daemon is their subreaper, so that none escapes it and none stays a zombie.

A plugin that forks twice or makes a session leaves the worker's process group; when its parent ends, the kernel makes
it a child of the daemon: an orphan. Which worker an orphan comes from is recognised by what it still has of that worker
(:class:`Marks`). Rules:

* An orphan of a worker that has ended is killed, with all its descendants. An orphan of a living worker is left alone.
  A resource tracker of multiprocessing first gets TRACKER_S to remove what its process has left, and to end by itself.
* An orphan without marks is killed once every worker is gone that could have started it, that is, every older worker.
* An orphan that dies is reaped at once. A child that the launcher has forked and not yet announced is no orphan: while
  there may be one, only processes with marks are killed or reaped.
* An orphan that has become another user's process and cannot be signalled is reported and left. It has executed another
  program, so it maps none of the flow's memory.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from chronetixd.linux import fd_reserve
from chronetixd.linux.exhaustion import AGAIN_S, wanting
from chronetixd.linux.proc import (
    TRACKER_S,
    Holdings,
    Stat,
    children,
    descendants,
    holdings,
    is_tracker,
    kill_exactly,
    seen,
    stat,
)
from chronetixd.loop.signals import SignalHandlers
from chronetixd.loop.turns import Turns
from chronetixd.packing import Packed

_PR_SET_CHILD_SUBREAPER = 36
_WALL = 0x40000000

MAX_REMEMBERED = 4096
"""How many killed processes are remembered whose end the daemon has not seen; beyond it, those that are gone are
removed."""


class PackedMarks(Packed, frozen=True):
    """How processes that a worker has started are recognised."""

    pid: int
    started: int
    pipes: list[int]
    memory: list[int]
    doomed: list[tuple[int, int]] = []


class PackedOrphans(Packed, frozen=True):
    """Children of the daemon that no part of it knows. Keys are pid and start time."""

    inherited: list[int]
    killed: list[tuple[int, int]]
    out_of_reach: list[tuple[int, int]]
    ended: int
    reaped: int


@dataclass(slots=True)
class Marks:
    """How descendants of a worker are recognised: by its session, its pipes, the memory that it made, or its
    environment."""

    flow: str
    node: str
    pid: int
    started: int
    pipes: frozenset[int]
    """Inode numbers of the worker's stdout and stderr."""
    memory: set[int] = field(default_factory=set)
    """Inode numbers of the memfds that the worker offered."""
    doomed: set[tuple[int, int]] = field(default_factory=set)
    """Keys (pid, start time) of descendants that were killed."""

    def packed(self) -> PackedMarks:
        """Return everything but the names of flow and node."""
        return PackedMarks(
            pid=self.pid,
            started=self.started,
            pipes=sorted(self.pipes),
            memory=sorted(self.memory),
            doomed=sorted(self.doomed),
        )

    @staticmethod
    def of(flow: str, node: str, packed: PackedMarks) -> Marks:
        """Make the marks that :meth:`packed` has packed."""
        pipes, memory, doomed = frozenset(packed.pipes), set(packed.memory), set(packed.doomed)
        return Marks(flow, node, packed.pid, packed.started, pipes, memory, doomed)

    def match(self, process: Stat, held: Holdings) -> bool:
        """Return whether ``process``, which holds ``held``, comes from this worker."""
        return (
            self.pid in (process.session, process.group)
            or process.key in self.doomed
            or not self.pipes.isdisjoint(held.pipes)
            or not self.memory.isdisjoint(held.memory)
            or (held.flow, held.node) == (self.flow, self.node)
        )


_Found = list[tuple[Stat, Holdings]]


@dataclass(slots=True)
class _End:
    """A caller that waits until no process with ``marks`` is left."""

    marks: Marks
    then: Callable[[], None]
    looks: int = 0


REST_FACTOR = 4
"""After each search through all children the daemon does other work for so many times the duration of the search. So
the cost of searching grows neither with the number of processes that die nor with the number that live."""

MAX_LOOKS = 64
"""How many searches a caller waits while orphans keep dying. After these the tree counts as gone: the orphans that die
may belong to a living worker."""


class Orphans:
    """All children of the daemon that no part of it knows. ``known`` returns the pids that some part knows;
    ``announced`` returns whether the launcher has announced everything that it has forked."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        known: Callable[[], set[int]],
        announced: Callable[[], bool],
        turns: Turns | None = None,
    ) -> None:
        self._loop = loop
        self._turns = turns or Turns(loop)
        self._known = known
        self._announced = announced
        self._log = structlog.get_logger("chronetixd.workers.orphans")
        self._inherited: frozenset[int] = frozenset()
        self._workers: dict[int, Marks] = {}
        self._waiting: list[_End] = []
        self._killed: set[tuple[int, int]] = set()
        self._out_of_reach: set[tuple[int, int]] = set()
        self._spared: dict[tuple[int, int], float] = {}
        """Resource trackers, and until when they are spared, by the loop's clock."""
        self._due = False
        self._next_look = 0.0
        """When the next search may begin, by the loop's clock."""
        self._stopped: asyncio.Event | None = None
        self._signals = SignalHandlers(loop)
        self.ended = 0
        """How many processes were killed as orphans, or as descendants of an orphan."""
        self.reaped = 0
        """How many orphans have died, of whatever cause."""

    @property
    def settled(self) -> bool:
        """Whether no caller waits for the end of a worker's tree, or is still to be called back."""
        return not self._waiting and not self._turns.waiting

    def packed(self) -> PackedOrphans:
        """Return what is known of orphans; the marks of workers are packed with the workers."""
        return PackedOrphans(
            inherited=sorted(self._inherited),
            killed=sorted(self._killed),
            out_of_reach=sorted(self._out_of_reach),
            ended=self.ended,
            reaped=self.reaped,
        )

    def unpack(self, packed: PackedOrphans) -> None:
        """Take over what :meth:`packed` has packed. Call it before :meth:`start`."""
        self._inherited = frozenset(packed.inherited)
        self._killed, self._out_of_reach = set(packed.killed), set(packed.out_of_reach)
        self.ended, self.reaped = packed.ended, packed.reaped

    def start(self, *, again: bool = False) -> None:
        """Become the subreaper. Children that the process already has are never killed, unless it is a subreaper
        ``again``, after an exec. Raises OSError."""
        if not again:
            self._inherited = frozenset(children(os.getpid()))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self._signals.handle(signal.SIGCHLD, self.look_soon)

    async def stop(self) -> None:
        """Kill and reap all orphans. Workers, spare workers and the launcher must have ended."""
        self._stopped = asyncio.Event()
        self.look()
        await self._stopped.wait()

    def close(self) -> None:
        """Stop handling SIGCHLD. Idempotent."""
        self._signals.close()

    def add_worker(self, marks: Marks) -> None:
        """Add a living worker: processes with its marks are left alone."""
        self._workers[marks.pid] = marks

    def end(self, marks: Marks, then: Callable[[], None]) -> None:
        """The worker has been reaped: kill the processes with its marks, and call ``then`` once all of them are gone
        (usually in the next turn of the loop, together with other workers that have ended)."""
        self._workers.pop(marks.pid, None)
        self._waiting.append(_End(marks, then))
        self.look_soon()

    def look_soon(self) -> None:
        """Search in this or the next turn of the loop, once for any number of calls; later if the last search took
        long."""
        if not self._due:
            self._due = True
            rest = self._next_look - self._loop.time()
            if rest > 0:
                self._loop.call_later(rest, self.look)
            else:
                self._loop.call_soon(self.look)

    def look(self) -> None:
        """Reap orphans that have died, kill orphans of workers that have ended, and call back callers whose tree is
        gone. If descriptors have run out, try again later."""
        self._due = False
        begun = time.monotonic()
        gone: list[_End] = []
        try:
            with fd_reserve.everything():
                changed, dying = self._look(gone)
        except OSError as reason:
            if not wanting(reason):
                raise
            self._loop.call_later(AGAIN_S, self.look_soon)
            changed, dying = False, True
        self._next_look = self._loop.time() + REST_FACTOR * (time.monotonic() - begun)
        for end in gone:
            self._turns.add(end.then)
        if changed and (self._waiting or self._stopped is not None):
            self.look_soon()
        elif self._stopped is not None and not dying:
            self._stopped.set()

    def _look(self, gone: list[_End]) -> tuple[bool, bool]:
        """Move callers that need not wait any more from ``_waiting`` into ``gone``. Returns whether an orphan died
        during the search, and whether killed orphans still live. Raises OSError when descriptors have run out."""
        present, changed = self._present()
        waiting, self._waiting = self._waiting, []
        for at, end in enumerate(waiting):
            try:
                mine = [process for process, held in present if end.marks.match(process, held)]
                present = [each for each in present if each[0] not in mine]
                end.looks += 1
                left = self._kill(mine, end.marks)
            except OSError:
                self._waiting += waiting[at:]
                raise
            if not left and (not changed or end.looks >= MAX_LOOKS):
                gone.append(end)
            else:
                self._waiting.append(end)
        dying = False
        if present and self._announced():
            dying = self._kill([process for process, held in present if self._has_no_worker(process, held)], None)
        if len(self._killed) + len(self._out_of_reach) > MAX_REMEMBERED:
            self._forget_gone()
        return changed, dying

    def _forget_gone(self) -> None:
        """Remove the keys of processes that are gone: their parent has reaped them."""
        for keys in (self._killed, self._out_of_reach):
            keys.difference_update([key for key in keys if (found := stat(key[0])) is None or found.key != key])
        self._spared = {key: until for key, until in self._spared.items() if until > self._loop.time()}

    def _present(self) -> tuple[_Found, bool]:
        """Return the living orphans, and whether one died during the search: it may have had a child that was not seen.
        Dead orphans are reaped, unless they may be a worker that is not announced yet."""
        known = self._known() | self._inherited
        unknown = [found for pid in children(os.getpid()) if pid not in known and (found := seen(pid)) is not None]
        living: _Found = []
        changed = False
        for process in unknown:
            if process.state == "Z":
                changed = (self._announced() and self._reap(process)) or changed
            elif process.key not in self._out_of_reach:
                living.append((process, holdings(process.pid)))
                after = seen(process.pid)
                changed = changed or after is None or after.state == "Z"
        return living, changed

    def _is_spared(self, process: Stat) -> bool:
        until = self._spared.get(process.key)
        if until is None:
            if not is_tracker(process.pid):
                return False
            until = self._spared[process.key] = self._loop.time() + TRACKER_S
            self._loop.call_later(TRACKER_S, self.look_soon)
        return self._loop.time() < until

    def _reap(self, process: Stat) -> bool:
        self._killed.discard(process.key)
        self._spared.pop(process.key, None)
        with suppress(ChildProcessError):
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | _WALL) is not None:
                self.reaped += 1
                return True
        return False

    def _has_no_worker(self, process: Stat, held: Holdings) -> bool:
        if self._stopped is not None:
            return True
        living = self._workers.values()
        return not any(marks.match(process, held) or marks.started <= process.started for marks in living)

    def _kill(self, found: Iterable[Stat], marks: Marks | None) -> bool:
        """Kill ``found`` with all descendants. Returns whether their end must be waited for."""
        some = False
        for orphan in found:
            for process in (orphan, *descendants(orphan.pid)):
                some = self._end(process, marks) or some
        return some

    def _end(self, process: Stat, marks: Marks | None) -> bool:
        if marks is not None:
            marks.doomed.add(process.key)
        if process.key in self._killed or self._is_spared(process):
            return True
        where = {"flow": marks.flow, "node": marks.node} if marks is not None else {}
        if not kill_exactly(process):
            self._out_of_reach.add(process.key)
            self._log.warning("an orphaned process cannot be killed: it is another user's", orphan=process.pid, **where)
            return False
        self._killed.add(process.key)
        self.ended += 1
        self._log.info("an orphaned process was killed", orphan=process.pid, **where)
        return True
