"""Handlers for a flow in the state draining: it drains in order, or it was told to end at once, or it has failed."""

from __future__ import annotations

from chronetixd.core import worker
from chronetixd.core.flow import ending, restarts
from chronetixd.core.flow.state import FlowMachine, RestartState
from chronetixd.core.flow_messages import (
    ClockAndChance,
    Collapsed,
    Deadline,
    FlowEvent,
    FlowFailure,
    FlowState,
    Instruction,
    Signal,
    StopMode,
    StopRequested,
    WorkerChanged,
)
from chronetixd.core.worker import WorkerMachine, WorkerState


def on_node(flow: FlowMachine, event: FlowEvent, at: ClockAndChance) -> list[Instruction]:
    """Handle an event of a worker. A worker that is spawned only now is killed, unless it is a successor that an
    orderly drain needs."""
    assert isinstance(event, WorkerChanged)
    if flow.drains_in_order:
        return restarts.on_node(flow, event, at)
    state = flow.apply(event)
    if state is WorkerState.TERMINATING and isinstance(event.event, worker.ProcessSpawned):
        return [Signal((event.node,), kill=True)]
    return ending.after(flow, event, state)


def stop(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Handle a further stop request. A harder mode than the present one takes effect at once; any other request changes
    nothing."""
    assert isinstance(event, StopRequested)
    if event.mode is StopMode.DRAIN or (event.mode is StopMode.NOW and flow.deadline is not Deadline.DRAIN):
        return []
    done = [*ending.cancel_restarts(flow), *ending.signal(flow, kill=event.mode is StopMode.KILL)]
    return done + ending.end_if_empty(flow, event)


def deadline_passed(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Handle the flow's deadline: send SIGTERM when the drain took too long, and SIGKILL when SIGTERM did not help.
    Workers whose work is done get time for the end of their process."""
    if flow.deadline is not Deadline.DRAIN:
        return ending.signal(flow, kill=True)
    if flow.failure is None:
        slow = next((w for w in flow.workers.values() if w.state not in ending.FINISHING), None)
        if slow is None:
            return [flow.arm(Deadline.END, flow.limits.last_ns)]
        text = "did not drain in time and was ended; frames it had not taken are lost"
        flow.failure = FlowFailure("drain-timeout", slow.node, "drain", text)
    done = [*ending.cancel_restarts(flow), *ending.signal(flow, kill=False)]
    return done + ending.end_if_empty(flow, event)


def collapse(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Kill all living workers, because the executor failed and only the set of living workers is known. The flow has
    failed when the last of them is gone."""
    assert isinstance(event, Collapsed)
    flow.note_failure(FlowFailure("internal", "", "", event.message))
    flow.restart_state = RestartState({}, flow.restart_state.strategy)
    flow.leaving.clear()
    flow.stop = None
    for node in flow.peers:
        if node not in flow.workers:
            flow.workers[node] = WorkerMachine(node, flow.tally)
        living = node in event.living
        flow.workers[node].handle(worker.FlowCollapsed(WorkerState.TERMINATING if living else WorkerState.FAILED))
    done = [*flow.disarm(), *flow.enter(FlowState.DRAINING, event)]
    return [*done, Signal(event.living, kill=True), *ending.end_if_empty(flow, event)]
