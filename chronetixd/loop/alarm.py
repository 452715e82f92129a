"""One event-loop timer for the earliest of many due times; nothing is armed while nothing is due.

The core's heaps say when; this asks them again after every change, so an idle daemon never wakes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Alarm:
    """Calls ``fire`` when the time that ``next_ns`` names (CLOCK_MONOTONIC, None for never) has come."""

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
        """Look again at what is due next. Call after every change of it."""
        due_ns = self._next_ns()
        if due_ns == self._armed_ns:
            return
        self.cancel()
        if due_ns is not None:
            self._armed_ns = due_ns
            self._handle = self._loop.call_later(_delay_s(due_ns - time.monotonic_ns()), self._ring)

    def cancel(self) -> None:
        """Nothing is armed any more."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._armed_ns = None

    def _ring(self) -> None:
        self._handle = self._armed_ns = None
        self._fire()
        self.rearm()


def due_ns(loop: asyncio.AbstractEventLoop, timer: asyncio.TimerHandle) -> int:
    """When ``timer``, which is armed, is due (CLOCK_MONOTONIC)."""
    return time.monotonic_ns() + round(max(0.0, timer.when() - loop.time()) * 1e9)


def left_s(due_ns: int) -> float:
    """Seconds until then, 0 for the past."""
    return max(0, due_ns - time.monotonic_ns()) / 1e9


def _delay_s(ns: int) -> float:
    """Seconds, rounded up to the loop's resolution of 1 ms: waking early would only mean to wait again."""
    return max(0, -(-ns // 1_000_000)) / 1000
