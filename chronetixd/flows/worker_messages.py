"""Dispatches the messages of one flow's workers to the parts of the daemon that handle them.

No message is trusted: one that a worker may not send, or may not send now, is refused with a ProtocolError. That is a
fault of this worker and does not affect any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from chronetix.protocol import handshake
from chronetix.protocol import messages as wire
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.framing import type_of
from chronetixd.bus.event_bus import BusMessage
from chronetixd.core import worker as worker_core
from chronetixd.core.flow_messages import FlowEvent, WorkerChanged
from chronetixd.core.worker import WorkerState
from chronetixd.dataplane.held_frames import HeldFrameWatch
from chronetixd.dataplane.taps import Taps
from chronetixd.dataplane.wiring import FlowWiring, ToNode
from chronetixd.flows.context import Services
from chronetixd.flows.flow_events import FlowEvents
from chronetixd.flows.frame_failures import FrameFailures
from chronetixd.flows.liveness import Probes
from chronetixd.loop.closing import close_all
from chronetixd.workers.process import WorkerProcess

MAX_FAULT_TEXT = 4 * 1024
MAX_TRACEBACK = 64 * 1024
"""Characters that are kept of a worker's fault, which goes into events, lists and descriptions."""

LINKED = frozenset(
    {WorkerState.READY, WorkerState.STARTING, WorkerState.STARTED, WorkerState.DRAINING, WorkerState.FINISHED}
)
"""States in which a worker may be told of further routes, and may offer memory for them."""


class MessagesRun(Protocol):
    """What the message handler needs of a flow."""

    def state_of(self, node: str) -> WorkerState:
        """Return the state of the worker of ``node``."""

    def worker(self, node: str) -> WorkerProcess:
        """Return the process of ``node``."""

    def defers(self, node: str, message: wire.WireMessage, descriptors: list[int]) -> bool:
        """Defer ``message`` if it can only be handled after the recovery. Raises ProtocolError."""

    def dispatch(self, event: FlowEvent) -> None:
        """Give ``event`` to the state machine."""

    def watch_end(self, node: str) -> None:
        """Watch the end of the process of ``node``, which has finished."""

    def protocol_broken(self, node: str, what: str) -> None:
        """Fault and kill the worker of ``node``, which broke the protocol."""

    def peer_accused(self, node: str, message: wire.Accuse) -> None:
        """Find out whether ``node`` or the peer that it accuses is at fault. Raises ProtocolError."""

    def keep_descriptors(self) -> None:
        """Store new memory with the service manager, before any worker is told of it."""

    def send_wiring(self, messages: Sequence[ToNode]) -> None:
        """Send workers messages about their routes."""

    def announce_relinked(self) -> None:
        """Report Relinked for each successor that all of its producers are linked to."""

    def notify_watchers(self) -> None:
        """Notify watchers that the routes have changed."""


