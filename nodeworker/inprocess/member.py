"""A node of the one-process deployment, and when its thread of work may go on.

A member is *active* while one of its callbacks is on the stack; an active member is never entered again (data routes
have no cycles, so a blocked send only drives members that are not). Whatever its plugin raises becomes the
deployment's failure and unwinds the whole stack as ``Aborted``, so that no other plugin can catch it by accident.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from chronetix.nodeworker.api.errors import Interrupted, named
from chronetix.nodeworker.api.message import Answer, Message
from chronetix.nodeworker.engine import children
from chronetix.nodeworker.engine.loop import Finish, Mailbox
from chronetix.nodeworker.engine.node import Node
from chronetix.nodeworker.memory.wiring import Wiring
from chronetix.protocol.messages import Deliver, Drain, Tick
from chronetix.shm import RouteClosed

if TYPE_CHECKING:
    from chronetix.nodeworker.inprocess.async_inprocess import AsyncMember

BURST, BURST_BYTES = 32, 1 << 18
"""Items, and bytes in frames, that a source may make before the others get their turn: enough to spread the cost of the
turn, little enough to stay in the cache."""


TURN_NS = 10_000_000
"""After this time others get their turn too: what comes every 100 ms is handled every 100 ms."""


class Aborted(BaseException):
    """A node failed; the deployment has the reason."""


class EndTimeout(RuntimeError):
    """The flow has finished or failed, and what its plugins have left running does not end."""


class FlowFailed(Exception):
    """A node of the flow raised. ``__cause__`` is what."""

    def __init__(self, node: str, phase: str, cause: BaseException) -> None:
        super().__init__(node, phase, cause)
        self.node = node
        self.phase = phase

    def __str__(self) -> str:
        cause = self.args[2]
        return f"node {self.node} failed in {self.phase}: {named(cause)}"


class Member:
    """One node with its wiring and mailbox. ``fail`` takes a failure; ``answer`` sends replies."""

    def __init__(self, node: Node, wiring: Wiring, fail: Callable[[FlowFailed], None], answer: Answer) -> None:
        self.node = node
        self.wiring = wiring
        self.mailbox: Mailbox = deque()
        self.active = False
        self.finished = False
        self.is_source = not node.config.inputs
        """It has no data inputs: it ends by itself or when it is drained."""
        self.burst = min([BURST, *(port.credits for port in node.config.outputs if port.policy != "block")])
        """Items that it may make in one turn: routes that drop do so only when their consumers are slow, not when they
        had no turn."""
        self.result: Any = None
        self.ending = False
        """It is to take and make nothing more; :meth:`end_if_done` finishes it."""
        self.asynchronous: AsyncMember | None = None
        """Its life in the event loop, if its plugin is asynchronous."""
        self.begun = False
        """Its ``on_start`` is done."""
        self._told = False
        self._items: Iterator[Any] | None = None
        self._handled = 0
        self._fail = fail
        self._answer = answer
        self._owner = children.Owner()
        node.ctx.woken_by(lambda: self.mailbox.append(Finish()))

    @property
    def name(self) -> str:
        """The node's id."""
        return self.node.config.node

    def guarded(self, work: Callable[[], Any]) -> bool:
        """Run ``work`` as this node's; False when the node is to end because of it. A child that the plugin has forked
        does not come back from here."""
        self.active = True
        try:
            self._work(work)
        except RouteClosed as closed:
            self.node.ctx.log.info("a consumer closed its route, this node ends", route=str(closed.args[-1]))
            self.ending = True
        except (Aborted, Interrupted):
            raise
        except BaseException as reason:
            self._failed(reason)
        finally:
            self.active = False
            self.node.step.doing = None
        self._look_whether_it_ends()
        return not self.ending

    def _work(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as reason:
            if not self._owner.is_here:
                children.end_child(reason)
            raise
        if not self._owner.is_here:
            children.end_child(None)

    def _look_whether_it_ends(self) -> None:
        """The plugin wants to finish, or its tasks have ended: whoever waits for its credits is to know."""
        if self.asynchronous is not None:
            self.ending |= self.asynchronous.ended
        elif self.node.step.finishing:
            self.ending = True
            self.mailbox.clear()

    def begin(self) -> None:
        """``on_start``, and the source's iterator. An asynchronous one has begun when its ``asynchronous`` says so."""
        if self.asynchronous is not None:
            self.asynchronous.begin()
        else:
            self.guarded(self._begin)

    def drain(self) -> None:
        """A source produces no more."""
        self.node.ctx.stopping = True
        if not self.is_source:
            return
        if self.asynchronous is None:
            self.ending = True
        elif not self._told:
            self._told = True
            self.mailbox.append(Drain())

    def produce(self) -> bool:
        """A few items of the source; whether there was something to do."""
        if self.asynchronous is not None:
            return self._turn(self.asynchronous)
        if self._items is None or self.active or self.ending or self.finished:
            return False
        self.guarded(self._produce)
        return True

    def consume(self, most: int = 1 << 30) -> int:
        """Up to ``most`` frames that are there (an asynchronous node takes what it likes); how many were handled."""
        if self.asynchronous is not None:
            before = self.asynchronous.taken
            self._turn(self.asynchronous)
            return self.asynchronous.taken - before
        if self.is_source or self.active or self.ending or self.finished:
            return 0
        self._handled = 0
        self.guarded(lambda: self._consume(most))
        return self._handled

    def serve(self) -> bool:
        """The events in the mailbox; whether there were any."""
        if self.asynchronous is not None:
            return self._turn(self.asynchronous)
        if not self.mailbox or self.active or self.finished:
            return False
        self.guarded(self._serve)
        return True

    def end_if_done(self) -> bool:
        """Finish the node if nothing more can come to it; whether it was finished now."""
        if self.asynchronous is not None:
            return self._has_ended(self.asynchronous)
        if self.finished or self.active or self.mailbox:
            return False
        exhausted = not self.is_source and self.node.inlet.ended and self._items is None
        if not (self.ending or exhausted):
            return False
        self.ending = True
        self.guarded(self._finish)
        return True

    def _turn(self, asynchronous: AsyncMember) -> bool:
        """Let the event loop go on; whether something has come of it."""
        worked = False

        def turn() -> None:
            nonlocal worked
            worked = asynchronous.turn()

        if not self.active and not self.finished:
            self.guarded(turn)
        return worked

    def _has_ended(self, asynchronous: AsyncMember) -> bool:
        if self.finished or not asynchronous.ended:
            return False
        self.ending = self.finished = True
        self.result = asynchronous.result
        self.wiring.stages.close()
        return True

    def _begin(self) -> None:
        self.node.start()
        self.begun = True
        self._items = self.node.items()

    def _produce(self) -> None:
        node, arena = self.node, self.wiring.arena
        step, emit = node.step, node.emit
        assert self._items is not None
        node.phase = "source"
        left, until_ns = self.burst, monotonic_ns() + TURN_NS
        step.count += 1
        step.doing = self._items
        for item in self._items:
            step.doing = None
            if item is not None:
                step.item = number = step.item + 1
                emit(item, -1, number if self.is_source else None)
            left -= 1
            if not left or step.finishing or arena is None or arena.used > BURST_BYTES or self.ending:
                return
            if monotonic_ns() > until_ns:
                return
            step.count += 1
            step.doing = self._items
        self._items = None
        self.ending = self.is_source

    def _consume(self, most: int) -> None:
        node, ctx = self.node, self.node.ctx
        step, take, emit, on_frame = node.step, node.take, node.emit, node.plugin.on_frame
        assert on_frame is not None  # bind refuses inputs without it
        node.phase = "frame"
        while self._handled < most and not step.finishing:
            frame = take(0)
            if frame is None:
                return
            self._handled += 1
            step.count += 1
            step.doing = frame
            result = on_frame(frame, ctx)
            step.doing = None
            if result is not None:
                emit(result, -1, frame)
            frame.release()

    def _serve(self) -> None:
        while self.mailbox:
            event = self.mailbox.popleft()
            if isinstance(event, Tick):
                self.node.tick(event)
            elif isinstance(event, Deliver):
                self.node.message(Message(event.envelope, event.payload, self._answer))

    def end_at_once(self, *, failed: bool) -> None:
        """The flow ends in the middle, as a worker does that is told to by SIGTERM: its source is closed, and
        ``on_stop`` called unless it is what has ``failed``. What they raise is logged: the flow's own reason counts.
        An asynchronous node does so when its tasks are cancelled."""
        self.node.step.interrupt = Interrupted("the flow ends at once")
        if self.finished or not self.begun or self.asynchronous is not None:
            return
        for work in (self._close_source,) if failed else (self._close_source, self.node.stop):
            try:
                work()
            except (Exception, Interrupted) as reason:
                what = named(reason)
                self.node.ctx.log.error("raised while the flow ended at once", phase=self.node.phase, error=what)

    def _close_source(self) -> None:
        items, self._items = self._items, None
        with self.node.closing(items):
            pass

    def _finish(self) -> None:
        self._close_source()
        self.result = self.node.stop()
        self.wiring.stages.close()
        self.finished = True

    def _failed(self, cause: BaseException) -> None:
        failure = FlowFailed(self.name, self.node.phase, cause)
        failure.__cause__ = cause
        self._fail(failure)
        raise Aborted from cause
