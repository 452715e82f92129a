"""The thread of a worker whose plugin is asynchronous: an event loop (uvloop) from ``on_start`` to ``on_stop``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvloop

from chronetix.nodeworker.api.message import Answer
from chronetix.nodeworker.engine import ending
from chronetix.nodeworker.engine.async_loop import AsyncLoop, refuse_stop
from chronetix.nodeworker.engine.end_watch import EndWatch
from chronetix.nodeworker.engine.event_loop_end import EventLoopEnd
from chronetix.nodeworker.engine.loop import Mailbox, Rewire
from chronetix.nodeworker.engine.node import Node
from chronetix.nodeworker.engine.waits import Waits
from chronetix.shm import Doorbell


class UvLoop(uvloop.Loop):
    """uvloop's, which a plugin cannot stop."""

    def stop(self) -> None:
        """Not for plugins, which call it within a task."""
        refuse_stop(self)
        super().stop()


class AsyncRun:
    """The blocking face of :class:`AsyncLoop`, as :class:`chronetix.nodeworker.engine.loop.Loop` has it."""

    def __init__(self, node: Node, mailbox: Mailbox, bell: Doorbell, answer: Answer, rewire: Rewire) -> None:
        self._loop = UvLoop()
        asyncio.set_event_loop(self._loop)
        self._waits = Waits(self._loop, bell)
        self._async_loop = AsyncLoop(self._waits, _unheard, node, mailbox, bell, answer, rewire)
        self._end: EventLoopEnd | None = None
        self._watch: EndWatch | None = None

    def start(self) -> None:
        """``on_start``."""
        self._loop.run_until_complete(self._async_loop.begin())

    def run(self) -> None:
        """Until the node has nothing more to do."""
        self._loop.run_until_complete(self._async_loop.live())

    def stop(self) -> Any:
        """``on_stop`` and the end of the outputs; the node's result."""
        return self._loop.run_until_complete(self._async_loop.finish())

    def interrupt(self, reason: BaseException) -> None:
        """Cancel whatever waits: ``start`` and ``run`` raise ``reason``. From a signal handler."""
        self._async_loop.interrupt(reason)

    def close(self, limit_s: float, blocked: Callable[[str], None]) -> str:
        """End the event loop, and with it what the plugin has left running there; what hangs, empty if nothing does.
        ``blocked`` is called, in another thread, when something keeps the loop from going on past its limit."""
        self._async_loop.cancels()
        self._end = EventLoopEnd(self._loop, limit_s)
        self._watch = EndWatch(limit_s + ending.DEAF_S, blocked)
        try:
            return self._loop.run_until_complete(self._end.run())
        finally:
            self._watch.stop()
            self._end = self._watch = None
            self._waits.close()
            asyncio.set_event_loop(None)
            self._loop.close()

    def hurry(self, seconds: float) -> None:
        """:meth:`close`, if it is under way, has no more time than this. From a signal handler."""
        if self._end is not None and self._watch is not None:
            self._end.hurry(seconds)
            self._watch.hurry(seconds + ending.DEAF_S)


def _unheard() -> None:
    """Outside of this thread nobody waits to be told."""
