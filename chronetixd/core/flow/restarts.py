"""Restarts and replacements: handlers for nodes whose worker ends while their flow runs.

Rules: a node that failed is restarted with its restart group (see ``core.restart``), and no node of a group is started
again before the last worker of the group is gone; groups that overlap are merged. Each node has one timer. The node's
state determines what that timer is: the back-off of the group that the node leads, the start deadline, or the time to
end by itself. A drain that is requested meanwhile waits for the restarts and skips their back-off. A node that cannot
be restarted fails the flow. When a worker that was told to leave has ended, however it ended, its node gets the
successor that is then given.
"""

from __future__ import annotations

from chronetixd.core import restart, worker
from chronetixd.core.flow import ending
from chronetixd.core.flow.state import FlowMachine, RestartGroup
from chronetixd.core.flow_messages import (
    ArmNodeDeadline,
    ClockAndChance,
    FlowFailure,
    FlowState,
    Instruction,
    LinkSuccessor,
    NodeRemoved,
    PrepareSuccessor,
    RequestSpawn,
    Restarted,
    Restarting,
    SendConfigure,
    SendDrain,
    SendLeave,
    SendStart,
    Signal,
    WakePeers,
    WorkerChanged,
    WorkerLeft,
)
from chronetixd.core.restart import CountedExit, Ending, Policy
from chronetixd.core.worker import GONE, WorkerState

SETTLED = frozenset({WorkerState.STARTED, WorkerState.DRAINING, WorkerState.FINISHED}) | GONE
"""States of a node that a drain or a roll-out does not wait for."""

ENDED_WELL = GONE | {WorkerState.FINISHED}
"""States of a node that is not restarted along with its restart group."""

WAITS = frozenset({WorkerState.OFFERED, WorkerState.READY})
"""States in which a worker waits for its peers: a missed start deadline is not its fault."""


def on_node(flow: FlowMachine, event: WorkerChanged, at: ClockAndChance) -> list[Instruction]:
    """Handle an event of a worker of a running flow."""
    node = event.node
    state = flow.apply(event)
    match event.event, state:
        case worker.AttachAwaited(), WorkerState.WAITING:
            return [ArmNodeDeadline(node, flow.limits.attach_ns)]
        case worker.Attached(), WorkerState.GREETING:
            return [_arm_start(flow, node)]
        case worker.Greeted(), WorkerState.OFFERING:
            return [SendConfigure(node)]
        case worker.LinkSent(), WorkerState.LINKED:
            return [_arm_start(flow, node)]
        case worker.BecameReady(), WorkerState.READY:
            return [LinkSuccessor(node)]
        case worker.Relinked(), WorkerState.READY:
            flow.workers[node].handle(worker.StartSent())
            return [_arm_start(flow, node), SendStart((node,))]
        case worker.HasStarted(), WorkerState.STARTED:
            again = retire(flow, node) if node in flow.retired else ending.drain_successor(flow, node)
            return [Restarted(node), *again, *drain_if_settled(flow, event)]
        case worker.ProcessSpawned(), WorkerState.TERMINATING:
            return [Signal((node,), kill=True)]
        case worker.Faulted(), WorkerState.FAULTED:
            return _faulted(flow, event)
        case _, (WorkerState.EXITED | WorkerState.FAILED):
            return _ended(flow, event, at)
        case _:
            return []


def runs_early(flow: FlowMachine, node: str) -> bool:
    """Return whether ``node`` has started, and may have got frames, while the sources of its flow are still
    starting, and its rule restarts it after a failure. A worker that ends earlier than that was never of use and
    fails the flow."""
    subject = flow.workers.get(node)
    begun = subject is not None and subject.state in (WorkerState.STARTED, WorkerState.FAULTED)
    wanted = restart.RESTARTED[flow.restart_state.rule(node).policy][Ending.FAILED]
    return begun and wanted and not flow.count(*(state for state in worker.PHASES if state is not WorkerState.STARTING))


def park(flow: FlowMachine, event: WorkerChanged) -> list[Instruction]:
    """Remember the exit of a worker, so that its node is restarted as soon as the flow runs. A worker that has faulted
    and not exited yet gets time to exit."""
    if flow.workers[event.node].state is WorkerState.FAULTED:
        return [ArmNodeDeadline(event.node, flow.limits.last_ns)]
    flow.restart_state.parked.append(event)
    return []


