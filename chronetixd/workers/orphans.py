"""Processes that lost their parent: the daemon is their subreaper, so none escapes it and none stays a zombie.

A plugin that forks twice, or makes a session of its own, leaves the process group and is later nobody's child but ours.
To whom such a stray belongs is told by what it still shows of its worker (:class:`Marks`). Rules:

* A stray of a worker that has ended is killed, with all its descendants. One of a worker that lives is left alone.
* One that shows nothing of anybody is killed once no worker is left that could have made it: none that is older.
* Whoever dies among them is reaped at once. A child that the launcher has forked and not announced yet is no stray:
  while there may be such, only what carries marks is touched.
* What became another user and may not be signalled by us has been executed anew, so it maps none of our memory; it is
  reported and left.
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
from chronetixd.linux.proc import Holdings, Stat, children, descendants, holdings, kill_exactly, seen, stat
from chronetixd.loop.signals import SignalHandlers
from chronetixd.loop.turns import Turns
from chronetixd.packing import Packed

_PR_SET_CHILD_SUBREAPER = 36
_WALL = 0x40000000

MAX_REMEMBERED = 4096
"""Processes that were killed and not seen to die; beyond it those that are gone are looked for."""


class PackedMarks(Packed, frozen=True):
    """How what a worker started is recognised."""

    pid: int
    started: int
    pipes: list[int]
    memory: list[int]
    doomed: list[tuple[int, int]] = []


class PackedOrphans(Packed, frozen=True):
    """Children that are nobody's. Keys are pid and start."""

    inherited: list[int]
    killed: list[tuple[int, int]]
    out_of_reach: list[tuple[int, int]]
    ended: int
    reaped: int


@dataclass(slots=True)
class Marks:
    """How descendants of a worker are recognised: its session, its pipes, the memory that it made, its environment."""

    flow: str
    node: str
    pid: int
    started: int
    pipes: frozenset[int]
    """Inode numbers of its stdout and stderr."""
    memory: set[int] = field(default_factory=set)
    """Inode numbers of memfds that it offered."""
    doomed: set[tuple[int, int]] = field(default_factory=set)
    """Keys of descendants that were killed."""

    def packed(self) -> PackedMarks:
        """All of it but the names of flow and node."""
        return PackedMarks(
            pid=self.pid,
            started=self.started,
            pipes=sorted(self.pipes),
            memory=sorted(self.memory),
            doomed=sorted(self.doomed),
        )

    @staticmethod
    def of(flow: str, node: str, packed: PackedMarks) -> Marks:
        """The inverse."""
        pipes, memory, doomed = frozenset(packed.pipes), set(packed.memory), set(packed.doomed)
        return Marks(flow, node, packed.pid, packed.started, pipes, memory, doomed)

    def match(self, process: Stat, held: Holdings) -> bool:
        """``process``, which holds ``held``, comes from this worker."""
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
    """Somebody waits for the end of what carries ``marks``."""

    marks: Marks
    then: Callable[[], None]
    looks: int = 0


REST_FACTOR = 4
"""After a look at all children, so many times what it took is everybody else's before the next one: what that costs
does not grow with the number of those who die, or of those who live."""

MAX_LOOKS = 64
"""Looks at a tree while strays die all the time, before what was not seen by then counts as gone: they may be those of
a worker that lives."""


class Orphans:
    """All children of the daemon that are nobody's. ``known`` names those that are somebody's, ``announced`` tells
    whether the launcher has told of everything that it forked."""

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
        self._due = False
        self._next_look = 0.0
        """When the next look may begin, on the loop's clock."""
        self._stopped: asyncio.Event | None = None
        self._signals = SignalHandlers(loop)
        self.ended = 0
        """Processes that were killed as strays, or with one."""
        self.reaped = 0
        """Strays that have died, of whatever cause."""

    @property
    def settled(self) -> bool:
        """Nobody waits for the end of a worker's tree, or is still to be told of one."""
        return not self._waiting and not self._turns.waiting

    def packed(self) -> PackedOrphans:
        """What is known of strays; marks of workers go with the workers."""
        return PackedOrphans(
            inherited=sorted(self._inherited),
            killed=sorted(self._killed),
            out_of_reach=sorted(self._out_of_reach),
            ended=self.ended,
            reaped=self.reaped,
        )

    def unpack(self, packed: PackedOrphans) -> None:
        """The inverse, before :meth:`start`."""
        self._inherited = frozenset(packed.inherited)
        self._killed, self._out_of_reach = set(packed.killed), set(packed.out_of_reach)
        self.ended, self.reaped = packed.ended, packed.reaped

    def start(self, *, again: bool = False) -> None:
        """Become the subreaper. Whoever is our child already is not ours to kill, unless we are so ``again``, after an
        exec. Raises OSError."""
        if not again:
            self._inherited = frozenset(children(os.getpid()))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self._signals.handle(signal.SIGCHLD, self.look_soon)

    async def stop(self) -> None:
        """Kill and reap all that are left. Workers, spares and launcher must be gone."""
        self._stopped = asyncio.Event()
        self.look()
        await self._stopped.wait()

    def close(self) -> None:
        """Hear of no more deaths. Idempotent."""
        self._signals.close()

    def add_worker(self, marks: Marks) -> None:
        """A worker lives: what carries its marks is its own business."""
        self._workers[marks.pid] = marks

    def end(self, marks: Marks, then: Callable[[], None]) -> None:
        """The worker has been reaped: kill what is left of it, and call ``then`` once all of that is gone (usually in
        the next turn of the loop, with all others that have ended by then)."""
        self._workers.pop(marks.pid, None)
        self._waiting.append(_End(marks, then))
        self.look_soon()

    def look_soon(self) -> None:
        """Look in this or the next turn of the loop, once for however many calls; after a rest, if looking takes
        long."""
        if not self._due:
            self._due = True
            rest = self._next_look - self._loop.time()
            if rest > 0:
                self._loop.call_later(rest, self.look)
            else:
                self._loop.call_soon(self.look)

    def look(self) -> None:
        """Reap who has died, kill who is of nobody that lives, tell who waits; without descriptors for it, later."""
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
        """Who waits no more goes from ``_waiting`` into ``gone``. Whether somebody died meanwhile, and whether some are
        dying. Raises OSError for want of descriptors."""
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
        """Keys of processes that somebody else has reaped."""
        for keys in (self._killed, self._out_of_reach):
            keys.difference_update([key for key in keys if (found := stat(key[0])) is None or found.key != key])

    def _present(self) -> tuple[_Found, bool]:
        """Strays that live, and whether one died meanwhile: then it may have had a child that was not seen. The dead
        are reaped, unless they might be a worker that is not announced."""
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

    def _reap(self, process: Stat) -> bool:
        self._killed.discard(process.key)
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
        """Kill them with all their descendants; True when there is something to wait for."""
        some = False
        for stray in found:
            for process in (stray, *descendants(stray.pid)):
                some = self._end(process, marks) or some
        return some

    def _end(self, process: Stat, marks: Marks | None) -> bool:
        if marks is not None:
            marks.doomed.add(process.key)
        if process.key in self._killed:
            return True
        where = {"flow": marks.flow, "node": marks.node} if marks is not None else {}
        if not kill_exactly(process):
            self._out_of_reach.add(process.key)
            self._log.warning("a stray process cannot be ended: it is another user's", stray=process.pid, **where)
            return False
        self._killed.add(process.key)
        self.ended += 1
        self._log.info("a stray process was ended", stray=process.pid, **where)
        return True
