"""Sends of an asynchronous plugin: what finds no credit or no room waits at the doorbell with its task alone.

Rules: a send is tried at once when nobody waits for the same outputs; else they go in the order in which they were
begun. It waits, as in ``shm``, until the routes have come down to credit_low. An interrupt ends every wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from chronetix.nodeworker.api.outputs import Outputs
from chronetix.nodeworker.engine.waits import Waits
from chronetix.shm import Step, WouldBlock

T = TypeVar("T")


class Sends:
    """Of one node. ``waiting(n)`` is told when ``n`` more (or fewer) sends wait."""

    def __init__(self, outputs: Outputs, step: Step, waits: Waits, waiting: Callable[[int], None]) -> None:
        self._outputs = outputs
        self._step = step
        self._waits = waits
        self._waiting = waiting
        self._locks: dict[str | None, asyncio.Lock] = {}

    @property
    def any_wait(self) -> bool:
        """A send waits: what is sent now has to wait behind it."""
        return any(lock.locked() for lock in self._locks.values())

    async def through(self, to: str | None, attempt: Callable[[], T], timeout: float | None = None) -> T:
        """What ``attempt``, a send to ``to`` that does not wait, returns once it succeeds.

        Raises WouldBlock when ``timeout`` seconds have passed, the reason of an interrupt, and what ``attempt`` raises.
        """
        lock = self._locks.get(to)
        if lock is None or not lock.locked():
            try:
                return attempt()
            except WouldBlock as short:
                refused = short
            if self._step.interrupt is not None:
                raise self._step.interrupt from None
        else:
            refused = WouldBlock("others wait for these outputs", to)
        if timeout is not None and timeout <= 0:
            raise refused
        self._waiting(1)
        try:
            async with asyncio.timeout(timeout), self._locks.setdefault(to, asyncio.Lock()):
                return await self._until_sent(to, attempt)
        except TimeoutError:
            raise refused from None
        finally:
            self._waiting(-1)

    async def _until_sent(self, to: str | None, attempt: Callable[[], T]) -> T:
        outlets: tuple[Any, ...] = ()
        try:
            while True:
                outlets = self._outputs.outlets(to)
                armed = [outlet.arm() for outlet in outlets]
                if any(armed):
                    await self._waits.rest()
                if self._step.interrupt is not None:
                    raise self._step.interrupt
                try:
                    return attempt()
                except WouldBlock:
                    continue
        finally:
            for outlet in outlets:
                outlet.disarm()
            self._waits.wake()  # who else waits on these routes arms again