def unpark(flow: FlowMachine, at: ClockAndChance) -> list[Instruction]:
    """Restart the nodes whose exits were remembered while the flow was starting."""
    done: list[Instruction] = []
    parked, flow.restart_state.parked = flow.restart_state.parked, []
    for event in parked:
        done += _ended(flow, event, at) if flow.state is FlowState.RUNNING else [WakePeers(event.node)]
    return done


def on_deadline(flow: FlowMachine, node: str) -> list[Instruction]:
    """Handle the timer of ``node`` in a running flow."""
    subject = flow.workers[node]
    goes = node in flow.leaving or node in flow.retiring
    if goes and subject.state in (WorkerState.DRAINING, WorkerState.FINISHED):
        subject.handle(worker.SignalSent())
        flow.overdue |= flow.retiring & {node}
        return [Signal((node,), kill=False), ArmNodeDeadline(node, flow.limits.terminate_ns)]
    if subject.state is WorkerState.RESTARTING:
        group = flow.restart_state.group_of(node)
        due = group is not None and group.nodes[0] == node and _complete(flow, group)
        return respawn(flow, group) if group is not None and due else []
    if subject.state in (WorkerState.TERMINATING, WorkerState.FAULTED):
        return [Signal((node,), kill=True)]
    if subject.state is WorkerState.SPAWNING:
        subject.handle(worker.SignalSent())
        return []
    if subject.state is WorkerState.WAITING:
        subject.handle(worker.SignalSent())
        subject.handle(worker.Faulted("attach", ending.not_attached(flow)))
        return [Signal((node,), kill=False)]
    if subject.state in worker.PHASES and subject.state not in WAITS:
        phase = worker.PHASES[subject.state]
        text = f"was not ready again within {flow.limits.start_ns / 1e9:g} s"
        subject.handle(worker.Faulted(phase, text))
        return [Signal((node,), kill=True)]
    return []


def respawn(flow: FlowMachine, group: RestartGroup) -> list[Instruction]:
    """Request the next worker of every node in ``group``, and arm their start deadlines."""
    flow.restart_state.groups.remove(group)
    for node in group.nodes:
        flow.workers[node].handle(worker.RespawnSent())
    return [*(_arm_start(flow, node) for node in group.nodes), RequestSpawn(group.nodes)]


def leave(flow: FlowMachine, node: str) -> list[Instruction]:
    """Tell the worker of ``node`` to leave. It may spend as long on its remaining frames as a drain may take."""
    flow.leaving.add(node)
    flow.workers[node].handle(worker.DrainSent())
    return [SendLeave(node), ArmNodeDeadline(node, flow.limits.drain_ns)]


def retire(flow: FlowMachine, node: str) -> list[Instruction]:
    """Tell the worker of a removed node to work on its remaining frames and end."""
    flow.retired.add(node)
    flow.workers[node].handle(worker.DrainSent())
    return [SendDrain((node,)), ArmNodeDeadline(node, flow.limits.drain_ns)]


def _removed(flow: FlowMachine, node: str) -> list[Instruction]:
    """Forget a removed node whose worker is gone, however it ended."""
    groups = [group for group in flow.restart_state.groups if node in group.nodes]
    for group in groups:
        group.nodes = tuple(each for each in group.nodes if each != node)
    flow.restart_state.groups = [group for group in flow.restart_state.groups if group.nodes]
    flow.forget(node)
    done: list[Instruction] = [WakePeers(node), NodeRemoved(node)]
    return done + [each for group in groups if group.nodes for each in _arm_if_complete(flow, group)]


def take_over(flow: FlowMachine, node: str, pid: int) -> list[Instruction]:
    """Begin the next worker of ``node``, whose last one has left. Process ``pid`` stands by and has said hello already;
    0 means that a worker has to be spawned."""
    subject = flow.workers[node]
    subject.handle(worker.RespawnSent())
    if not pid:
        return [_arm_start(flow, node), RequestSpawn((node,))]
    subject.handle(worker.ProcessSpawned(pid))
    subject.handle(worker.Greeted())
    return [_arm_start(flow, node), SendConfigure(node)]


def end_backoff(flow: FlowMachine) -> list[Instruction]:
    """Skip the back-off of all restarts, because the flow is asked to drain. Groups whose workers are all gone are
    restarted at once."""
    done: list[Instruction] = []
    for group in tuple(flow.restart_state.groups):
        group.after_ns = 0
        if _complete(flow, group):
            done += respawn(flow, group)
    return done


def unsettled(flow: FlowMachine) -> bool:
    """Return whether any node is leaving, being removed, or starting again."""
    return bool(flow.leaving or flow.retiring) or flow.count(*SETTLED) != len(flow.workers)


