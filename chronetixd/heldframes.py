"""Looks at what consumers keep, from time to time, and warns; the daemon reads its own maps, no worker is woken.

Rules: no timer in a flow in which nothing happens. The first look comes soon after the flow runs; further ones as
long as there is something to see, and again once a worker has said something, or somebody has asked about the flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from chronetixd.core.held import Held, Watch
from chronetixd.core.packed import PackedWatch
from chronetixd.wiring import Wiring

FIRST_S = 1.0
"""From the flow's start to the first look, unless the threshold is shorter."""

Look = Callable[[], tuple[list[Held], Iterable[int]]]
"""What is held, and how far every route is."""


class HeldFrames:
    """One flow's. ``warn`` is called once for each frame that is kept for longer than ``threshold_s``."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, threshold_s: float, look: Look, warn: Callable[[Held], None]
    ) -> None:
        self._loop = loop
        self._threshold_s = threshold_s
        self._watch = Watch(round(threshold_s * 1e9))
        self._running = False
        self._look = look
        self._warn = warn
        self._timer: asyncio.TimerHandle | None = None

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
        held, progress = self._look()
        for each in self._watch.look(held, list(progress)):
            self._warn(each)
        self._timer = None
        if not self._watch.idle:
            self._arm(self._threshold_s)

    def _arm(self, after_s: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(after_s, self._due)


def look(wiring: Wiring) -> tuple[list[Held], list[int]]:
    """What consumers keep on any route, and counters that move as long as frames do."""
    kept: list[Held] = []
    progress: list[int] = []
    for route in wiring.routes:
        snapshot = wiring.snapshot(route)
        if snapshot is None:
            continue
        progress += (snapshot["committed"], snapshot["returned"])
        held = wiring.kept(route) if snapshot["outstanding"] else None
        if held is not None:
            kept.append(Held(route.id, route.target, held[1], held[2], held[0]))
    return kept, progress
