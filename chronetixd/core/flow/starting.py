"""Handlers for a flow that does not run yet: submitted, validated or starting, or taken over from an earlier daemon.

Workers are started in two waves, sinks first and sources last. While a program that starts by itself is awaited, the
flow's deadline is the time that a person may take to start it; the start deadline begins when the last one has
attached. A failure before the first start was sent has had no
effect on data and ends the flow at once.
"""

from __future__ import annotations

from chronetixd.core import worker
from chronetixd.core.flow import ending, restarts, running
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow_messages import (
    ClockAndChance,
    Deadline,
    FlowEvent,
    FlowFailure,
    FlowState,
    Instruction,
    Refused,
    Remembered,
    RequestSpawn,
    Resumed,
    SendConfigure,
    SendStart,
    StopMode,
    StopRequested,
    WorkerChanged,
)
from chronetixd.core.worker import WorkerState


def accept(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Note that the contract and the artifacts of the flow are valid."""
    return flow.enter(FlowState.VALIDATED, event)


def refuse(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Fail the flow because it was refused."""
    assert isinstance(event, Refused)
    flow.failure = FlowFailure("refused", "", "", event.message)
    return flow.enter(FlowState.FAILED, event)


def remember(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Enter the final state that the flow reached under an earlier daemon. That daemon has reported it already, so
    there are no instructions."""
    assert isinstance(event, Remembered)
    flow.enter(event.state, event)
    return []


def resume(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Enter the state running for a flow that runs already under workers that an earlier daemon has started."""
    assert isinstance(event, Resumed)
    flow.create_workers(flow.peers)
    for node, subject in flow.workers.items():
        incarnation = event.incarnations.get(node, 0)
        subject.handle(
            worker.FinishedEarlier(incarnation) if node in event.over else worker.StartedEarlier(incarnation)
        )
    flow.enter(FlowState.RUNNING, event)
    return []


def launch(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Request all workers of the flow."""
    nodes = tuple(flow.peers)
    flow.create_workers(nodes)
    return [
        *flow.enter(FlowState.STARTING, event),
        flow.arm(Deadline.START, flow.limits.start_ns),
        RequestSpawn(nodes),
    ]


def stop_unlaunched(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """End the flow, which has no workers yet."""
    return flow.enter(FlowState.STOPPED, event)


def on_node(flow: FlowMachine, event: FlowEvent, at: ClockAndChance) -> list[Instruction]:
    """Handle an event of a worker. If it was the last one that the others waited for, start the next wave."""
    assert isinstance(event, WorkerChanged)
    ran = restarts.runs_early(flow, event.node)
    state = flow.apply(event)
    final = isinstance(event.event, worker.Faulted) and event.event.final
    if ran and not final and state in (WorkerState.FAULTED, WorkerState.FAILED):
        return restarts.park(flow, event)
    match state:
        case WorkerState.WAITING:
            return [flow.arm(Deadline.START, flow.limits.attach_ns)]
        case WorkerState.GREETING if isinstance(event.event, worker.Attached):
            waits = flow.count(WorkerState.WAITING)
            return [] if waits else [flow.arm(Deadline.START, flow.limits.start_ns)]
        case WorkerState.OFFERING:
            return [SendConfigure(event.node)]
        case WorkerState.READY if flow.count(WorkerState.READY) == len(flow.workers):
            return _start_wave(flow, 0)
        case WorkerState.STARTED:
            return _advance(flow, event, at)
        case _:
            return ending.after(flow, event, state)


def stop(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """End the flow at once when no start was sent yet. After that, a drain waits until all workers have started."""
    assert isinstance(event, StopRequested)
    if event.mode is StopMode.DRAIN and flow.count(*ending.BEGUN):
        flow.stop = event
        return []
    return [*ending.enter_draining(flow, event), *ending.signal(flow, kill=event.mode is StopMode.KILL)]


def deadline_passed(flow: FlowMachine, event: FlowEvent, _at: ClockAndChance) -> list[Instruction]:
    """Fail the flow because it was not ready in time. The worker that is furthest behind is named as the cause."""
    order = list(worker.PHASES)
    unready = [subject for subject in flow.workers.values() if subject.state in worker.PHASES]
    slow = min(unready, key=lambda subject: order.index(subject.state))
    phase = worker.PHASES[slow.state]
    text = f"was not ready within {flow.limits.start_ns / 1e9:g} s; it is still in phase {phase!r}"
    if slow.state is WorkerState.WAITING:
        text = ending.not_attached(flow)
    return ending.fail(flow, FlowFailure("start-timeout", slow.node, phase, text), event)


def _start_wave(flow: FlowMachine, wave: int) -> list[Instruction]:
    for node in flow.waves[wave]:
        flow.workers[node].handle(worker.StartSent())
    return [SendStart(flow.waves[wave])]


def _advance(flow: FlowMachine, event: WorkerChanged, at: ClockAndChance) -> list[Instruction]:
    """Start the next wave if the worker that has just started was the last one of its wave. After the last wave the
    flow runs."""
    if flow.count(WorkerState.STARTING):
        return []
    if flow.count(WorkerState.READY):
        return _start_wave(flow, 1)
    stop, flow.stop = flow.stop, None
    runs = [*flow.enter(FlowState.RUNNING, event), *flow.disarm(), *restarts.unpark(flow, at)]
    return runs + running.stop(flow, stop, at) if stop and flow.state is FlowState.RUNNING else runs
