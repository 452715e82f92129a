"""How a flow ends, from any of its states: which workers are told to drain, which are signalled, and when the flow has
ended.

Rules: the first cause of a failure counts, unless it was a mere consequence of a later one. A node that waits to be
restarted when its flow begins to end is not restarted. A flow has ended when its last worker is gone, and not before.
"""

from __future__ import annotations

from collections.abc import Collection

from chronetixd.core import worker
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow_messages import (
    Deadline,
    FlowEvent,
    FlowFailure,
    FlowState,
    Instruction,
    SendDrain,
    Signal,
    StopRequested,
    WakePeers,
    WorkerChanged,
)
from chronetixd.core.worker import GONE, WorkerState

BEGUN = (
    WorkerState.STARTING,
    WorkerState.STARTED,
    WorkerState.DRAINING,
    WorkerState.FINISHED,
    WorkerState.EXITED,
)
"""States of a worker that only a sent start leads to: if any worker is in one of them, the flow has had effects."""

FINISHING = GONE | {WorkerState.FINISHED, WorkerState.FAULTED}
"""States in which a worker is about to exit by itself, with an exit code worth knowing."""


def after(flow: FlowMachine, event: WorkerChanged, state: WorkerState) -> list[Instruction]:
    """Return what follows for the flow when a worker has entered a failed or final ``state``, in any state of the
    flow."""
    done: list[Instruction] = [WakePeers(event.node)] if state in GONE else []
    if state in (WorkerState.FAULTED, WorkerState.FAILED):
        return done + fail(flow, flow.cause(event), event)
    return done + end_if_empty(flow, event)


def fail(flow: FlowMachine, failure: FlowFailure, event: FlowEvent) -> list[Instruction]:
    """Note the cause of a failure and stop the other workers. An earlier cause is kept, unless it is a mere
    consequence."""
    known = flow.failure
    flow.note_failure(failure)
    if known is None and flow.state is FlowState.STARTING and not flow.count(*BEGUN):
        stopped = [*enter_draining(flow, event), *signal(flow, kill=False, spare=FINISHING)]
    elif flow.state is FlowState.DRAINING:
        stopped = [*cancel_restarts(flow), *_stop_others(flow)]
    else:
        stopped = [*enter_draining(flow, event), *_stop_others(flow)]
    return stopped + end_if_empty(flow, event)


def not_attached(flow: FlowMachine) -> str:
    """Return what is told of a node that no program has attached to in time, as the predicate of a sentence."""
    return f"waited for attach, and nothing attached within {flow.limits.attach_ns / 1e9:g} s"


def drain(flow: FlowMachine, asked: StopRequested, event: FlowEvent) -> list[Instruction]:
    """Begin an orderly drain: every node has started or has ended, and the sources are told to drain."""
    return [
        *enter_draining(flow, event),
        flow.arm(Deadline.DRAIN, drain_ns(flow, asked)),
        *_tell_drain(flow, flow.sources),
    ]


def drain_ns(flow: FlowMachine, asked: StopRequested) -> int:
    """Return how long the drain that was ``asked`` for may take, in ns."""
    return flow.limits.drain_ns if asked.drain_ns is None else asked.drain_ns


def drain_successor(flow: FlowMachine, node: str) -> list[Instruction]:
    """Return the order to drain a source that was restarted while the flow drains. For any other node, return
    nothing."""
    return _tell_drain(flow, flow.sources & {node}) if flow.drains_in_order else []


def enter_draining(flow: FlowMachine, event: FlowEvent) -> list[Instruction]:
    """Enter the state draining and cancel all pending restarts."""
    return [*flow.enter(FlowState.DRAINING, event), *cancel_restarts(flow)]


def cancel_restarts(flow: FlowMachine) -> list[Instruction]:
    """Cancel all pending restarts and replacements, because the flow ends. Returns the instructions that detach the
    producers of nodes that were waiting to be restarted."""
    flow.restart_state.groups.clear()
    flow.leaving.clear()
    parked, flow.restart_state.parked = flow.restart_state.parked, []
    some = flow.count(WorkerState.RESTARTING)
    waiting = [each for each in flow.workers.values() if each.state is WorkerState.RESTARTING] if some else []
    for subject in waiting:
        subject.handle(worker.GivenUp())
    return [WakePeers(node) for node in (*(event.node for event in parked), *(each.node for each in waiting))]


def signal(flow: FlowMachine, *, kill: bool, spare: frozenset[WorkerState] = GONE) -> list[Instruction]:
    """Signal every worker that is left, except those in states to ``spare``. SIGTERM arms a deadline, SIGKILL needs
    none."""
    left = tuple(node for node, w in flow.workers.items() if w.state not in spare)
    for node in left:
        flow.workers[node].handle(worker.SignalSent())
    if kill:
        flow.killed += [node for node in left if node not in flow.killed]
        return [*flow.disarm(), Signal(left, kill=True)]
    return [flow.arm(Deadline.TERMINATE, flow.limits.terminate_ns), Signal(left, kill=False)]


def end_if_empty(flow: FlowMachine, event: FlowEvent) -> list[Instruction]:
    """End the flow if its last worker is gone. A flow that is starting, or has ended, is left as it is."""
    if flow.ended or not flow.all_gone:
        return []
    if flow.state is FlowState.STARTING:
        return []
    for node in tuple(flow.retiring):
        flow.forget(node)
    final = FlowState.STOPPED if flow.failure is None else FlowState.FAILED
    return [*flow.disarm(), *flow.enter(final, event)]


def _stop_others(flow: FlowMachine) -> list[Instruction]:
    """Stop the other workers after a failure: a running worker is told to drain, one that has not started is
    signalled."""
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


def _tell_drain(flow: FlowMachine, nodes: Collection[str]) -> list[Instruction]:
    """Tell those of ``nodes`` to drain whose worker is starting or started, and has not been told yet."""
    running = (WorkerState.STARTING, WorkerState.STARTED)
    if not flow.count(*running):
        return []
    told = tuple(node for node, w in flow.workers.items() if node in nodes and w.state in running)
    for node in told:
        flow.workers[node].handle(worker.DrainSent())
    return [SendDrain(told)] if told else []
