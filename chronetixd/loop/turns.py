"""Work that comes in bursts, done in slices of the loop, so that work for a thousand workers at once does not delay
other work.

Rules: work is done in the order in which it was added. In one turn of the loop at least one piece of work is done, and
then as many as SLICE_NS allows; then other work has a turn. Work may be done late, so the code that added it checks
whether it is still needed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

SLICE_NS = 2_000_000
"""How long one turn may work: a client that asks meanwhile waits little more."""


class Turns:
    """The queued work of one loop. An exception of a piece of work goes to the loop; the other pieces go on in the next
    turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slice_ns: int = SLICE_NS) -> None:
        self._loop = loop
        self._slice_ns = slice_ns
        self._work: deque[Callable[[], None]] = deque()
        self._due = False

    @property
    def waiting(self) -> int:
        """How many pieces of work are still to be done."""
        return len(self._work)

    def add(self, work: Callable[[], None]) -> None:
        """Do ``work`` in this or a later turn of the loop."""
        self._work.append(work)
        self._soon()

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._due = False
        end = time.monotonic_ns() + self._slice_ns
        try:
            while self._work:
                self._work.popleft()()
                if time.monotonic_ns() >= end:
                    return
        finally:
            if self._work:
                self._soon()


class Pace:
    """For a coroutine with a loop of its own: after each slice of time other work has a turn."""

    def __init__(self, slice_ns: int = SLICE_NS) -> None:
        self._slice_ns = slice_ns
        self._end = time.monotonic_ns() + slice_ns

    async def over(self, things: Iterable[T]) -> AsyncIterator[T]:
        """Yield each of ``things``, as they are at the beginning."""
        for thing in tuple(things):
            if time.monotonic_ns() >= self._end:
                await asyncio.sleep(0)
                self._end = time.monotonic_ns() + self._slice_ns
            yield thing
