"""One node at work: its plugin, context, inlet and outputs, and what happens for each frame and event.

Shared by the worker process (``loop``) and the one-process host (``inproc``); neither sleeps nor receives in here.
Rules: a frame is returned after the outputs made from it were committed; ``phase`` always names the callback that
runs, so that a fault can say where it happened; whatever a plugin raises passes through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import AsyncGeneratorType, BuiltinMethodType, CoroutineType
from typing import Any, Literal

from msgspec.structs import replace as replace_fields

from chronetix.nodeworker.api import codec
from chronetix.nodeworker.api.context import Context, Host
from chronetix.nodeworker.api.errors import named, shown
from chronetix.nodeworker.api.message import Message
from chronetix.nodeworker.api.outputs import Origin, Outputs, Sender
from chronetix.nodeworker.api.plugin import Plugin, bind, is_asynchronous
from chronetix.nodeworker.engine.retry import retrying, retrying_awaited
from chronetix.protocol.content.natural import awaited
from chronetix.protocol.messages import Configure, Port, Tick
from chronetix.shm import Batch, Frame, Inlet, Producer, RouteClosed, Step

Take = Callable[..., Frame | Batch | None]
"""Called with the ns to wait, by default for ever."""

BATCH = 256
"""Most frames of a batch, unless ``io.batch_hints.preferred_rows`` says how many."""

MAX_SHOWN = 4096
"""Characters that are shown of a result that cannot be sent."""

Phase = Literal["load", "init", "start", "frame", "tick", "message", "source", "stop", "wiring"]


class Node:
    """A plugin in its place. Made before the plugin is constructed; :meth:`construct` does that."""

    inlet: Inlet
    take: Take
    """What the plugin's ``on_frame`` is called with: the next frame, or batch of frames if it takes these."""
    emit: Sender
    """Sends to the routes that are left; RouteClosed when none is."""
    loop_emit: Sender
    """The same for the native loops, which go on with the routes that are left by themselves."""

    def __init__(self, config: Configure, inlet: Inlet | None, outputs: Outputs, host: Host) -> None:
        """Without ``inlet`` it stands by, until :meth:`connect`."""
        self.config = config
        self.outputs = outputs
        self.step = Step()
        self.ctx = Context(config, outputs, host, self.step)
        self._host = host
        self.plugin = Plugin()
        self.phase: Phase = "init"
        self._telling = threading.Lock()
        self.leaves = False
        """A successor goes on with its routes."""
        self._produced: Any = None
        self._stop_called = False
        self._cut_off: list[Any] = []
        """What callbacks worked on that were cut off, where another one is called after them (``on_stop``): the credit
        of such a frame must not return with the last reference to it, before the inputs are abandoned."""
        if inlet is not None:
            self.connect(config, inlet)

    def connect(self, config: Configure, inlet: Inlet) -> None:
        """Its ends of the routes are there; ``config`` is what it was told last."""
        self.config = config
        self.ctx.connected(config)
        self.inlet = inlet
        self.take = self._taker()
        self.emit = self._emitter()

    def rewire(self, outputs: Outputs) -> None:
        """Send by ``outputs``; before the plugin is constructed."""
        self.outputs = outputs
        self.emit = self._emitter()

    def construct(self, found: Any) -> None:
        """Make the plugin of the loaded object; one with asynchronous callbacks gets a context that is awaited."""
        self.phase = "init"
        if is_asynchronous(found):
            from chronetix.nodeworker.engine.async_context import (
                AsyncContext,  # what few plugins need, no worker should carry
            )

            self.ctx = AsyncContext(self.config, self.outputs, self._host, self.step)
        plugin = bind(found, self.config, self.ctx)
        if plugin.on_frame is not None:
            again = retrying_awaited if plugin.asynchronous else retrying
            on_frame = again(plugin.on_frame, self.config, self._host, self.step)
            plugin = replace(plugin, on_frame=on_frame)
        if plugin.on_batch is not None:
            plugin = replace(plugin, on_frame=plugin.on_batch)
        self.plugin = plugin
        if hasattr(self, "inlet"):
            self.take = self._taker()

    def let_go(self) -> None:
        """Of the plugin, which is called no more."""
        self.plugin = Plugin()
        self.step.source = self.step.doing = self._produced = None

    @property
    def batch(self) -> int:
        """Most frames that the plugin is given at a time; 0: it takes frames, not batches."""
        if self.plugin.on_batch is None:
            return 0
        return int(self.config.batch_hints.get("preferred_rows") or BATCH)

    def _taker(self) -> Take:
        if self.plugin.on_batch is None:
            return self.inlet.take
        take_many, limit = self.inlet.take_many, self.batch
        return lambda timeout_ns=-1: take_many(limit, timeout_ns)

    def extended(self, ports: Sequence[Port]) -> None:
        """These are stages of inputs that it gets while it runs; from any thread."""
        with self._telling:
            known = {port.route for port in self.config.inputs}
            added = [port for port in ports if port.route not in known]
            self._told(replace_fields(self.config, inputs=[*self.config.inputs, *added]))

    def concluded(self, route: str) -> None:
        """An input is over; from any thread."""
        with self._telling:
            left = [port for port in self.config.inputs if port.route != route]
            self._told(replace_fields(self.config, inputs=left))

    def rerouted(self, ports: Sequence[Port], producers: Sequence[Producer]) -> None:
        """Its outputs are others from the next frame on; from the plugin's thread."""
        with self._telling:
            self._told(replace_fields(self.config, outputs=list(ports)))
        self.outputs.connect(ports, producers)
        self.emit = self._emitter()

    def _told(self, config: Configure) -> None:
        self.config = config
        self.ctx.told(config)

    @property
    def room(self) -> int:
        """Frames that can be there for it at one time, at most."""
        return sum(port.credits for port in self.config.inputs)

    def start(self) -> None:
        """Call ``on_start``."""
        if self.plugin.on_start is not None:
            _refuse_awaited(self._call("start", self.plugin.on_start, self.ctx))

    def frame(self, frame: Frame | Batch) -> None:
        """One frame, or batch, through the plugin; returned when its results are committed."""
        on_frame = self.plugin.on_frame
        assert on_frame is not None  # bind refuses inputs without it
        self.phase = "frame"
        self.step.count += 1
        self.step.doing = frame
        result = on_frame(frame, self.ctx)
        self.step.doing = None
        if result is not None:
            self.emit(result, -1, frame)
        frame.release()

    def tick(self, tick: Tick) -> None:
        """One tick of a timer."""
        if self.plugin.on_tick is not None:
            self._emit(self._call("tick", self.plugin.on_tick, tick, self.ctx))

    def message(self, message: Message) -> None:
        """One message of the event bus."""
        if self.plugin.on_message is not None:
            self._emit(self._call("message", self.plugin.on_message, message, self.ctx))

    def items(self) -> Iterator[Any] | None:
        """The source's items, None when it is no source. Its return value is remembered as the node's result."""
        if self.plugin.produce is None:
            return None
        self.phase = "source"
        made = self.plugin.produce(self.ctx)
        if made is None:
            return iter(())
        try:
            items = self.remembering(made)
        except TypeError:
            kind = type(made).__name__
            raise TypeError(f"a source must return an iterable or be a generator, this one returned {kind}") from None
        if not self.config.inputs:
            self.step.source = items
        return items

    def stop(self) -> Any:
        """Call ``on_stop``, close the outputs; the node's result, as :meth:`end` gives it."""
        on_stop, result = self.take_on_stop(), None
        if on_stop is not None:
            result = self._call("stop", on_stop, self.ctx)
        return self.end(result)

    def take_on_stop(self) -> Callable[..., Any] | None:
        """The plugin's ``on_stop``, to be called now; None if there is none, or when it was called already: one that
        was interrupted is not called again."""
        if self._stop_called:
            return None
        self._stop_called = True
        return self.plugin.on_stop

    def end(self, result: Any = None) -> Any:
        """Close the outputs, unless the node was interrupted or leaves: then its stream has not ended, a successor may
        go on with it. ``result``, or what the source returned, as it can travel.

        One that cannot be sent fails no node that has done all its work: a map takes its place that says so. But what a
        node leaves to its successor must be that itself: raises TypeError."""
        if self.step.interrupt is None and not self.leaves:
            self.outputs.close()
        self.phase = "stop"
        value = self._produced if result is None else result
        try:
            return codec.result(value)
        except codec.Unsendable as reason:
            if self.leaves:
                raise TypeError(f"what is left to the successor cannot be sent: {reason}") from reason
            self.ctx.log.warning("the result cannot be sent, and is shown as text", reason=str(reason))
            return {"unsendable": str(reason), "text": shown(value)[:MAX_SHOWN]}

    @contextmanager
    def closing(self, items: Iterator[Any] | None) -> Iterator[None]:
        """However this block is left, the source's generator is closed: its ``finally`` runs, and what it holds is
        given back. What that raises counts if nothing else was raised, else it is a note of that."""
        try:
            yield
        except BaseException as reason:
            phase = self.phase
            try:
                self._close(items)
            except Exception as further:
                reason.add_note(f"closing the source then raised {named(further)}")
            self.phase = phase
            raise
        self._close(items)

    def _close(self, items: Iterator[Any] | None) -> None:
        close: Callable[[], None] | None = getattr(items, "close", None)
        if close is not None:
            self._call("source", close)

    def remembering(self, made: Any) -> Iterator[Any]:
        """What a source made, item by item; what a generator returns at its end is kept as the node's result."""
        self._produced = yield from made

    def _call(self, phase: Phase, function: Callable[..., Any], *arguments: Any) -> Any:
        self.phase = phase
        self.step.count += 1
        if self.step.doing is not None:
            self._cut_off.append(self.step.doing)
        self.step.doing = function
        result = function(*arguments)
        self.step.doing = None
        return result

    def _emit(self, result: Any) -> None:
        if result is not None:
            self.emit(result, -1)

    def _emitter(self) -> Sender:
        routes = len(self.config.outputs)
        if not routes:
            self.loop_emit = self._publish_everywhere if self.config.publications else _drop
            return self.loop_emit
        sender = self.outputs.sender()
        emit = sender if routes == 1 else self._to_all_left(sender, routes)
        self.loop_emit = sender if isinstance(sender, BuiltinMethodType) else emit
        return emit

    @staticmethod
    def _to_all_left(sender: Sender, routes: int) -> Sender:
        """The end of one of several routes is told once, and nothing was sent then: it goes to the others."""

        def emit(data: Any, timeout_ns: int = -1, origin: Origin = None) -> Any:
            for _ in range(1, routes):
                with suppress(RouteClosed):
                    return sender(data, timeout_ns, origin)
            return sender(data, timeout_ns, origin)

        return emit

    def _publish_everywhere(self, data: Any, timeout_ns: int = -1, origin: Origin = None) -> None:  # noqa: ARG002
        self.ctx.publish(None, data)


def _drop(data: Any, timeout_ns: int = -1, origin: Origin = None) -> None:  # noqa: ARG001
    """What a sink returns has nowhere to go. Raises TypeError for what would have to be awaited."""
    _refuse_awaited(data)


def _refuse_awaited(result: Any) -> None:
    """Raises TypeError for what a callback has returned and nobody would await: its work would not be done."""
    if isinstance(result, CoroutineType | AsyncGeneratorType):
        raise TypeError(f"a {type(result).__name__} was returned: {awaited(result)}")
