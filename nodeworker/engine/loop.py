"""The plugin's thread of a worker process: takes frames, calls the plugin, sends what it returns, until the stream
ends.

Rules: it sleeps in one place, on the doorbell; the IO thread puts events into the mailbox and rings. Events are served
before the next frame is taken, so a busy stream cannot starve them. The frame loop is the hot path, and native:
``shm.run_frames`` and ``shm.run_items`` come back here when there is an event. A drained node consumes what was
committed to it, then ends; a drained source ends at once. One that leaves does so too, but consumes no more than was
there, for a successor goes on with what comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from chronetix.nodeworker.api.message import Answer, Message
from chronetix.nodeworker.engine.node import Node
from chronetix.protocol.errors import error, from_failure
from chronetix.protocol.framing import type_of
from chronetix.protocol.messages import Deliver, Drain, Extend, Failure, Leave, Tick, ToWorker
from chronetix.shm import Batch, Doorbell, RouteClosed, run_frames, run_items

_NO_MORE: Final = object()


@dataclass(frozen=True, slots=True)
class Lost:
    """Not a message: why the plugin's thread can go no further (interrupted, daemon gone, a peer's garbage)."""

    reason: BaseException


@dataclass(frozen=True, slots=True)
class Emptied:
    """Not a message: all frames of a stage whose producer is dead were taken and given back."""

    route: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Not a message: the plugin wants to finish (``Step.finishing``), and whoever sleeps or is busy looks."""


Event = ToWorker | Lost | Emptied | Finish
Mailbox = deque[Event]
Rewire = Callable[[Emptied | Extend], bool]
"""Told of a stage that is empty, and of outputs that change; False if that cannot be between these two frames yet."""


class Loop:
    """Runs ``node`` once it has started. ``answer`` sends replies to requests, ``rewire`` is told of its routes."""

    def __init__(self, node: Node, mailbox: Mailbox, bell: Doorbell, answer: Answer, rewire: Rewire) -> None:
        self._node = node
        self._mailbox = mailbox
        self._bell = bell
        self._answer = answer
        self._rewire = rewire
        self._put_off: list[Event] = []
        self.drained = False
        node.ctx.woken_by(self._look)

    def _look(self) -> None:
        """From any thread."""
        self._mailbox.append(Finish())
        self._bell.ring()

    def start(self) -> None:
        """``on_start``."""
        self._node.start()

    def stop(self) -> Any:
        """``on_stop`` and the end of the outputs; the node's result."""
        return self._node.stop()

    def run(self) -> None:
        """Until the node has nothing more to do: inputs ended, source exhausted, drained, or every consumer gone.

        Raises Interrupted, PeerFault, and whatever the plugin raises.
        """
        items = self._node.items()
        try:
            with self._node.closing(items):
                if items is not None:
                    self._source(items)
                if self._node.config.inputs:
                    self._frames()
                elif items is None:
                    self._events()
        except RouteClosed as closed:
            self._consumer_closed(closed)

    def _frames(self) -> None:
        node, mailbox, step = self._node, self._mailbox, self._node.step
        on_frame = node.plugin.on_frame
        assert on_frame is not None  # bind refuses inputs without it
        if node.leaves or step.finishing:
            return self._rest()
        while True:
            node.phase = "frame"
            if run_frames(node.inlet, node.batch, on_frame, node.ctx, step, mailbox, node.loop_emit):
                return None
            self._serve()
            if self.drained or step.finishing:
                return self._rest()

    def _source(self, items: Iterator[Any]) -> None:
        node, step = self._node, self._node.step
        step_through = self._item_with_inputs if node.config.inputs else self._items
        while not self.drained and not step.finishing:
            node.phase = "source"
            if step_through(items):
                while node.ctx.stopping and not self.drained:
                    self._events_once()  # it ended because it is to stop: whether it leaves, it is about to be told
                return
            self._serve()
            if node.config.inputs:
                self._rest()

    def _items(self, items: Iterator[Any]) -> bool:
        """Send items until an event comes. True: there are no more."""
        return run_items(items, self._node.step, self._mailbox, self._node.loop_emit)

    def _item_with_inputs(self, items: Iterator[Any]) -> bool:
        """Send one item, for frames are to be taken in between. Its frames have no numbers: they may be made of what
        came in. True: there are no more."""
        step = self._node.step
        step.count += 1
        step.doing = items
        item = next(items, _NO_MORE)
        step.doing = None
        if item is _NO_MORE:
            return True
        if item is not None:
            if step.interrupt is not None:
                raise step.interrupt
            step.item += 1
            self._node.emit(item, -1, None)
        return False

    def _events(self) -> None:
        while not self.drained and not self._node.step.finishing:
            self._events_once()

    def _events_once(self) -> None:
        if all(isinstance(event, Extend) for event in self._mailbox):  # put off, if there is any
            self._bell.wait()
        self._serve()

    def _rest(self) -> None:
        """Every frame that is there now, without waiting, until the plugin wants no more; who leaves takes no more
        than can have been there."""
        take, handle, left, step = self._node.take, self._node.frame, self._node.room, self._node.step
        while not step.finishing and (left > 0 or not self._node.leaves) and (frame := take(0)) is not None:
            left -= len(frame) if isinstance(frame, Batch) else 1
            handle(frame)

    def _serve(self) -> None:
        mailbox = self._mailbox
        while mailbox:
            self._event(mailbox.popleft())
        self._keep_put_off()

    def _keep_put_off(self) -> None:
        """Between the next two frames."""
        self._mailbox.extend(self._put_off)
        self._put_off.clear()

    def _event(self, event: Event) -> None:
        if isinstance(event, Tick):
            self._node.tick(event)
        elif isinstance(event, Deliver):
            self._node.message(Message(event.envelope, event.payload, self._answer))
        elif isinstance(event, Drain | Leave):
            self.drained = True
            self._node.ctx.stopping = True
            self._node.leaves = isinstance(event, Leave)
        elif isinstance(event, Emptied | Extend):
            if not self._rewire(event):
                self._put_off.append(event)
        elif isinstance(event, Finish):
            return
        elif isinstance(event, Lost):
            raise event.reason
        elif isinstance(event, Failure):
            raise from_failure(event)
        else:
            raise error("unexpected-message", type=type_of(event), when="while the node runs")

    def _consumer_closed(self, closed: RouteClosed) -> None:
        """Like EPIPE in a pipeline: a producer whose consumer wants no more has nothing to do, and says so."""
        self._node.ctx.log.info("a consumer closed its route, this node ends", route=str(closed.args[-1]))
