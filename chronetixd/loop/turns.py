"""Work that comes in bursts, in slices of the loop: what a thousand workers need at once keeps nobody else waiting.

Rules: work is done in the order in which it was added, as much of it in one turn of the loop as SLICE_NS allows, and at
least one piece; then everybody else has a turn. Nothing is added that may be done too late: who added it has to look
whether it is still wanted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

SLICE_NS = 2_000_000
"""Of one turn: a neighbour's question waits for little more."""


class Turns:
    """The work of one loop. An exception of a piece of work is the loop's, and the rest goes on in the next turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slice_ns: int = SLICE_NS) -> None:
        self._loop = loop
        self._slice_ns = slice_ns
        self._work: deque[Callable[[], None]] = deque()
        self._due = False

    @property
    def waiting(self) -> int:
        """Pieces of work that are still to be done."""
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
    """For what a coroutine does in a loop of its own: others have their turns whenever a slice of time is used up."""

    def __init__(self, slice_ns: int = SLICE_NS) -> None:
        self._slice_ns = slice_ns
        self._end = time.monotonic_ns() + slice_ns

    async def over(self, things: Iterable[T]) -> AsyncIterator[T]:
        """Each of ``things`` as they are now."""
        for thing in tuple(things):
            if time.monotonic_ns() >= self._end:
                await asyncio.sleep(0)
                self._end = time.monotonic_ns() + self._slice_ns
            yield thing
