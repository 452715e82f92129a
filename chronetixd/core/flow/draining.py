"""A flow on its way down: it drains in good order, or it was told to end at once, or it has failed."""

from __future__ import annotations

from chronetixd.core import worker
from chronetixd.core.flow import ending, restarts
from chronetixd.core.flow.state import Flow, Revival
from chronetixd.core.flow_messages import (
    Collapsed,
    Deadline,
    Failure,
    FlowEvent,
    FlowState,
    Instruction,
    Moment,
    NodeEvent,
    Signal,
    StopMode,
    StopRequested,
)
from chronetixd.core.worker import Worker, WorkerState


def on_node(flow: Flow, event: FlowEvent, at: Moment) -> list[Instruction]:
    """Something happened to a worker; one that is born only now is killed, unless it is a successor that is needed."""
    assert isinstance(event, NodeEvent)
    if flow.drains_well:
        return restarts.on_node(flow, event, at)
    state = flow.apply(event)
    if state is WorkerState.TERMINATING and isinstance(event.event, worker.Spawned):
        return [Signal((event.node,), kill=True)]
    return ending.after(flow, event, state)


def stop(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """A second, harder request hurries; one that asks for no more than what goes on changes nothing."""
    assert isinstance(event, StopRequested)
    if event.mode is StopMode.DRAIN or (event.mode is StopMode.NOW and flow.deadline is not Deadline.DRAIN):
        return []
    done = [*ending.give_up(flow), *ending.signal(flow, kill=event.mode is StopMode.KILL)]
    return done + ending.end_if_empty(flow, event)


def late(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """The drain took too long: SIGTERM; SIGTERM did not help: SIGKILL."""
    if flow.deadline is not Deadline.DRAIN:
        return ending.signal(flow, kill=True)
    if flow.failure is None:
        slow = next(w for w in flow.workers.values() if not w.gone)
        text = "did not drain in time and was ended; frames it had not taken are lost"
        flow.failure = Failure("drain-timeout", slow.node, "drain", text)
    done = [*ending.give_up(flow), *ending.signal(flow, kill=False)]
    return done + ending.end_if_empty(flow, event)


def collapse(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """Nothing is known any more but which workers live: they are killed, and with the last of them the flow has
    failed."""
    assert isinstance(event, Collapsed)
    flow.blame(Failure("internal", "", "", event.message))
    flow.revival = Revival({}, flow.revival.strategy)
    flow.leaving.clear()
    flow.stop = None
    for node in flow.peers:
        if node not in flow.workers:
            flow.workers[node] = Worker(node, flow.tally)
        living = node in event.living
        flow.workers[node].handle(worker.Lost(WorkerState.TERMINATING if living else WorkerState.FAILED))
    done = [*flow.disarm(), *flow.enter(FlowState.DRAINING, event)]
    return [*done, Signal(event.living, kill=True), *ending.end_if_empty(flow, event)]
