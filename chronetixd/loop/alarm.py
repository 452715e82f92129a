"""One event-loop timer for the earliest of many due times; no timer is armed while nothing is due.

The due times are in the core's heaps. An alarm reads the earliest one after every change, so an idle daemon never
wakes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Alarm:
    """Calls ``fire`` at the time that ``next_ns`` returns (CLOCK_MONOTONIC, None for never)."""

    __slots__ = ("_armed_ns", "_fire", "_handle", "_loop", "_next_ns")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, next_ns: Callable[[], int | None], fire: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._next_ns = next_ns
        self._fire = fire
        self._handle: asyncio.TimerHandle | None = None
        self._armed_ns: int | None = None

    def rearm(self) -> None:
        """Read the next due time and arm the timer for it. Call this after every change of due times."""
        due_ns = self._next_ns()
        if due_ns == self._armed_ns:
            return
        self.cancel()
        if due_ns is not None:
            self._armed_ns = due_ns
            self._handle = self._loop.call_later(_delay_s(due_ns - time.monotonic_ns()), self._ring)

    def cancel(self) -> None:
        """Disarm the timer."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._armed_ns = None

    def _ring(self) -> None:
        self._handle = self._armed_ns = None
        self._fire()
        self.rearm()


def due_ns(loop: asyncio.AbstractEventLoop, timer: asyncio.TimerHandle) -> int:
    """Return when the armed ``timer`` is due (CLOCK_MONOTONIC)."""
    return time.monotonic_ns() + round(max(0.0, timer.when() - loop.time()) * 1e9)


def left_s(due_ns: int) -> float:
    """Return the seconds until ``due_ns``, 0 if it has passed."""
    return max(0, due_ns - time.monotonic_ns()) / 1e9


def _delay_s(ns: int) -> float:
    """Return the delay in seconds, rounded up to the loop's resolution of 1 ms: after waking too early the alarm would
    only wait again."""
    return max(0, -(-ns // 1_000_000)) / 1000
