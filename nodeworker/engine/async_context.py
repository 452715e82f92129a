"""The context of an asynchronous plugin: ``send``, ``loan`` and ``request`` are awaited, so that they never block the
event loop; the rest is as in ``context``. Every method may be used from the loop's thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from chronetix.nodeworker.api.context import Context, nanoseconds
from chronetix.nodeworker.api.errors import RequestFailed, late
from chronetix.nodeworker.api.message import Message
from chronetix.nodeworker.api.outputs import Notes
from chronetix.shm import Loan

T = TypeVar("T")


class EventLoopSide(Protocol):
    """What the context needs of the loop that runs the node (:mod:`chronetix.nodeworker.engine.async_loop`)."""

    def send(self, to: str | None, data: Any, timeout: float | None, notes: Notes | None) -> Coroutine[Any, Any, None]:
        """Wait for its turn, then for credit, and send."""

    def loan(self, to: str | None, nbytes: int, timeout: float | None) -> Coroutine[Any, Any, Loan]:
        """Wait as a send does, and lend room."""

    def asks(self, more: int) -> None:
        """So many more requests are open."""

    def fail(self, reason: BaseException) -> None:
        """The node has failed."""


ONCE = "this was awaited already: call the method again"


class Pending(Coroutine[Any, Any, T]):
    """What has to be awaited once, or given to a task. Forgetting that would lose a frame silently, so it is told, and
    ends the node.

    It is a coroutine to asyncio: ``create_task``, ``TaskGroup``, ``gather``, ``wait_for`` and ``shield`` take it.
    """

    __slots__ = ("_begun", "_forgotten", "_work")

    _begun: Coroutine[Any, Any, T]
    """Set by the first ``send`` or ``throw`` of a task; an ``await`` never needs it."""

    def __init__(self, work: Coroutine[Any, Any, T], forgotten: Callable[[], None]) -> None:
        self._work: Coroutine[Any, Any, T] | None = work
        self._forgotten = forgotten

    def __await__(self) -> Generator[Any, None, T]:
        work, self._work = self._work, None
        if work is None:
            raise RuntimeError(ONCE)
        return work.__await__()

    def send(self, value: Any, /) -> Any:
        """Go on until the next wait, as a task does. Raises StopIteration at the end."""
        return self._of_task().send(value)

    def throw(self, *reason: Any) -> Any:
        """Raise ``reason`` where it waits, as a task does that was cancelled."""
        return self._of_task().throw(*reason)

    def close(self) -> None:
        """Give it up: it is not sent, and that is not told."""
        work, self._work = self._work, None
        work = work or getattr(self, "_begun", None)
        if work is not None:
            work.close()

    def _of_task(self) -> Coroutine[Any, Any, T]:
        work, self._work = self._work, None
        if work is not None:
            self._begun = work
        elif not hasattr(self, "_begun"):
            raise RuntimeError(ONCE)
        return self._begun

    def __del__(self) -> None:
        if self._work is not None:
            self._work.close()
            self._forgotten()


class AsyncContext(Context):
    """What an asynchronous plugin gets as ``ctx``: as :class:`Context`, but what waits is awaited. It is used from the
    event loop's thread only."""

    __slots__ = ("_loop_side",)

    awaited = True

    _loop_side: EventLoopSide | None

    def adopt(self, side: EventLoopSide) -> None:
        """The event loop's side of the node; before that nothing can be sent."""
        self._loop_side = side

    def send(  # type: ignore[override]  # awaited
        self,
        data: Any,
        *,
        to: str | None = None,
        timeout: float | None = None,
        meta: Mapping[str, Any] | None = None,
        stamp_ns: int = 0,
    ) -> Pending[None]:
        """Send one frame: ``await ctx.send(…)``, with the arguments and errors of ``Context.send``. It waits for its
        turn, because frames leave in the order of those they were made from, then for credit."""
        side = self._started()
        notes = None if meta is None and not stamp_ns else Notes(stamp_ns, meta)
        return self._pending("send", side.send(to, data, timeout, notes))

    def send_many(self, data: Any, size: int, *, to: str | None = None, timeout: float | None = None) -> int:  # noqa: ARG002
        """Raises TypeError: it would hold up the event loop. Send one by one instead."""
        raise TypeError("send_many waits for credit; an asynchronous plugin sends one by one: await ctx.send(…)")

    def loan(  # type: ignore[override]
        self, nbytes: int, *, to: str | None = None, timeout: float | None = None
    ) -> Pending[Loan]:
        """Return shared memory in which to write a frame: ``with await ctx.loan(n) as room: …``, with the arguments and
        errors of ``Context.loan``."""
        return self._pending("loan", self._started().loan(to, nbytes, timeout))

    def request(  # type: ignore[override]
        self, topic: str, data: Any = None, timeout: float = 5.0, **envelope: Any
    ) -> Pending[Message]:
        """Send a request and return the reply: ``await ctx.request(…)``, with the arguments and errors of
        ``Context.request``."""
        head, payload = self._asking(topic, data, envelope)
        return self._pending("request", self._answered(head, payload, timeout))

    async def _answered(self, head: dict[str, Any], payload: bytes, timeout: float) -> Message:
        side, loop = self._started(), asyncio.get_running_loop()
        answer: asyncio.Future[Message | RequestFailed] = loop.create_future()

        def settle(end: Message | RequestFailed) -> None:
            if not answer.done():
                answer.set_result(end)

        def done(end: Message | RequestFailed) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(settle, end)

        if self._step.interrupt is not None:
            raise self._step.interrupt
        limit = loop.call_later(timeout + self._host.grace_s, settle, late(str(head["topic"]), timeout))
        side.asks(1)
        try:
            forget = self._host.ask(head, payload, nanoseconds(timeout), done)
            try:
                end = await answer
            finally:
                forget()
        finally:
            side.asks(-1)
            limit.cancel()
        if isinstance(end, RequestFailed):
            raise end
        return end

    def _started(self) -> EventLoopSide:
        side: EventLoopSide | None = getattr(self, "_loop_side", None)
        if side is None:
            raise RuntimeError(f"node {self.node!r} can send and ask from on_start on, not in its constructor")
        return side

    def _pending(self, method: str, work: Coroutine[Any, Any, T]) -> Pending[T]:
        return Pending(work, partial(self._forgotten, method))

    def _forgotten(self, method: str) -> None:
        text = f"ctx.{method} was called and not awaited: in a plugin with async callbacks write await ctx.{method}(…)"
        self._started().fail(TypeError(text))
