"""What an asynchronous plugin's callback works on, and how a coroutine that has begun is awaited.

Rules: nothing here waits or sends. ``async_loop`` sets DOING before each callback; the tasks that a callback makes
inherit it, and so does what they send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from functools import partial
from typing import Any

from chronetix.shm import Frame


class Exited(Exception):
    """What a plugin has raised that is no Exception, on its way through a task: SystemExit and KeyboardInterrupt would
    fall out of the event loop, and a CancelledError that nobody asked for would look like a task that was cancelled."""


class FrameInFlight:
    """A frame that is worked on. ``turn`` is resolved when all before it have finished."""

    __slots__ = ("finished", "frame", "turn")

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.finished = False
        self.turn: asyncio.Future[None] | None = None


class Begun:
    """A ``coroutine`` that has begun and waits for what it has yielded, to be awaited."""

    __slots__ = ("_coroutine", "_yielded")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], yielded: Any) -> None:
        self._coroutine = coroutine
        self._yielded = yielded

    def __await__(self) -> Generator[Any, Any, Any]:
        yielded = self._yielded
        while True:
            try:
                sent = yield yielded
            except BaseException as reason:
                go_on = partial(self._coroutine.throw, reason)
            else:
                go_on = partial(self._coroutine.send, sent)
            try:
                yielded = go_on()
            except StopIteration as end:
                return end.value


class Sourcing:
    """The source: what it sends are numbered items."""


DOING: ContextVar[FrameInFlight | Sourcing | None] = ContextVar("doing", default=None)
"""What the running callback works on. Tasks that it makes inherit it."""
