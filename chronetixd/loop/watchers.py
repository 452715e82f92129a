"""Watchers of a state: functions that are called when it has changed, and tasks that wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watchers:
    """The watchers of one object, whose owner calls :meth:`tell` after every change."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watchers: dict[object, Callable[[], None]] = {}

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` after every change, until the returned function is called."""
        key = object()
        self._watchers[key] = watcher
        return lambda: (self._watchers.pop(key, None), None)[1]

    async def until(self, reached: Callable[[], bool]) -> None:
        """Return once ``reached`` returns True; it is called now and after every change."""
        done = self._loop.create_future()

        def look() -> None:
            if not done.done() and reached():
                done.set_result(None)

        unwatch = self.watch(look)
        try:
            look()
            await done
        finally:
            unwatch()

    def tell(self) -> None:
        """Notify all watchers of a change."""
        for watcher in tuple(self._watchers.values()):
            watcher()