def drain_if_settled(flow: FlowMachine, event: WorkerChanged) -> list[Instruction]:
    """Begin the drain that was requested earlier, if every node is settled now."""
    if flow.stop is None or flow.state is not FlowState.RUNNING or unsettled(flow):
        return []
    return ending.drain(flow, flow.stop, event)


# -- ends ----------------------------------------------------------------------------------------------------


def _faulted(flow: FlowMachine, event: WorkerChanged) -> list[Instruction]:
    """Arm the time that a faulted worker has to exit by itself; what follows is decided when it is gone. If its rule
    forbids a restart, and it was not told to leave or end, or if the fault is final, fail the flow instead."""
    restarted = restart.RESTARTED[flow.restart_state.rule(event.node).policy][Ending.FAILED]
    assert isinstance(event.event, worker.Faulted)
    if event.event.final or (not restarted and event.node not in flow.leaving | flow.retiring):
        return ending.fail(flow, flow.cause(event), event)
    return [ArmNodeDeadline(event.node, flow.limits.last_ns)]


def _ended(flow: FlowMachine, event: WorkerChanged, at: ClockAndChance) -> list[Instruction]:
    node = event.node
    group = flow.restart_state.group_of(node)
    if node in flow.retiring:
        return _retiring_ended(flow, event, at)
    leaves = node in flow.leaving
    flow.leaving.discard(node)
    if group is not None:
        flow.workers[node].handle(worker.RestartPlanned())
        return [PrepareSuccessor(node), *_arm_if_complete(flow, group)]
    if leaves:
        flow.workers[node].handle(worker.RestartPlanned())
        return [PrepareSuccessor(node), WorkerLeft(node)]
    how = _ending(flow, node)
    rule = flow.restart_state.rule(node)
    earlier = restart.within(flow.restart_state.counted_exits.get(node, ()), rule.window_ns, at.now_ns)
    verdict = restart.decide(rule, how, earlier, at.now_ns, at.chance)
    if how is Ending.FAILED:
        what = flow.cause(event).told
        flow.restart_state.counted_exits[node] = [*earlier, CountedExit(at.now_ns, what)]
        return _failed(flow, event, verdict, earlier)
    if isinstance(verdict, restart.RestartAfter) and flow.state is FlowState.RUNNING:
        flow.restart_state.counted_exits[node] = [*earlier, CountedExit(at.now_ns, "finished")]
        return _restart(flow, event, verdict, "it finished")
    return [WakePeers(node), *ending.end_if_empty(flow, event), *drain_if_settled(flow, event)]


def _retiring_ended(flow: FlowMachine, event: WorkerChanged, at: ClockAndChance) -> list[Instruction]:
    """Handle the exit of a removed node's worker. If it died before it had worked on the frames that were sent to it,
    it is restarted to do so, as its rule says. If its restarts are exhausted, the remaining frames are lost, and the
    flow goes on."""
    node, rule = event.node, flow.restart_state.rule(event.node)
    earlier = restart.within(flow.restart_state.counted_exits.get(node, ()), rule.window_ns, at.now_ns)
    verdict = restart.decide(rule, _ending(flow, node), earlier, at.now_ns, at.chance)
    died = _ending(flow, node) is Ending.FAILED and node in flow.fed - flow.overdue
    if died and isinstance(verdict, restart.RestartAfter) and flow.restarts:
        what = flow.cause(event).told
        flow.restart_state.counted_exits[node] = [*earlier, CountedExit(at.now_ns, what)]
        return _restart(flow, event, verdict, what)
    return [*_removed(flow, node), *ending.end_if_empty(flow, event), *drain_if_settled(flow, event)]


def _ending(flow: FlowMachine, node: str) -> Ending:
    subject = flow.workers[node]
    failed = subject.state is WorkerState.FAILED or not subject.finished
    if failed and not _killed_when_done(flow, node):
        return Ending.FAILED
    return Ending.STREAM_ENDED if flow.peers[node] else Ending.FINISHED


def _killed_when_done(flow: FlowMachine, node: str) -> bool:
    """Return whether the worker of ``node`` was killed when nothing was left to do: it had reported that it had
    finished, or every node that it sends to has ended, and none has failed the flow. A successor would find no work.
    So this is no failure of a node whose rule restarts failures; the author of another rule has not agreed that the
    end of a process may be missing."""
    subject, rule = flow.workers[node], flow.restart_state.rule(node)
    killed = subject.exit is not None and bool(subject.exit.signal) and subject.fault is None
    if not killed or not restart.RESTARTED[rule.policy][Ending.FAILED]:
        return False
    return subject.finished or _unheard(flow, node)


