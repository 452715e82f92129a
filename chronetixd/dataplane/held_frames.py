"""Checks from time to time which frames consumers hold, and warns of old ones. The daemon reads its own mappings; no
worker is woken.

Rules: no timer runs in a flow in which nothing happens. The first check comes soon after the flow runs. Further checks
follow as long as frames move or are held, and again after a message of a worker or a request of a client about the
flow. A check of many routes is done in slices, and other work of the daemon gets its turn in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from chronetixd.core.held import HeldFramePolicy, OldestHeldFrame
from chronetixd.core.packed import PackedWatch
from chronetixd.dataplane.wiring import FlowWiring
from chronetixd.loop.turns import SLICE_NS

FIRST_S = 1.0
"""The time from the flow's start to the first check, unless the threshold is shorter."""

Seen = tuple[OldestHeldFrame | None, int, int]
"""The oldest frame that is held on one route, and the route's progress: frames committed and returned."""

Look = Callable[[], Iterator[Seen]]
"""Yields what is held, route by route."""


class HeldFrameWatch:
    """Watches one flow. ``warn`` is called once for each frame that is held for longer than ``threshold_s``."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, threshold_s: float, look: Look, warn: Callable[[OldestHeldFrame], None]
    ) -> None:
        self._loop = loop
        self._threshold_s = threshold_s
        self._watch = HeldFramePolicy(round(threshold_s * 1e9))
        self._running = False
        self._look = look
        self._warn = warn
        self._timer: asyncio.Handle | None = None
        """The timer of the next check, or of the next slice of one."""

    def start(self) -> None:
        """Begin to check, because the flow runs."""
        self._running = True
        self._arm(min(FIRST_S, self._threshold_s))

    def packed(self) -> PackedWatch:
        """Return which frames were warned of."""
        return self._watch.packed()

    def unpack(self, packed: PackedWatch) -> None:
        """Restore the state from ``packed``; :meth:`start` has to be called as usual."""
        self._watch.unpack(packed)

    def note_activity(self) -> None:
        """Arm the next check, because a worker has sent a message or a client asks about the flow. Cheap: nothing is
        checked now."""
        if self._running and self._timer is None:
            self._arm(self._threshold_s)

    def stop(self) -> None:
        """Stop to check. Idempotent."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._resume(self._look(), [], [])

    def _resume(self, looking: Iterator[Seen], held: list[OldestHeldFrame], progress: list[int]) -> None:
        """Do as much of a check as fits into one turn of the loop."""
        end = time.monotonic_ns() + SLICE_NS
        for kept, *counters in looking:
            progress += counters
            if kept is not None:
                held.append(kept)
            if time.monotonic_ns() >= end:
                self._timer = self._loop.call_soon(self._resume, looking, held, progress)
                return
        self._timer = None
        for each in self._watch.look(held, progress):
            self._warn(each)
        if not self._watch.idle:
            self._arm(self._threshold_s)

    def _arm(self, after_s: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(after_s, self._due)


def look(wiring: FlowWiring) -> Iterator[Seen]:
    """Yield what consumers hold on each route, and counters that change when frames move."""
    for route in wiring.routes:
        snapshot = wiring.snapshot(route) if wiring.has(route) else None
        if snapshot is not None:
            found = wiring.oldest_held(route) if snapshot["outstanding"] else None
            held = OldestHeldFrame(route.id, route.target, found[1], found[2], found[0]) if found is not None else None
            yield held, snapshot["committed"], snapshot["returned"]
