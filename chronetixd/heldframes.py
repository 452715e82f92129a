"""Looks at what consumers keep, from time to time, and warns; the daemon reads its own maps, no worker is woken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from chronetixd.core.held import Held, Watch

Look = Callable[[], tuple[list[Held], Iterable[int]]]
"""What is held, and how far every route is."""


class HeldFrames:
    """One flow's. ``warn`` is called once for each frame that is kept for longer than ``threshold_s``."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, threshold_s: float, look: Look, warn: Callable[[Held], None]
    ) -> None:
        self._loop = loop
        self._watch = Watch(round(threshold_s * 1e9))
        self._look = look
        self._warn = warn
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The flow runs."""
        self.stop()
        self._timer = self._loop.call_later(self._watch.pause_ns / 1e9, self._due)

    def stop(self) -> None:
        """It does not any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        held, progress = self._look()
        for each in self._watch.look(held, list(progress)):
            self._warn(each)
        self._timer = self._loop.call_later(self._watch.pause_ns / 1e9, self._due)
