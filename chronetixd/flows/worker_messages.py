"""What the workers of one flow say, each word to whom it concerns.

Nobody's word is taken: what a worker may not say, or not now, is refused with a ProtocolError, which is that worker's
fault and nobody else's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chronetix.protocol import handshake
from chronetix.protocol import messages as wire
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.framing import type_of
from chronetixd.core import worker as life
from chronetixd.core.flow_messages import NodeEvent
from chronetixd.core.worker import WorkerState
from chronetixd.flows.context import Services
from chronetixd.loop.closing import close_all

if TYPE_CHECKING:
    from chronetixd.flows.run import FlowRun

MAX_FAULT_TEXT = 4 * 1024
MAX_TRACEBACK = 64 * 1024
"""Characters that are kept of a worker's fault: it goes into events, lists and descriptions."""

LINKED = frozenset(
    {WorkerState.READY, WorkerState.STARTING, WorkerState.STARTED, WorkerState.DRAINING, WorkerState.FINISHED}
)
"""States in which a worker may be extended, and offers what it was asked for."""


class Hearing:
    """Listens for ``run``."""

    def __init__(self, run: FlowRun, services: Services) -> None:
        self._run = run
        self._services = services

    def received(self, node: str, message: wire.Message, descriptors: list[int]) -> None:
        """``node`` said ``message``. Raises ProtocolError; descriptors that nobody took stay the caller's."""
        if isinstance(message, wire.Hello):
            self._hello(node, message)
            return
        state = self._run.machine.workers[node].state
        if state in (WorkerState.SPAWNING, WorkerState.GREETING):
            raise error("unexpected-message", type=type_of(message), when="before the hello")
        if self._run.home is None or not self._run.home.holds(node, message, descriptors):
            self._heard(node, message, descriptors)

    def late(self, node: str, message: wire.Message, descriptors: list[int]) -> None:
        """What had to wait until all workers were back; whatever is wrong with it is that worker's fault. Closes the
        descriptors that nobody takes."""
        try:
            self._heard(node, message, descriptors)
        except ChronetixError as fault:
            self._run.broke(node, str(fault))
        finally:
            close_all(descriptors)

    def _hello(self, node: str, hello: wire.Hello) -> None:
        reply = handshake.answer(
            hello, daemon=self._services.daemon, roles=("worker",), max_frame=self._services.max_frame
        )
        self._run.workers[node].features = tuple(hello.features)
        self._run.workers[node].send(reply)
        if isinstance(reply, wire.Failure):
            self._run.broke(node, reply.message)
        else:
            self._run.dispatch(NodeEvent(node, life.Greeted()))

    def _heard(self, node: str, message: wire.Message, descriptors: list[int]) -> None:
        run = self._run
        worker = run.workers[node]
        match message:
            case wire.Offer() if run.taps.offers(message):
                run.taps.offered(node, message, descriptors)
            case wire.Linked(routes=routes) if routes and all(route.startswith("tap/") for route in routes):
                run.taps.linked(node, routes)
            case wire.GaveUp(route=route, waited_ns=waited_ns):
                self._gave_up(node, route, waited_ns)
            case wire.Offer():
                self._offered(node, message, descriptors)
            case wire.Linked():
                run.send_wiring(run.wiring.linked(node, message))
                run.announce_relinked()
            case wire.Drained():
                told = run.wiring.drained(node, message)
                run.keep()
                run.send_wiring(told)
                run.tell()
            case wire.Ready():
                run.send_wiring(run.wiring.ready(node))
                run.dispatch(NodeEvent(node, life.BecameReady()))
            case wire.Started():
                run.dispatch(NodeEvent(node, life.HasStarted()))
            case wire.Finished(result=result):
                run.dispatch(NodeEvent(node, life.HasFinished(result)))
            case wire.Fault(phase=phase, error=name, message=text, traceback=trace):
                name, text, trace = name[:MAX_FAULT_TEXT], text[:MAX_FAULT_TEXT], trace[-MAX_TRACEBACK:]
                worker.fault = {"phase": phase, "error": name, "message": text, "traceback": trace}
                consequence = name == "RouteClosed"
                run.dispatch(NodeEvent(node, life.Faulted(phase, f"{name}: {text}", consequence)))
            case wire.Segment():
                run.held_frames.stir()
                told = run.wiring.grow(node, message, descriptors)
                run.keep()
                run.send_wiring(told)
                segments = run.source(node)
                if segments is not None:
                    run.taps.grew(node, message.index, segments[message.index])
            case wire.SegmentMapped():
                run.send_wiring(run.wiring.mapped(node, message))
            case wire.SegmentDropped(route=""):
                run.send_wiring(run.wiring.drop(node, message, reuse=not run.taps.listen_to(node)))
                run.keep()
            case wire.SegmentDropped():
                run.send_wiring(run.wiring.dropped(node, message))
            case wire.Log():
                run.held_frames.stir()
                worker.logged(message)
            case wire.FrameFailed():
                self._frame_failed(node, message)
            case wire.Pong(progress=steps, busy_ns=busy_ns):
                worker.progress = {"steps": steps, "busy_ns": busy_ns}
                run.probes.answered(node, message)
            case wire.Publish() | wire.Subscribe() | wire.Unsubscribe() | wire.Request() | wire.Reply():
                run.held_frames.stir()
                self._services.bus.handle(worker, message)
            case _:
                raise error("unexpected-message", type=type_of(message), when="after the hello")

    def _frame_failed(self, node: str, failed: wire.FrameFailed) -> None:
        """Counted always; told when a frame was set aside, more seldom the more there are."""
        failures = self._run.failures[node]
        if failures.count(failed):
            message = f"{failed.error[:MAX_FAULT_TEXT]}: {failed.message[:MAX_FAULT_TEXT]}"
            self._run.news.frame_failed(node, failed, message, failures.set_aside)

    def _gave_up(self, node: str, route: str, waited_ns: int) -> None:
        """A consumer was too slow for its route's limit: the route is closed, and everybody may know."""
        if not self._run.wiring.has_output(node, route):
            raise error("malformed-message", type="gave-up", reason=f"{route!r} is not an output of node {node!r}")
        self._run.news.given_up(node, route, waited_ns)

    def _offered(self, node: str, offer: wire.Offer, descriptors: list[int]) -> None:
        """Its first memory, or that of an extension; either may be the last thing that somebody waits for."""
        run = self._run
        state = run.machine.workers[node].state
        if state is WorkerState.OFFERING or state in LINKED:
            told = run.wiring.offer(node, offer, descriptors)
            run.keep()
            run.send_wiring(told)
        if state not in LINKED:
            run.dispatch(NodeEvent(node, life.Offered()))
        if state is WorkerState.OFFERING or state in LINKED:
            run.send_wiring(run.wiring.due(node))
            run.tell()
