"""Python's garbage collection, in passes that are short enough for the loop.

By default the interpreter scans all living objects again and again: with a flow of 300 nodes this stops the loop for 50
ms and more. Rules: objects that a pass over the oldest generation has found alive are frozen (:func:`gc.freeze`) and
not scanned again, so that the cost of a pass depends on the new objects and not on all objects. Frozen objects that
become garbage later and are in reference cycles (a flow that has ended is full of them) are found by a full pass, which
is due when there may be as much such garbage as other objects.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping
from typing import Any

THRESHOLDS = 700, 10, 3
"""After how many new objects, and passes over the younger generations, each of the three generations is scanned. The
oldest one then has about 20 000 objects, whose scan takes 2 ms."""

OLDEST = 2

COUNTED = 8
"""With one pass in so many the frozen objects are counted, which takes a walk over all of them: 1 ms for 100 000."""

GROWN = 2
"""A full pass is due when there are so many times the objects that the last one has left."""

FEW = 100_000
"""Up to how many frozen objects no full pass is made: it takes 10 ms for so many."""


class Garbage:
    """The garbage collection of this process, from :meth:`begin` to :meth:`end`. ``later`` has a function called at a
    time when no other code is interrupted; any thread may call ``later``."""

    def __init__(self, later: Callable[[Callable[[], None]], object]) -> None:
        self._later = later
        self._passes = 0
        self._left = 0
        """How many objects the last full pass has frozen."""
        self._due = False

    def begin(self) -> None:
        """Freeze all present objects, and collect as described above from now on."""
        gc.set_threshold(*THRESHOLDS)
        gc.callbacks.append(self._passed)
        gc.freeze()
        gc.enable()
        self._left = gc.get_freeze_count()

    def end(self) -> None:
        """Leave garbage collection to the interpreter again. Idempotent."""
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
        """Scan all objects."""
        gc.unfreeze()
        gc.collect()
        self._due = False
        self._left = gc.get_freeze_count()


def of(loop: asyncio.AbstractEventLoop) -> Garbage:
    """Return the garbage collection whose full passes run in a turn of ``loop``, as long as ``loop`` is open."""

    def later(call: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call)

    return Garbage(later)
