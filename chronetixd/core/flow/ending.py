"""How a flow ends, from wherever it is: who is told to drain, who is signalled, and when nothing of it is left.

Rules: the first cause counts, unless it was a mere consequence of a later one; whoever waits to be started again when a
flow begins to end never is; a flow has ended with the last of its workers, and not before.
"""

from __future__ import annotations

from collections.abc import Collection

from chronetixd.core import worker
from chronetixd.core.flow.state import Flow
from chronetixd.core.flow_messages import (
    Deadline,
    Drain,
    Failure,
    FlowEvent,
    FlowState,
    Instruction,
    NodeEvent,
    Signal,
    StopRequested,
    WakePeers,
)
from chronetixd.core.worker import GONE, WorkerState

BEGUN = (
    WorkerState.STARTING,
    WorkerState.STARTED,
    WorkerState.DRAINING,
    WorkerState.FINISHED,
    WorkerState.EXITED,
)
"""States of a worker that only a start sent to it leads to: with one of them the flow has had effects."""

FINISHING = GONE | {WorkerState.FINISHED, WorkerState.FAULTED}
"""States in which a worker is about to exit by itself, with a code worth knowing."""


def after(flow: Flow, event: NodeEvent, state: WorkerState) -> list[Instruction]:
    """What a worker's bad or final state means for the flow, in whatever state that is."""
    done: list[Instruction] = [WakePeers(event.node)] if state in GONE else []
    if state in (WorkerState.FAULTED, WorkerState.FAILED):
        return done + fail(flow, flow.cause(event), event)
    return done + end_if_empty(flow, event)


def fail(flow: Flow, failure: Failure, event: FlowEvent) -> list[Instruction]:
    """Note the cause, unless an earlier one is known that is not a mere consequence, and stop the others."""
    known = flow.failure
    flow.blame(failure)
    if known is None and flow.state is FlowState.STARTING and not flow.count(*BEGUN):
        stopped = [*leave(flow, event), *signal(flow, kill=False, spare=FINISHING)]
    elif flow.state is FlowState.DRAINING:
        stopped = [*give_up(flow), *_stop_others(flow)]
    else:
        stopped = [*leave(flow, event), *_stop_others(flow)]
    return stopped + end_if_empty(flow, event)


def drain(flow: Flow, asked: StopRequested, event: FlowEvent) -> list[Instruction]:
    """Every node is at work or has ended: from here on it is downhill."""
    return [
        *leave(flow, event),
        flow.arm(Deadline.DRAIN, drain_ns(flow, asked)),
        *_tell_drain(flow, flow.sources),
    ]


def drain_ns(flow: Flow, asked: StopRequested) -> int:
    """How long the drain that was ``asked`` for may take."""
    return flow.limits.drain_ns if asked.drain_ns is None else asked.drain_ns


def drain_successor(flow: Flow, node: str) -> list[Instruction]:
    """A node that was restarted while the flow drains has started: a source is to end again."""
    return _tell_drain(flow, flow.sources & {node}) if flow.drains_well else []


def leave(flow: Flow, event: FlowEvent) -> list[Instruction]:
    """To draining: whoever waited to be started again does not any more."""
    return [*flow.enter(FlowState.DRAINING, event), *give_up(flow)]


def give_up(flow: Flow) -> list[Instruction]:
    """The flow ends: who waits to be started again never is, and nobody leaves for another one."""
    flow.revival.groups.clear()
    flow.leaving.clear()
    parked, flow.revival.parked = flow.revival.parked, []
    some = flow.count(WorkerState.RESTARTING)
    waiting = [each for each in flow.workers.values() if each.state is WorkerState.RESTARTING] if some else []
    for subject in waiting:
        subject.handle(worker.GivenUp())
    return [WakePeers(node) for node in (*(event.node for event in parked), *(each.node for each in waiting))]


def signal(flow: Flow, *, kill: bool, spare: frozenset[WorkerState] = GONE) -> list[Instruction]:
    """Signal everyone who is left, but for states to ``spare``; SIGTERM gets a deadline, SIGKILL needs none."""
    left = tuple(node for node, w in flow.workers.items() if w.state not in spare)
    for node in left:
        flow.workers[node].handle(worker.SignalSent())
    if kill:
        flow.killed += [node for node in left if node not in flow.killed]
        return [*flow.disarm(), Signal(left, kill=True)]
    return [flow.arm(Deadline.TERMINATE, flow.limits.terminate_ns), Signal(left, kill=False)]


def end_if_empty(flow: Flow, event: FlowEvent) -> list[Instruction]:
    """The end of the flow with that of its last worker."""
    if flow.ended or not flow.all_gone:
        return []
    if flow.state is FlowState.STARTING:
        return []
    for node in tuple(flow.retiring):
        flow.forget(node)
    final = FlowState.STOPPED if flow.failure is None else FlowState.FAILED
    return [*flow.disarm(), *flow.enter(final, event)]


def _stop_others(flow: Flow) -> list[Instruction]:
    """After a failure: whoever runs drains, whoever has not started is signalled."""
    done = _tell_drain(flow, flow.workers.keys())
    phases = worker.PHASES
    early = tuple(node for node, w in flow.workers.items() if w.state in phases) if flow.count(*phases) else ()
    for node in early:
        flow.workers[node].handle(worker.SignalSent())
    if early:
        done.append(Signal(early, kill=False))
    if flow.deadline in (None, Deadline.START) and not flow.all_gone:
        done.append(flow.arm(Deadline.DRAIN, flow.limits.failure_drain_ns))
    return done


def _tell_drain(flow: Flow, nodes: Collection[str]) -> list[Instruction]:
    """Drain those of ``nodes`` that run and were not told yet."""
    running = (WorkerState.STARTING, WorkerState.STARTED)
    if not flow.count(*running):
        return []
    told = tuple(node for node, w in flow.workers.items() if node in nodes and w.state in running)
    for node in told:
        flow.workers[node].handle(worker.DrainSent())
    return [Drain(told)] if told else []
