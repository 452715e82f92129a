"""The plugin's thread of a node whose plugin is asynchronous: an event loop in which callbacks wait without blocking.

Rules: one thread, one place to sleep (``waits``), no task polls. Up to ``max_inflight`` frames are worked on at once;
each is returned when what comes of it is committed, which is in the order of the frames unless the plugin says
``ordered = False``. Ticks and messages come one after another, beside the frames. An ``await`` is a wait: a drain
cancels a source that waits for its next item, an interrupt whatever waits. What a callback raises ends the node. The
ways of frames, items and events are one class, since they share one order of sends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from types import CoroutineType
from typing import Any, NoReturn, TypeVar

from chronetix.nodeworker.api.errors import named
from chronetix.nodeworker.api.message import Message
from chronetix.nodeworker.api.outputs import Notes, Origin
from chronetix.nodeworker.engine import children
from chronetix.nodeworker.engine.async_context import AsyncContext
from chronetix.nodeworker.engine.awaiting import DOING, Begun, Exited, FrameInFlight, Sourcing
from chronetix.nodeworker.engine.loop import Event, Finish, Loop
from chronetix.nodeworker.engine.node import Phase
from chronetix.nodeworker.engine.sends import Sends
from chronetix.nodeworker.engine.waits import Waits
from chronetix.protocol.messages import Deliver, Drain, Leave, Tick
from chronetix.shm import Frame, Loan, RouteClosed, run_awaited

T = TypeVar("T")

STRETCH = 32
"""Frames or items without a wait, after which the other tasks get their turn."""

END: Any = object()

FOREIGN = "a task that runs the node was cancelled by the plugin; a node that is done says so by ctx.finish()"


class AsyncLoop(Loop):
    """Runs ``node`` in the event loop of ``waits``. ``notify`` is called when something has come of it; the other
    arguments are those of :class:`Loop`."""

    def __init__(self, waits: Waits, notify: Callable[[], None], *arguments: Any) -> None:
        super().__init__(*arguments)
        node = self._node
        self._waits = waits
        self._notify = notify
        self._limit = node.config.max_inflight
        self._in_flight: deque[FrameInFlight] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._source_task: asyncio.Task[None] | None = None
        self._source_waits = False
        self._ending = False
        self._main: asyncio.Task[Any] | None = None
        self._reason: BaseException | None = None
        self._open = self._waiting = self._asking = 0
        self._present: FrameInFlight | None = None
        self._failing = False
        self._owner = children.Owner()
        self._sends = Sends(node.outputs, node.step, waits, self.waits)
        self.taken = 0
        """Frames taken."""
        assert isinstance(node.ctx, AsyncContext)  # Node.construct has seen to that
        node.ctx.adopt(self)

    @property
    def quiet(self) -> bool:
        """No callback is under way and no event waits."""
        return not (self._open or self._in_flight or self._mailbox)

    @property
    def stuck(self) -> bool:
        """All callbacks under way wait for credits, or for those that do."""
        return 0 < self._open == self._waiting and not self._asking

    # -- the node's life ----------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """``on_start``."""
        if self._node.plugin.on_start is not None:
            await self._cancellable(self._call("start", self._node.plugin.on_start, self._node.ctx))

    async def live(self) -> None:
        """As :meth:`Loop.run`."""
        try:
            await self._cancellable(self._work())
        except RouteClosed as closed:
            self._consumer_closed(closed)

    async def finish(self) -> Any:
        """``on_stop`` and the end of the outputs; the node's result, as it can travel."""
        result = None
        self._reason = None
        self._failing = self._node.step.cancelled = False
        on_stop = self._node.take_on_stop()
        if on_stop is not None:
            result = await self._cancellable(self._call("stop", on_stop, self._node.ctx))
        return self._node.end(result)

    def fail(self, reason: BaseException) -> None:
        """The node ends with ``reason``, if it does not already with another; from the loop's thread."""
        self._node.step.cancelled = True
        if self._reason is None:
            self._reason = reason.args[0] if isinstance(reason, Exited) else reason
        if self._main is not None:
            self._main.cancel()

    def cancels(self) -> None:
        """Whatever runs in the event loop is about to be cancelled, by whoever runs it."""
        self._node.step.cancelled = True

    def interrupt(self, reason: BaseException) -> None:
        """As :meth:`fail`, from a signal handler."""
        self._waits.loop.call_soon_threadsafe(self.fail, reason)

    async def _cancellable(self, work: Coroutine[Any, Any, Any]) -> Any:
        """``work``, until it ends or the node fails, whatever it waits for."""
        self._main = self._waits.loop.create_task(work)
        try:
            result = await self._main
        except asyncio.CancelledError:
            if self._reason is None:
                raise
        except Exited as asked:
            raise asked.args[0] from None
        finally:
            self._main = None
        if self._reason is not None:
            raise self._reason
        return result

    async def _work(self) -> None:
        self._task(self._serving())
        work = [self._task(self._taking())] if self._node.config.inputs else []
        if self._node.plugin.produce is not None:
            self._source_task = self._task(self._sourcing())
            work.append(self._source_task)
        try:
            await asyncio.wait(work or [self._task(self._until_drained())])
            self._ending = True
            self._waits.wake()
            await asyncio.wait(self._tasks)  # an event that is being served
        except BaseException:
            if not self._node.step.cancelled:
                self.fail(asyncio.CancelledError(FOREIGN))
            for task in self._tasks:
                task.cancel()
            raise
        finally:
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._waits.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if not self._node.step.cancelled:
                self.fail(asyncio.CancelledError(FOREIGN))
        elif (reason := task.exception()) is not None:
            self.fail(reason)

    # -- frames -------------------------------------------------------------------------------------------------

    async def _taking(self) -> None:
        inlet, in_flight, waits = self._node.inlet, self._in_flight, self._waits
        stretch, left = 0, self._node.room
        while True:
            stretch += 1
            if self._limit == 1 and not (self._node.leaves or self._node.step.finishing or self._sends.any_wait):
                more = self._straight_through()
                if isinstance(more, tuple):
                    await self._finish_frame(*more)
                    continue
                if more:
                    stretch = 0
                    waits.wake()
                    await asyncio.sleep(0)
                    continue
            if self._mailbox or stretch >= STRETCH:
                stretch = 0
                waits.wake()
                await asyncio.sleep(0)
            if len(in_flight) >= self._limit:
                await waits.rest()
                continue
            if (self._node.leaves and left <= 0) or self._node.step.finishing:
                break
            frame = inlet.take(0)
            if frame is not None:
                left -= self._node.leaves
                await self._begin_frame(frame)
            elif inlet.ended or self.drained:
                break
            elif inlet.arm():
                stretch = 0
                await waits.rest()
        while in_flight:
            await waits.rest()

    def _straight_through(self) -> tuple[Frame, Any, Any] | bool:
        """Take frames one by one, as long as nothing has to be waited for: see ``shm.run_awaited``."""
        node = self._node
        step, on_frame, begun = node.step, node.plugin.on_frame, node.step.count
        assert on_frame is not None  # bind refuses inputs without it
        try:
            return run_awaited(
                *(node.inlet, on_frame, node.ctx, step, self._mailbox, node.loop_emit),
                *(self._enter, self, CoroutineType, STRETCH),
            )
        except BaseException as reason:
            self._fails("frame", reason)
        finally:
            if step.count != begun:
                self.taken += step.count - begun
                self._notify()

    def _enter(self, frame: Frame) -> None:
        """What happens from now on is about this frame. It is kept until the next one: when its callback fails, its
        credit must not return with the last reference."""
        self._begins("frame")
        self._present = FrameInFlight(frame)
        DOING.set(self._present)

    async def _finish_frame(self, frame: Frame, coroutine: Any, value: Any) -> None:
        """What is left to do of a frame whose callback has to wait, or whose result has."""
        if not self._owner.is_here:
            children.end_child(None)
        if coroutine is not None:
            value = await self._call("frame", Begun, coroutine, value)
        elif hasattr(value, "__await__"):
            value = await self._call("frame", lambda: value)
        if value is not None:
            await self._give(value)
        frame.release()
        self._notify()

    async def _begin_frame(self, frame: Frame) -> None:
        self.taken += 1
        entry = FrameInFlight(frame)
        self._in_flight.append(entry)
        if self._limit == 1:
            await self._work_on(entry)
        else:
            self._task(self._work_on(entry))

    async def _work_on(self, entry: FrameInFlight) -> None:
        """One frame through the plugin."""
        DOING.set(entry)
        on_frame = self._node.plugin.on_frame
        assert on_frame is not None  # bind refuses inputs without it
        result = await self._call("frame", on_frame, entry.frame, self._node.ctx)
        if result is not None:
            await self._give(result)
        entry.frame.release()
        entry.finished = True
        in_flight = self._in_flight
        if in_flight[0] is entry:
            while in_flight and in_flight[0].finished:
                in_flight.popleft()
            if in_flight and in_flight[0].turn is not None:
                in_flight[0].turn.set_result(None)
            if self._limit > 1:
                self._waits.wake()
        self._notify()

    async def _turn(self) -> None:
        """Until what comes of the present frame may leave."""
        doing = DOING.get()
        if self._limit == 1 or not isinstance(doing, FrameInFlight) or doing.finished or not self._node.plugin.ordered:
            return
        if self._in_flight[0] is doing:
            return
        if doing.turn is None:
            doing.turn = self._waits.loop.create_future()
        self.waits(1)
        try:
            await asyncio.shield(doing.turn)
        finally:
            self.waits(-1)

    # -- items --------------------------------------------------------------------------------------------------

    async def _sourcing(self) -> None:
        produce = self._node.plugin.produce
        assert produce is not None
        if not self._node.config.inputs:
            DOING.set(Sourcing())
        made = await self._call("source", produce, self._node.ctx)
        try:
            await self._produced(made)
        except BaseException as reason:
            await self._closed_after(made, reason)
            raise
        await self._closed(made)

    async def _closed(self, made: Any) -> None:
        """Its generator's ``finally`` runs."""
        close = getattr(made, "aclose", None) or getattr(made, "close", None)
        if close is not None:
            await self._call("source", close)

    async def _closed_after(self, made: Any, reason: BaseException) -> None:
        try:
            await self._closed(made)
        except (Exception, Exited) as further:
            reason.add_note(f"closing the source then raised {named(further)}")

    async def _produced(self, made: Any) -> None:
        items = made if hasattr(made, "__aiter__") else None
        step = aiter(items).__anext__ if items is not None else partial(_next, iter(self._node.remembering(made)))
        stretch = 0
        while not self.drained and not self._node.step.finishing:
            item = await self._next_item(step)
            if item is END:
                break
            if item is not None:
                await self._give(item)
            stretch += 1
            if self._mailbox or stretch >= STRETCH:
                stretch = 0
                self._waits.wake()
                await asyncio.sleep(0)
        while self._node.ctx.stopping and not self.drained and not self._node.config.inputs:
            await self._waits.rest()

    async def _next_item(self, step: Callable[[], Any]) -> Any:
        """The next item; END if there is none, or if the node is drained while the source waits for it."""
        self._source_waits = True
        try:
            return await self._call("source", step)
        except StopAsyncIteration:
            return END
        except asyncio.CancelledError:
            if self._source_over and self._reason is None:
                return END
            raise
        finally:
            self._source_waits = False

    # -- events -------------------------------------------------------------------------------------------------

    async def _serving(self) -> None:
        while not self._ending:
            while self._mailbox:
                await self._serve_beside(self._mailbox.popleft())
            self._keep_put_off()
            await self._waits.rest()

    async def _serve_beside(self, event: Event) -> None:
        plugin, ctx = self._node.plugin, self._node.ctx
        result = None
        if isinstance(event, Tick):
            if plugin.on_tick is not None:
                result = await self._call("tick", plugin.on_tick, event, ctx)
        elif isinstance(event, Deliver):
            if plugin.on_message is not None:
                message = Message(event.envelope, event.payload, self._answer)
                result = await self._call("message", plugin.on_message, message, ctx)
        else:
            self._event(event)
            if isinstance(event, Drain | Leave | Finish) and self._source_waits and self._source_task is not None:
                self._source_task.cancel()
            self._waits.wake()
        if result is not None:
            await self._give(result)
        self._notify()

    async def _until_drained(self) -> None:
        while not self._source_over:
            await self._waits.rest()

    @property
    def _source_over(self) -> bool:
        return self.drained or self._node.step.finishing

    # -- calling and sending ------------------------------------------------------------------------------------

    async def _call(self, phase: Phase, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function`` returns, awaited if it has to be."""
        node = self._node
        self._begins(phase)
        node.step.count += 1
        self._opens(1)
        try:
            result = function(*arguments)
            if hasattr(result, "__await__"):
                result = await result
            if not self._owner.is_here:
                children.end_child(None)
            return result
        except StopAsyncIteration:
            node.phase = phase
            raise
        except BaseException as reason:
            self._fails(phase, reason)
        finally:
            self._opens(-1)

    def _begins(self, phase: Phase) -> None:
        """A callback begins. Once one has failed, the phase stays its own: others run until they are cancelled."""
        if not self._failing:
            self._node.phase = phase

    def _fails(self, phase: Phase, reason: BaseException) -> NoReturn:
        """A callback has raised ``reason``: raise it again, as it may leave a task."""
        if not self._owner.is_here:
            children.end_child(reason)
        if isinstance(reason, asyncio.CancelledError) and self._was_cancelled(phase):
            raise reason
        if not self._failing:
            self._failing = True
            self._node.phase = phase
        if isinstance(reason, Exception):
            raise reason
        raise Exited(reason) from None

    def _was_cancelled(self, phase: Phase) -> bool:
        """By us, and not by the plugin itself."""
        return self._node.step.cancelled or (phase == "source" and self._source_over)

    def waits(self, more: int) -> None:
        """So many more callbacks wait for credits, or for their turn."""
        self._waiting += more
        self._node.step.doing = self if self._open > self._waiting else None

    def asks(self, more: int) -> None:
        """So many more callbacks wait for a reply."""
        self._asking += more
        self.waits(more)

    def _opens(self, more: int) -> None:
        self._open += more
        self._node.step.doing = self if self._open > self._waiting else None

    async def _give(self, result: Any) -> None:
        """What a callback returned or a source yielded goes out."""
        if not self._node.config.outputs:
            self._node.emit(result, 0)
            self._notify()
            return
        self._opens(1)
        try:
            for _ in self._node.config.outputs[1:]:  # the end of one of several is told once, then the others go on
                with suppress(RouteClosed):
                    await self.send(None, result)
                    return
            await self.send(None, result)
        finally:
            self._opens(-1)

    async def send(self, to: str | None, data: Any, timeout: float | None = None, notes: Notes | None = None) -> None:
        """As :meth:`chronetix.nodeworker.api.context.Context.send`."""
        await self._turn()
        outputs, doing = self._node.outputs, DOING.get()
        outputs.sender(to)

        def attempt() -> None:
            send = partial(outputs.sender(to), data) if notes is None else partial(outputs.send_noted, to, data, notes)
            self._made(doing, partial(send, 0))

        await self._sends.through(to, attempt, timeout)
        self._notify()

    async def loan(self, to: str | None, nbytes: int, timeout: float | None = None) -> Loan:
        """As :meth:`chronetix.nodeworker.api.context.Context.loan`."""
        await self._turn()
        outputs, doing = self._node.outputs, DOING.get()
        outputs.outlet(to)
        return await self._sends.through(
            to, lambda: self._made(doing, partial(outputs.outlet(to).loan, nbytes, 0)), timeout
        )

    def _made(self, doing: FrameInFlight | Sourcing | None, attempt: Callable[[Origin], T]) -> T:
        """Tried with what it is made from: the present frame, or the source's next item, which counts if it goes."""
        if not isinstance(doing, Sourcing):
            return attempt(doing.frame if doing is not None else None)
        step = self._node.step
        made = attempt(step.item + 1)
        step.item += 1
        return made


async def _next(items: Iterator[Any]) -> Any:
    return next(items, END)


def refuse_stop(loop: asyncio.AbstractEventLoop) -> None:
    """Raises RuntimeError within a task: a plugin must not stop the event loop that runs it."""
    if asyncio.current_task(loop) is not None:
        raise RuntimeError("a plugin cannot stop the event loop that runs it: ctx.finish() ends the node")
