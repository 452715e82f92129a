"""The one place where the tasks of an event loop sleep for shared memory and messages: the doorbell.

The loop polls the doorbell's descriptor together with everything else it polls. A ring says "look again" to every task
that rests here, nothing more; each looks at its own routes or mailbox, and rests again. Nothing polls, nothing is lost:
who rests has armed its routes and looked once more before, and a ring stays in the descriptor until the loop reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chronetix.nodeworker.api.tracebacks import log_failure
from chronetix.shm import Doorbell


class Waits:
    """Rests on ``bell`` within ``loop``. ``on_ring`` is called after the tasks that rest were told."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, bell: Doorbell, on_ring: Callable[[], None] | None = None
    ) -> None:
        self.loop = loop
        self._bell = bell
        self._on_ring = on_ring
        self._resting: set[asyncio.Future[None]] = set()
        self.stirred = False
        """Somebody was woken, or has woken up, since this was set to False."""
        loop.add_reader(bell.fileno(), self._rung)
        loop.set_exception_handler(log_failure)

    def close(self) -> None:
        """Leave the loop."""
        self.loop.remove_reader(self._bell.fileno())

    def wake(self) -> None:
        """Everybody looks again."""
        self.stirred = True
        resting, self._resting = self._resting, set()
        for future in resting:
            if not future.done():
                future.set_result(None)

    async def rest(self) -> None:
        """Until the next ring or :meth:`wake`."""
        future = self.loop.create_future()
        self._resting.add(future)
        try:
            await future
        finally:
            self.stirred = True
            self._resting.discard(future)

    def _rung(self) -> None:
        self._bell.clear()
        self.wake()
        if self._on_ring is not None:
            self._on_ring()
