"""Handlers for a flow in the state running. Workers that end and are succeeded are handled in ``restarts``."""

from __future__ import annotations

from chronetixd.core.flow import ending, restarts
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow_messages import (
    ClockAndChance,
    Deadline,
    FlowEvent,
    FlowFailure,
    FlowState,
    Instruction,
    LeaveRequested,
    NodeDeadline,
    RetireRequested,
    StopMode,
    StopRequested,
    SuccessionFailed,
    SuccessorGiven,
    WorkerChanged,
)
from chronetixd.core.worker import WorkerState


def on_node(flow: FlowMachine, event: FlowEvent, at: ClockAndChance) -> list[Instruction]:
    """Handle an event of a worker."""
    assert isinstance(event, WorkerChanged)
    return restarts.on_node(flow, event, at)


def node_deadline(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Handle the timer of a node. It is ignored when the flow ends and restarts nothing any more."""
    assert isinstance(event, NodeDeadline)
    if event.node not in flow.workers:
        raise flow.illegal(event)
    ends = flow.state is FlowState.DRAINING and not flow.drains_in_order
    return [] if ends else restarts.on_deadline(flow, event.node)


def no_succession(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Fail the flow because a node's successor cannot go on. Ignored when the flow restarts nothing any more."""
    assert isinstance(event, SuccessionFailed)
    if not flow.restarts:
        return []
    return ending.fail(flow, FlowFailure("restarts", event.node, "", event.message), event)


def leave_requested(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Tell a worker to leave, because its successor stands by."""
    assert isinstance(event, LeaveRequested)
    subject = flow.workers.get(event.node)
    if subject is None or subject.state is not WorkerState.STARTED:
        raise flow.illegal(event)
    return restarts.leave(flow, event.node)


def take_over(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Begin the next worker of a node whose last one has left."""
    assert isinstance(event, SuccessorGiven)
    subject = flow.workers.get(event.node)
    if subject is None or subject.state is not WorkerState.RESTARTING or flow.restart_state.group_of(event.node):
        raise flow.illegal(event)
    return restarts.take_over(flow, event.node, event.pid)


def retire(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Tell the worker of a removed node to end."""
    assert isinstance(event, RetireRequested)
    if event.node not in flow.retiring or flow.workers[event.node].state is not WorkerState.STARTED:
        raise flow.illegal(event)
    return restarts.retire(flow, event.node)


def stop(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Begin to end the flow. A drain waits until nodes that are being restarted have started, but skips their
    back-off."""
    assert isinstance(event, StopRequested)
    if event.mode is not StopMode.DRAIN:
        done = [*ending.enter_draining(flow, event), *ending.signal(flow, kill=event.mode is StopMode.KILL)]
        return done + ending.end_if_empty(flow, event)
    if flow.stop is not None:
        return []
    if not restarts.unsettled(flow):
        return ending.drain(flow, event, event)
    flow.stop = event
    return [flow.arm(Deadline.DRAIN, ending.drain_ns(flow, event)), *restarts.end_backoff(flow)]


def deadline_passed(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """End the flow, because its drain has waited too long for a node that is being restarted."""
    slow = next((w for w in flow.workers.values() if w.state not in restarts.SETTLED), None)
    if slow is not None and flow.failure is None:
        text = "was not restarted in time to drain; frames that it had not taken are lost"
        flow.failure = FlowFailure("drain-timeout", slow.node, "drain", text)
    done = [*ending.enter_draining(flow, event), *ending.signal(flow, kill=False)]
    return done + ending.end_if_empty(flow, event)
