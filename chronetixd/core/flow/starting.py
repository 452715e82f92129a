"""A flow until it runs: submitted, validated, starting, and what an earlier daemon has left of it.

Workers are started in two waves, sinks first and sources last. Whatever fails before the first start was sent has had
no effect and ends the flow at once.
"""

from __future__ import annotations

from chronetixd.core import worker
from chronetixd.core.flow import ending, restarts, running
from chronetixd.core.flow.state import Flow
from chronetixd.core.flow_messages import (
    Configure,
    Deadline,
    Failure,
    FlowEvent,
    FlowState,
    Instruction,
    Moment,
    NodeEvent,
    Refused,
    Remembered,
    Resumed,
    Spawn,
    Start,
    StopMode,
    StopRequested,
)
from chronetixd.core.worker import WorkerState


def accept(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """It is sound."""
    return flow.enter(FlowState.VALIDATED, event)


def refuse(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """It is not."""
    assert isinstance(event, Refused)
    flow.failure = Failure("refused", "", "", event.message)
    return flow.enter(FlowState.FAILED, event)


def remember(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """It ended under an earlier daemon, which has told everybody."""
    assert isinstance(event, Remembered)
    flow.enter(event.state, event)
    return []


def resume(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """It ran under an earlier daemon, and goes on: nothing begins."""
    assert isinstance(event, Resumed)
    flow.staff(flow.peers)
    for node, subject in flow.workers.items():
        incarnation = event.incarnations.get(node, 0)
        subject.handle(worker.HadFinished(incarnation) if node in event.over else worker.WasStarted(incarnation))
    flow.enter(FlowState.RUNNING, event)
    return []


def launch(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """Ask for all of its workers."""
    nodes = tuple(flow.peers)
    flow.staff(nodes)
    return [
        *flow.enter(FlowState.STARTING, event),
        flow.arm(Deadline.START, flow.limits.start_ns),
        Spawn(nodes),
    ]


def stop_unlaunched(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """There is nothing to stop."""
    return flow.enter(FlowState.STOPPED, event)


def on_node(flow: Flow, event: FlowEvent, at: Moment) -> list[Instruction]:
    """Something happened to a worker: it may be the one that all others wait for."""
    assert isinstance(event, NodeEvent)
    ran = restarts.runs_early(flow, event.node)
    state = flow.apply(event)
    if ran and state in (WorkerState.FAULTED, WorkerState.FAILED):
        return restarts.park(flow, event)
    match state:
        case WorkerState.OFFERING:
            return [Configure(event.node)]
        case WorkerState.READY if flow.count(WorkerState.READY) == len(flow.workers):
            return _start_wave(flow, 0)
        case WorkerState.STARTED:
            return _advance(flow, event, at)
        case _:
            return ending.after(flow, event, state)


def stop(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """Before the first start nothing has happened yet: end it. After, a drain waits until all have started."""
    assert isinstance(event, StopRequested)
    if event.mode is StopMode.DRAIN and flow.count(*ending.BEGUN):
        flow.stop = event
        return []
    return [*ending.leave(flow, event), *ending.signal(flow, kill=event.mode is StopMode.KILL)]


def late(flow: Flow, event: FlowEvent, _at: Moment) -> list[Instruction]:
    """The start deadline: the worker that is furthest behind is the cause."""
    order = list(worker.PHASES)
    unready = [subject for subject in flow.workers.values() if subject.state in worker.PHASES]
    slow = min(unready, key=lambda subject: order.index(subject.state))
    phase = worker.PHASES[slow.state]
    text = f"was not ready within {flow.limits.start_ns / 1e9:g} s; it is still in phase {phase!r}"
    return ending.fail(flow, Failure("start-timeout", slow.node, phase, text), event)


def _start_wave(flow: Flow, wave: int) -> list[Instruction]:
    for node in flow.waves[wave]:
        flow.workers[node].handle(worker.StartSent())
    return [Start(flow.waves[wave])]


def _advance(flow: Flow, event: NodeEvent, at: Moment) -> list[Instruction]:
    """A worker has started: start the next wave if that was the last one of its own."""
    if flow.count(WorkerState.STARTING):
        return []
    if flow.count(WorkerState.READY):
        return _start_wave(flow, 1)
    stop, flow.stop = flow.stop, None
    runs = [*flow.enter(FlowState.RUNNING, event), *flow.disarm(), *restarts.unpark(flow, at)]
    return runs + running.stop(flow, stop, at) if stop and flow.state is FlowState.RUNNING else runs
