"""Interval timers without drift, in one heap; time is passed in (ns, CLOCK_MONOTONIC).

Tick n of a timer is due at start + n * interval, whatever happened to earlier ticks. When several ticks of one timer
are due at once, only the last one is delivered and the others are counted in its ``missed``. Ticks that could not be
delivered to the owner are counted there too.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from msgspec import Struct

from chronetixd.core.packed import Key, PackedTimer, PackedTimers

FEW = 64
"""Number of dropped timers up to which the heap is not rebuilt."""


class Due(Struct, frozen=True):
    """Tick ``sequence`` (from 1) of ``timer`` was due at ``due_ns``; ``missed`` ticks before it were not delivered."""

    owner: Hashable
    timer: str
    sequence: int
    due_ns: int
    missed: int


@dataclass(slots=True)
class _Timer:
    owner: Hashable
    id: str
    start_ns: int
    interval_ns: int
    delivered: int = 0
    """Sequence number of the last tick that was delivered or counted as missed."""
    withheld: int = 0
    """Ticks since the last delivered one that could not be delivered to the owner."""
    live: bool = True


class Timers:
    """All timers of the daemon. ``missed`` counts every tick, over all timers ever, that was not delivered."""

    __slots__ = ("_by_owner", "_heap", "_order", "missed")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, _Timer]] = []
        self._by_owner: dict[Hashable, dict[str, _Timer]] = {}
        self._order = 0
        self.missed = 0

    def __len__(self) -> int:
        return sum(len(timers) for timers in self._by_owner.values())

    def add(self, owner: Hashable, timer: str, interval_ns: int, now_ns: int) -> None:
        """Add a timer whose first tick is one interval from now. Raises ValueError for an interval below 1 ns or an id
        in use."""
        if interval_ns < 1:
            raise ValueError(f"timer {timer!r} has interval {interval_ns} ns; it must be at least 1")
        mine = self._by_owner.setdefault(owner, {})
        if timer in mine:
            raise ValueError(f"timer {timer!r} exists already")
        mine[timer] = _Timer(owner, timer, now_ns, interval_ns)
        self._push(mine[timer])

    def drop(self, owner: Hashable) -> None:
        """End all timers of ``owner``, if it has any."""
        for timer in self._by_owner.pop(owner, {}).values():
            timer.live = False
        self._forget_dead()
        if len(self._heap) > 2 * len(self) + FEW:
            self._heap = [each for each in self._heap if each[2].live]
            heapq.heapify(self._heap)

    def next_ns(self) -> int | None:
        """Return when the next tick is due; None without timers."""
        return self._heap[0][0] if self._heap else None

    def due(self, now_ns: int) -> list[Due]:
        """Return one tick for every timer that is due, earliest first, each timer at most once."""
        found: list[Due] = []
        while self._heap and self._heap[0][0] <= now_ns:
            timer = heapq.heappop(self._heap)[2]
            sequence = (now_ns - timer.start_ns) // timer.interval_ns
            late = sequence - timer.delivered - 1
            self.missed += late
            missed = late + timer.withheld
            timer.delivered, timer.withheld = sequence, 0
            self._push(timer)
            due_ns = timer.start_ns + sequence * timer.interval_ns
            found.append(Due(timer.owner, timer.id, sequence, due_ns, missed))
            self._forget_dead()
        return found

    def withhold(self, tick: Due) -> None:
        """Note that ``tick`` could not be delivered: the tick, and those that it had missed, count as missed with the
        next tick of its timer."""
        timer = self._by_owner.get(tick.owner, {}).get(tick.timer)
        if timer is not None:
            timer.withheld += tick.missed + 1
            self.missed += 1

    def packed(self, key: Callable[[Hashable], Key]) -> PackedTimers:
        """Return the whole state; ``key`` names an owner."""
        timers = [
            PackedTimer(
                owner=key(each.owner),
                id=each.id,
                start_ns=each.start_ns,
                interval_ns=each.interval_ns,
                delivered=each.delivered,
                withheld=each.withheld,
            )
            for _, _, each in sorted(self._heap, key=lambda entry: entry[:2])
            if each.live
        ]
        return PackedTimers(timers=timers, missed=self.missed)

    def unpack(self, packed: PackedTimers, owner: Callable[[Key], Hashable]) -> None:
        """Restore the state from ``packed``; ``owner`` finds the owner that a key names."""
        self.missed = packed.missed
        for each in packed.timers:
            mine = self._by_owner.setdefault(owner(each.owner), {})
            timer = _Timer(owner(each.owner), each.id, each.start_ns, each.interval_ns, each.delivered, each.withheld)
            mine[each.id] = timer
            self._push(timer)

    def _push(self, timer: _Timer) -> None:
        self._order += 1
        due_ns = timer.start_ns + (timer.delivered + 1) * timer.interval_ns
        heapq.heappush(self._heap, (due_ns, self._order, timer))

    def _forget_dead(self) -> None:
        while self._heap and not self._heap[0][2].live:
            heapq.heappop(self._heap)
