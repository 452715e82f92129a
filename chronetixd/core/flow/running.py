"""A flow that runs: what is asked of it, and of its nodes. What dies and comes back is in ``restarts``."""

from __future__ import annotations

from chronetixd.core.flow import ending, restarts
from chronetixd.core.flow.state import Flow
from chronetixd.core.flow_messages import (
    Deadline,
    Failure,
    FlowEvent,
    FlowState,
    Instruction,
    LeaveRequested,
    Moment,
    NodeDeadline,
    NodeEvent,
    NoSuccession,
    Retire,
    StopMode,
    StopRequested,
    TakeOver,
)
from chronetixd.core.worker import WorkerState


def on_node(flow: Flow, event: FlowEvent, at: Moment) -> list[Instruction]:
    """Something happened to a worker."""
    assert isinstance(event, NodeEvent)
    return restarts.on_node(flow, event, at)


def node_deadline(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """The timer of a node; old news when the flow ends and restarts nothing any more."""
    assert isinstance(event, NodeDeadline)
    if event.node not in flow.workers:
        raise flow.illegal(event)
    ends = flow.state is FlowState.DRAINING and not flow.drains_well
    return [] if ends else restarts.on_deadline(flow, event.node)


def no_succession(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """A node cannot come back: the flow fails, if anything was to come back at all."""
    assert isinstance(event, NoSuccession)
    if not flow.restarts:
        return []
    return ending.fail(flow, Failure("restarts", event.node, "", event.message), event)


def leave_requested(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """A worker's successor stands by."""
    assert isinstance(event, LeaveRequested)
    subject = flow.workers.get(event.node)
    if subject is None or subject.state is not WorkerState.STARTED:
        raise flow.illegal(event)
    return restarts.leave(flow, event.node)


def take_over(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """The worker before has left."""
    assert isinstance(event, TakeOver)
    subject = flow.workers.get(event.node)
    if subject is None or subject.state is not WorkerState.RESTARTING or flow.revival.group_of(event.node):
        raise flow.illegal(event)
    return restarts.take_over(flow, event.node, event.pid)


def retire(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """A node that was removed is to end."""
    assert isinstance(event, Retire)
    if event.node not in flow.retiring or flow.workers[event.node].state is not WorkerState.STARTED:
        raise flow.illegal(event)
    return restarts.retire(flow, event.node)


def stop(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """A drain waits until nodes that are being restarted are back, but not for their back-off."""
    assert isinstance(event, StopRequested)
    if event.mode is not StopMode.DRAIN:
        done = [*ending.leave(flow, event), *ending.signal(flow, kill=event.mode is StopMode.KILL)]
        return done + ending.end_if_empty(flow, event)
    if flow.stop is not None:
        return []
    if not restarts.unsettled(flow):
        return ending.drain(flow, event, event)
    flow.stop = event
    return [flow.arm(Deadline.DRAIN, ending.drain_ns(flow, event)), *restarts.hurry(flow)]


def late(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """The drain has waited too long for a node that is being restarted."""
    slow = next((w for w in flow.workers.values() if w.state not in restarts.SETTLED), None)
    if slow is not None and flow.failure is None:
        text = "was not restarted in time to drain; frames that it had not taken are lost"
        flow.failure = Failure("drain-timeout", slow.node, "drain", text)
    done = [*ending.leave(flow, event), *ending.signal(flow, kill=False)]
    return done + ending.end_if_empty(flow, event)
