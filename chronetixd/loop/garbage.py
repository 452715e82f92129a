"""Python's search for garbage, in pieces that keep nobody waiting.

Left alone, the interpreter looks through everything that lives, time and again: with a flow of 300 nodes that stops the
loop for 50 ms and more. Rules: what a pass over the oldest objects finds alive is frozen (:func:`gc.freeze`) and not
looked at again, so that a pass costs what is new and not what is there. What becomes garbage after that and is not
freed by its count (a flow that has ended is full of cycles) is found by a full pass, which comes when there may be as
much of it as there is else.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping
from typing import Any

THRESHOLDS = 700, 10, 3
"""New objects, and passes over younger ones, until each of the three generations is looked through: the oldest one has
then some 20 000, which takes 2 ms."""

OLDEST = 2

COUNTED = 8
"""The frozen are counted with one pass in so many: that takes a walk over all of them, 1 ms for 100 000."""

GROWN = 2
"""Times what the last full pass has left: the next one is due."""

FEW = 100_000
"""Frozen objects that are never worth a full pass: it takes 10 ms for so many."""


class Garbage:
    """Of this process, from :meth:`begin` to :meth:`end`. ``later`` has a function called where nobody is in the middle
    of anything; it is called by any thread."""

    def __init__(self, later: Callable[[Callable[[], None]], object]) -> None:
        self._later = later
        self._passes = 0
        self._left = 0
        """Frozen by the last full pass."""
        self._due = False

    def begin(self) -> None:
        """What is there now stays."""
        gc.set_threshold(*THRESHOLDS)
        gc.callbacks.append(self._passed)
        gc.freeze()
        gc.enable()
        self._left = gc.get_freeze_count()

    def end(self) -> None:
        """The interpreter does as it likes. Idempotent."""
        if self._passed in gc.callbacks:
            gc.callbacks.remove(self._passed)

    def _passed(self, phase: str, info: Mapping[str, Any]) -> None:
        if phase != "stop" or info["generation"] != OLDEST:
            return
        gc.freeze()
        self._passes += 1
        if self._passes % COUNTED == 0 and not self._due and self._grown(gc.get_freeze_count()):
            self._due = True
            self._later(self.full)

    def _grown(self, frozen: int) -> bool:
        return frozen > FEW and frozen > GROWN * self._left

    def full(self) -> None:
        """Look through everything."""
        gc.unfreeze()
        gc.collect()
        self._due = False
        self._left = gc.get_freeze_count()


def of(loop: asyncio.AbstractEventLoop) -> Garbage:
    """The full pass in a turn of ``loop``, as long as there is one."""

    def later(call: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call)

    return Garbage(later)