def _unheard(flow: FlowMachine, node: str) -> bool:
    """Return whether every node that ``node`` sends to has ended, and there is one."""
    consumers = flow.consumers.get(node, ())
    return bool(consumers) and all(flow.workers[each].gone for each in consumers)


def _failed(
    flow: FlowMachine, event: WorkerChanged, verdict: restart.Verdict, earlier: list[CountedExit]
) -> list[Instruction]:
    node, cause = event.node, flow.cause(event)
    if isinstance(verdict, restart.GiveUp):
        if verdict.exhausted:
            told = restart.exhausted(flow.restart_state.rule(node), cause.told, earlier)
            cause = FlowFailure("restarts", node, cause.phase, told)
        return [WakePeers(node), *ending.fail(flow, cause, event)]
    stuck = _not_restartable(flow, node)
    if stuck:
        cause = FlowFailure("restarts", node, cause.phase, f"{cause.told}; it cannot be restarted: {stuck}")
        return [WakePeers(node), *ending.fail(flow, cause, event)]
    return _restart(flow, event, verdict, cause.told)


def _not_restartable(flow: FlowMachine, node: str) -> str:
    """Return why ``node`` cannot be restarted although its rule allows it; an empty string when it can."""
    if flow.workers[node].finished and flow.peers[node]:
        return "its work was done, and its streams have ended"
    if _unheard(flow, node):
        return "every node that it sends to has ended"
    for each in sorted(_restart_group(flow, node)):
        if not restart.RESTARTED[flow.restart_state.rule(each).policy][Ending.WITH_GROUP]:
            strategy = flow.restart_state.strategy
            return f"the strategy {strategy} restarts node {each!r} with it, which is {Policy.TEMPORARY}"
    return ""


def _restart_group(flow: FlowMachine, node: str) -> set[str]:
    """Return the nodes that are restarted with ``node``. Nodes that have ended in order are left out."""
    if node in flow.retiring:
        return {node}
    group = restart.restart_group(flow.restart_state.strategy, node, flow.peers, flow.edges) - flow.retiring
    return {each for each in group if each == node or flow.workers[each].state not in ENDED_WELL}


def _restart(flow: FlowMachine, event: WorkerChanged, verdict: restart.RestartAfter, why: str) -> list[Instruction]:
    node = event.node
    flow.workers[node].handle(worker.RestartPlanned())
    hurried = flow.stop is not None or flow.drains_in_order
    group = _merge_groups(flow, node, 0 if hurried else verdict.after_ns)
    living = tuple(each for each in group.nodes if _has_process(flow, each))
    for each in living:
        flow.workers[each].handle(worker.SignalSent())
    others = tuple(each for each in group.nodes if each != node)
    done: list[Instruction] = [PrepareSuccessor(node), Restarting(node, group.after_ns, verdict.attempt, why, others)]
    if living:
        done += [Signal(living, kill=False), *(ArmNodeDeadline(each, flow.limits.terminate_ns) for each in living)]
    return [*done, *_arm_if_complete(flow, group)]


def _has_process(flow: FlowMachine, node: str) -> bool:
    return flow.workers[node].state not in (WorkerState.RESTARTING, WorkerState.TERMINATING)


def _merge_groups(flow: FlowMachine, node: str, after_ns: int) -> RestartGroup:
    """Make the restart group of ``node``, merged with all groups that it overlaps."""
    nodes = _restart_group(flow, node)
    apart = []
    for group in flow.restart_state.groups:
        if nodes.isdisjoint(group.nodes):
            apart.append(group)
        else:
            nodes |= set(group.nodes)
            after_ns = max(after_ns, group.after_ns)
    made = RestartGroup((node, *sorted(nodes - {node})), after_ns)
    flow.restart_state.groups = [*apart, made]
    return made


def _complete(flow: FlowMachine, group: RestartGroup) -> bool:
    return all(flow.workers[each].state is WorkerState.RESTARTING for each in group.nodes)


def _arm_if_complete(flow: FlowMachine, group: RestartGroup) -> list[Instruction]:
    """Begin the back-off of ``group`` if all of its workers are gone; without a back-off, request their successors at
    once."""
    if not _complete(flow, group):
        return []
    if not group.after_ns:
        return respawn(flow, group)
    return [ArmNodeDeadline(group.nodes[0], group.after_ns)]


def _arm_start(flow: FlowMachine, node: str) -> ArmNodeDeadline:
    return ArmNodeDeadline(node, flow.limits.start_ns)
