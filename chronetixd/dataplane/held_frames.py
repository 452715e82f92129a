"""Looks at what consumers keep, from time to time, and warns; the daemon reads its own maps, no worker is woken.

Rules: no timer in a flow in which nothing happens. The first look comes soon after the flow runs; further ones as
long as there is something to see, and again once a worker has said something, or somebody has asked about the flow. A
look at many routes is taken in slices, with turns for everybody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from chronetixd.core.held import HeldFramePolicy, OldestHeldFrame
from chronetixd.core.packed import PackedWatch
from chronetixd.dataplane.wiring import Wiring
from chronetixd.loop.turns import SLICE_NS

FIRST_S = 1.0
"""From the flow's start to the first look, unless the threshold is shorter."""

Seen = tuple[OldestHeldFrame | None, int, int]
"""What is held on one route, and how far it is: frames committed and returned."""

Look = Callable[[], Iterator[Seen]]
"""A look, route by route."""


class HeldFrameWatch:
    """One flow's. ``warn`` is called once for each frame that is kept for longer than ``threshold_s``."""

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
        """Of the next look, or of the next slice of one."""

    def start(self) -> None:
        """The flow runs."""
        self._running = True
        self._arm(min(FIRST_S, self._threshold_s))

    def packed(self) -> PackedWatch:
        """What was warned of."""
        return self._watch.packed()

    def unpack(self, packed: PackedWatch) -> None:
        """The inverse; :meth:`start` is called as ever."""
        self._watch.unpack(packed)

    def stir(self) -> None:
        """Something happens in the flow, or somebody asks about it. Cheap: no look is taken now."""
        if self._running and self._timer is None:
            self._arm(self._threshold_s)

    def stop(self) -> None:
        """It does not any more. Idempotent."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._go_on(self._look(), [], [])

    def _go_on(self, looking: Iterator[Seen], held: list[OldestHeldFrame], progress: list[int]) -> None:
        """As much of a look as one turn of the loop has room for."""
        end = time.monotonic_ns() + SLICE_NS
        for kept, *counters in looking:
            progress += counters
            if kept is not None:
                held.append(kept)
            if time.monotonic_ns() >= end:
                self._timer = self._loop.call_soon(self._go_on, looking, held, progress)
                return
        self._timer = None
        for each in self._watch.look(held, progress):
            self._warn(each)
        if not self._watch.idle:
            self._arm(self._threshold_s)

    def _arm(self, after_s: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(after_s, self._due)


def look(wiring: Wiring) -> Iterator[Seen]:
    """What consumers keep on any route, and counters that move as long as frames do."""
    for route in wiring.routes:
        snapshot = wiring.snapshot(route) if wiring.has(route) else None
        if snapshot is not None:
            found = wiring.kept(route) if snapshot["outstanding"] else None
            held = OldestHeldFrame(route.id, route.target, found[1], found[2], found[0]) if found is not None else None
            yield held, snapshot["committed"], snapshot["returned"]