class WorkerMessages:
    """Handles the messages of the workers of ``run``, whose memory is in ``wiring``."""

    def __init__(
        self,
        run: MessagesRun,
        services: Services,
        *,
        wiring: FlowWiring,
        taps: Taps,
        held_frames: HeldFrameWatch,
        probes: Probes,
        failures: Mapping[str, FrameFailures],
        flow_events: FlowEvents,
    ) -> None:
        self._run = run
        self._services = services
        self._wiring = wiring
        self._taps = taps
        self._held_frames = held_frames
        self._probes = probes
        self._failures = failures
        self._news = flow_events

    def received(self, node: str, message: wire.WireMessage, descriptors: list[int]) -> None:
        """Handle ``message`` of ``node``. Raises ProtocolError. Descriptors that are not taken stay in the list and
        belong to the caller."""
        if isinstance(message, wire.Hello):
            self._hello(node, message)
            return
        state = self._run.state_of(node)
        if state in (WorkerState.SPAWNING, WorkerState.GREETING):
            raise error("unexpected-message", type=type_of(message), when="before the hello")
        if not self._run.defers(node, message, descriptors):
            self._handle(node, message, descriptors)

    def handle_deferred(self, node: str, message: wire.WireMessage, descriptors: list[int]) -> None:
        """Handle a message that was deferred until the end of the recovery. A protocol error is reported as a fault of
        the worker. Descriptors that are not taken are closed."""
        try:
            self._handle(node, message, descriptors)
        except ChronetixError as fault:
            self._run.protocol_broken(node, str(fault))
        finally:
            close_all(descriptors)

    def _hello(self, node: str, hello: wire.Hello) -> None:
        reply = handshake.answer(
            hello,
            daemon=self._services.daemon,
            roles=("worker",),
            features=wire.WORKER_FEATURES,
            max_frame=self._services.max_frame,
        )
        worker = self._run.worker(node)
        worker.features = tuple(hello.features)
        worker.send(reply)
        if isinstance(reply, wire.Failure):
            self._run.protocol_broken(node, reply.message)
        else:
            self._run.dispatch(WorkerChanged(node, worker_core.Greeted()))

    def _handle(self, node: str, message: wire.WireMessage, descriptors: list[int]) -> None:
        run, wiring = self._run, self._wiring
        match message:
            case _ if isinstance(message, BusMessage):
                self._held_frames.note_activity()
                self._services.bus.handle(run.worker(node), message)
            case wire.Offer() if self._taps.offers(message):
                self._taps.offered(node, message, descriptors)
            case wire.Linked(routes=routes) if routes and all(route.startswith("tap/") for route in routes):
                self._taps.linked(node, routes)
            case wire.GaveUp(route=route, waited_ns=waited_ns):
                self._gave_up(node, route, waited_ns)
            case wire.Accuse():
                run.peer_accused(node, message)
            case wire.Offer():
                self._offered(node, message, descriptors)
            case wire.Linked():
                run.send_wiring(wiring.linked(node, message))
                run.announce_relinked()
            case wire.Drained():
                told = wiring.drained(node, message)
                run.keep_descriptors()
                run.send_wiring(told)
                run.notify_watchers()
            case wire.Ready():
                run.send_wiring(wiring.ready(node))
                run.dispatch(WorkerChanged(node, worker_core.BecameReady()))
            case wire.Started():
                run.dispatch(WorkerChanged(node, worker_core.HasStarted()))
            case wire.Finished(result=result):
                self._probes.stop(node)
                run.watch_end(node)
                run.dispatch(WorkerChanged(node, worker_core.HasFinished(result)))
            case wire.Fault(phase=phase, error=name, message=text, traceback=trace):
                name, text, trace = name[:MAX_FAULT_TEXT], text[:MAX_FAULT_TEXT], trace[-MAX_TRACEBACK:]
                run.worker(node).fault = {"phase": phase, "error": name, "message": text, "traceback": trace}
                consequence = name == "RouteClosed"
                run.dispatch(
                    WorkerChanged(node, worker_core.Faulted(phase, f"{name}: {text}" if text else name, consequence))
                )
            case wire.Segment():
                self._held_frames.note_activity()
                told = wiring.grow(node, message, descriptors)
                run.keep_descriptors()
                run.send_wiring(told)
                segments = wiring.segments_of(node)
                if segments is not None:
                    self._taps.segment_added(node, message.index, segments[message.index])
            case wire.SegmentMapped():
                run.send_wiring(wiring.mapped(node, message))
            case wire.SegmentDropped(route=""):
                run.send_wiring(wiring.drop(node, message, reuse=not self._taps.has_listeners(node)))
                run.keep_descriptors()
            case wire.SegmentDropped():
                run.send_wiring(wiring.dropped(node, message))
            case wire.Log():
                self._held_frames.note_activity()
                run.worker(node).logged(message)
            case wire.FrameFailed():
                self._frame_failed(node, message)
            case wire.Pong(progress=steps, busy_ns=busy_ns):
                run.worker(node).progress = {"steps": steps, "busy_ns": busy_ns}
                self._probes.answered(node, message)
            case _:
                raise error("unexpected-message", type=type_of(message), when="after the hello")

    def _frame_failed(self, node: str, failed: wire.FrameFailed) -> None:
        """Count a failed frame. An event is emitted when a frame was set aside, more seldom the more there are."""
        failures = self._failures[node]
        if failures.count(failed):
            message = f"{failed.error[:MAX_FAULT_TEXT]}: {failed.message[:MAX_FAULT_TEXT]}"
            self._news.frame_failed(node, failed, message, failures.set_aside)

    def _gave_up(self, node: str, route: str, waited_ns: int) -> None:
        """Report that the producer has closed a route because its consumer was slower than the route's limit allows."""
        if not self._wiring.has_output(node, route):
            raise error("malformed-message", type="gave-up", reason=f"{route!r} is not an output of node {node!r}")
        self._news.given_up(node, route, waited_ns)

    def _offered(self, node: str, offer: wire.Offer, descriptors: list[int]) -> None:
        """Handle the first offer of a worker, or one for further routes. Links that waited for this offer are sent."""
        run, wiring = self._run, self._wiring
        state = run.state_of(node)
        if state is WorkerState.OFFERING or state in LINKED:
            told = wiring.offer(node, offer, descriptors)
            run.keep_descriptors()
            run.send_wiring(told)
        if state not in LINKED:
            run.dispatch(WorkerChanged(node, worker_core.Offered()))
        if state is WorkerState.OFFERING or state in LINKED:
            run.send_wiring(wiring.due(node))
            run.notify_watchers()
