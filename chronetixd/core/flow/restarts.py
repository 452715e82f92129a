"""Nodes that die and come back while their flow runs: the part of the flow's machine that is about restarts.

Rules: a node that failed is restarted with its kin (see ``restart``), and nobody of a group is started again before
the last of it is gone; groups that overlap become one. One timer belongs to each node, and its state says what for:
back-off of the group that it leads, start deadline, or time to end by itself. A drain that was asked for meanwhile
waits for them, and hurries them. What cannot be restarted fails the flow, as ever. A worker that was told to leave its
place is succeeded however it ends, by the one that is then given.
"""

from __future__ import annotations

from chronetixd.core import restart, worker
from chronetixd.core.flow import ending
from chronetixd.core.flow.state import Flow, Group
from chronetixd.core.flow_messages import (
    ArmNode,
    Configure,
    Drain,
    Failure,
    FlowState,
    Instruction,
    Leave,
    Left,
    LinkSuccessor,
    Moment,
    NodeEvent,
    PrepareSuccessor,
    Removed,
    Restarted,
    Restarting,
    Signal,
    Spawn,
    Start,
    WakePeers,
)
from chronetixd.core.restart import Death, Ending, Policy
from chronetixd.core.worker import GONE, WorkerState

SETTLED = frozenset({WorkerState.STARTED, WorkerState.DRAINING, WorkerState.FINISHED}) | GONE
"""States of a node that nobody has to wait for."""

ENDED_WELL = GONE | {WorkerState.FINISHED}
"""States of a node that no kin brings back."""

WAITS = frozenset({WorkerState.OFFERED, WorkerState.READY})
"""States in which a worker waits for its peers: it is not to blame for being late."""


def on_node(flow: Flow, event: NodeEvent, at: Moment) -> list[Instruction]:
    """Something happened to a worker of a running flow."""
    node = event.node
    state = flow.apply(event)
    match event.event, state:
        case worker.Greeted(), WorkerState.OFFERING:
            return [Configure(node)]
        case worker.LinkSent(), WorkerState.LINKED:
            return [_arm_start(flow, node)]
        case worker.BecameReady(), WorkerState.READY:
            return [LinkSuccessor(node)]
        case worker.Relinked(), WorkerState.READY:
            flow.workers[node].handle(worker.StartSent())
            return [_arm_start(flow, node), Start((node,))]
        case worker.HasStarted(), WorkerState.STARTED:
            again = retire(flow, node) if node in flow.retired else ending.drain_successor(flow, node)
            return [Restarted(node), *again, *drain_if_settled(flow, event)]
        case worker.Spawned(), WorkerState.TERMINATING:
            return [Signal((node,), kill=True)]
        case worker.Faulted(), WorkerState.FAULTED:
            return _faulted(flow, event)
        case _, (WorkerState.EXITED | WorkerState.FAILED):
            return _ended(flow, event, at)
        case _:
            return []


def runs_early(flow: Flow, node: str) -> bool:
    """It has started and may have got frames, though the flow is not running yet: sources are still starting; and its
    rule is to be restarted. Whatever dies before that was never of use and fails the flow."""
    subject = flow.workers.get(node)
    begun = subject is not None and subject.state in (WorkerState.STARTED, WorkerState.FAULTED)
    wanted = restart.RESTARTED[flow.revival.rule(node).policy][Ending.FAILED]
    return begun and wanted and not flow.count(*(state for state in worker.PHASES if state is not WorkerState.STARTING))


def park(flow: Flow, event: NodeEvent) -> list[Instruction]:
    """It is restarted as soon as the flow runs."""
    if flow.workers[event.node].state is WorkerState.FAULTED:
        return [ArmNode(event.node, flow.limits.terminate_ns)]
    flow.revival.parked.append(event)
    return []


def unpark(flow: Flow, at: Moment) -> list[Instruction]:
    """The flow runs: now what died meanwhile is restarted."""
    done: list[Instruction] = []
    parked, flow.revival.parked = flow.revival.parked, []
    for event in parked:
        done += _ended(flow, event, at) if flow.state is FlowState.RUNNING else [WakePeers(event.node)]
    return done


def on_deadline(flow: Flow, node: str) -> list[Instruction]:
    """The timer of a node of a running flow."""
    subject = flow.workers[node]
    goes = node in flow.leaving or node in flow.retiring
    if goes and subject.state in (WorkerState.DRAINING, WorkerState.FINISHED):
        subject.handle(worker.SignalSent())
        flow.overdue |= flow.retiring & {node}
        return [Signal((node,), kill=False), ArmNode(node, flow.limits.terminate_ns)]
    if subject.state is WorkerState.RESTARTING:
        group = flow.revival.group_of(node)
        due = group is not None and group.nodes[0] == node and _complete(flow, group)
        return respawn(flow, group) if group is not None and due else []
    if subject.state in (WorkerState.TERMINATING, WorkerState.FAULTED):
        return [Signal((node,), kill=True)]
    if subject.state is WorkerState.SPAWNING:
        subject.handle(worker.SignalSent())
        return []
    if subject.state in worker.PHASES and subject.state not in WAITS:
        phase = worker.PHASES[subject.state]
        text = f"was not ready again within {flow.limits.start_ns / 1e9:g} s"
        subject.handle(worker.Faulted(phase, text))
        return [Signal((node,), kill=True)]
    return []


def respawn(flow: Flow, group: Group) -> list[Instruction]:
    """The next incarnation of everyone in ``group``."""
    flow.revival.groups.remove(group)
    for node in group.nodes:
        flow.workers[node].handle(worker.RespawnSent())
    return [*(_arm_start(flow, node) for node in group.nodes), Spawn(group.nodes)]


def leave(flow: Flow, node: str) -> list[Instruction]:
    """It has as long for what is there as a drain may take."""
    flow.leaving.add(node)
    flow.workers[node].handle(worker.DrainSent())
    return [Leave(node), ArmNode(node, flow.limits.drain_ns)]


def retire(flow: Flow, node: str) -> list[Instruction]:
    """A node that was removed: it works on what is there, and ends."""
    flow.retired.add(node)
    flow.workers[node].handle(worker.DrainSent())
    return [Drain((node,)), ArmNode(node, flow.limits.drain_ns)]


def _removed(flow: Flow, node: str) -> list[Instruction]:
    """However it has ended."""
    groups = [group for group in flow.revival.groups if node in group.nodes]
    for group in groups:
        group.nodes = tuple(each for each in group.nodes if each != node)
    flow.revival.groups = [group for group in flow.revival.groups if group.nodes]
    flow.forget(node)
    done: list[Instruction] = [WakePeers(node), Removed(node)]
    return done + [each for group in groups if group.nodes for each in _arm_if_complete(flow, group)]


def take_over(flow: Flow, node: str, pid: int) -> list[Instruction]:
    """The next worker of a node whose last one has left; one that stands by has been born and has said hello."""
    subject = flow.workers[node]
    subject.handle(worker.RespawnSent())
    if not pid:
        return [_arm_start(flow, node), Spawn((node,))]
    subject.handle(worker.Spawned(pid))
    subject.handle(worker.Greeted())
    return [_arm_start(flow, node), Configure(node)]


def hurry(flow: Flow) -> list[Instruction]:
    """Somebody waits for the flow to end: no more back-off."""
    done: list[Instruction] = []
    for group in tuple(flow.revival.groups):
        group.after_ns = 0
        if _complete(flow, group):
            done += respawn(flow, group)
    return done


def unsettled(flow: Flow) -> bool:
    """A node is on its way out or in again."""
    return bool(flow.leaving or flow.retiring) or flow.count(*SETTLED) != len(flow.workers)


def drain_if_settled(flow: Flow, event: NodeEvent) -> list[Instruction]:
    """The drain that waited until every node was back."""
    if flow.stop is None or flow.state is not FlowState.RUNNING or unsettled(flow):
        return []
    return ending.drain(flow, flow.stop, event)


# -- ends ----------------------------------------------------------------------------------------------------


def _faulted(flow: Flow, event: NodeEvent) -> list[Instruction]:
    """It exits by itself, or is killed if that takes too long; what follows is settled when it is gone."""
    restarted = restart.RESTARTED[flow.revival.rule(event.node).policy][Ending.FAILED]
    if not restarted and event.node not in flow.leaving | flow.retiring:
        return ending.fail(flow, flow.cause(event), event)
    return [ArmNode(event.node, flow.limits.terminate_ns)]


def _ended(flow: Flow, event: NodeEvent, at: Moment) -> list[Instruction]:
    node = event.node
    group = flow.revival.group_of(node)
    if node in flow.retiring:
        return _retiring_ended(flow, event, at)
    leaves = node in flow.leaving
    flow.leaving.discard(node)
    if group is not None:
        flow.workers[node].handle(worker.RestartPlanned())
        return [PrepareSuccessor(node), *_arm_if_complete(flow, group)]
    if leaves:
        flow.workers[node].handle(worker.RestartPlanned())
        return [PrepareSuccessor(node), Left(node)]
    how = _ending(flow, node)
    rule = flow.revival.rule(node)
    earlier = restart.within(flow.revival.deaths.get(node, ()), rule.window_ns, at.now_ns)
    verdict = restart.decide(rule, how, earlier, at.now_ns, at.chance)
    if how is Ending.FAILED:
        what = flow.cause(event).told
        flow.revival.deaths[node] = [*earlier, Death(at.now_ns, what)]
        return _failed(flow, event, verdict, earlier)
    if isinstance(verdict, restart.Again) and flow.state is FlowState.RUNNING:
        flow.revival.deaths[node] = [*earlier, Death(at.now_ns, "finished")]
        return _restart(flow, event, verdict, "it finished")
    return [WakePeers(node), *ending.end_if_empty(flow, event), *drain_if_settled(flow, event)]


def _retiring_ended(flow: Flow, event: NodeEvent, at: Moment) -> list[Instruction]:
    """A node that was removed is gone. If it died before it had worked on what was sent to it, it is restarted for
    that, as its rule says; if that is exhausted, what is left is lost, and the flow goes on."""
    node, rule = event.node, flow.revival.rule(event.node)
    earlier = restart.within(flow.revival.deaths.get(node, ()), rule.window_ns, at.now_ns)
    verdict = restart.decide(rule, _ending(flow, node), earlier, at.now_ns, at.chance)
    died = _ending(flow, node) is Ending.FAILED and node in flow.fed - flow.overdue
    if died and isinstance(verdict, restart.Again) and flow.restarts:
        what = flow.cause(event).told
        flow.revival.deaths[node] = [*earlier, Death(at.now_ns, what)]
        return _restart(flow, event, verdict, what)
    return [*_removed(flow, node), *ending.end_if_empty(flow, event), *drain_if_settled(flow, event)]


def _ending(flow: Flow, node: str) -> Ending:
    subject = flow.workers[node]
    if subject.state is WorkerState.FAILED or not subject.finished:
        return Ending.FAILED
    return Ending.STREAM_ENDED if flow.peers[node] else Ending.FINISHED


def _failed(flow: Flow, event: NodeEvent, verdict: restart.Verdict, earlier: list[Death]) -> list[Instruction]:
    node, cause = event.node, flow.cause(event)
    if isinstance(verdict, restart.GiveUp):
        if verdict.exhausted:
            told = restart.exhausted(flow.revival.rule(node), cause.told, earlier)
            cause = Failure("restarts", node, cause.phase, told)
        return [WakePeers(node), *ending.fail(flow, cause, event)]
    stuck = _not_restartable(flow, node)
    if stuck:
        cause = Failure("restarts", node, cause.phase, f"{cause.told}; it cannot be restarted: {stuck}")
        return [WakePeers(node), *ending.fail(flow, cause, event)]
    return _restart(flow, event, verdict, cause.told)


def _not_restartable(flow: Flow, node: str) -> str:
    """Why its rule does not help, or nothing."""
    consumers = flow.consumers.get(node, ())
    if consumers and all(flow.workers[each].gone for each in consumers):
        return "every node that it sends to has ended"
    for each in sorted(_living_kin(flow, node)):
        if not restart.RESTARTED[flow.revival.rule(each).policy][Ending.KIN]:
            return f"the strategy {flow.revival.strategy} restarts node {each!r} with it, which is {Policy.TEMPORARY}"
    return ""


def _living_kin(flow: Flow, node: str) -> set[str]:
    """Who has to come back with it. What has ended in good order stays so."""
    if node in flow.retiring:
        return {node}
    kin = restart.kin(flow.revival.strategy, node, flow.peers, flow.edges)
    kin -= flow.retiring
    return {each for each in kin if each == node or flow.workers[each].state not in ENDED_WELL}


def _restart(flow: Flow, event: NodeEvent, verdict: restart.Again, why: str) -> list[Instruction]:
    node = event.node
    flow.workers[node].handle(worker.RestartPlanned())
    hurried = flow.stop is not None or flow.drains_well
    group = _gather(flow, node, 0 if hurried else verdict.after_ns)
    living = tuple(each for each in group.nodes if _has_process(flow, each))
    for each in living:
        flow.workers[each].handle(worker.SignalSent())
    kin = tuple(each for each in group.nodes if each != node)
    done: list[Instruction] = [PrepareSuccessor(node), Restarting(node, group.after_ns, verdict.attempt, why, kin)]
    if living:
        done += [Signal(living, kill=False), *(ArmNode(each, flow.limits.terminate_ns) for each in living)]
    return [*done, *_arm_if_complete(flow, group)]


def _has_process(flow: Flow, node: str) -> bool:
    return flow.workers[node].state not in (WorkerState.RESTARTING, WorkerState.TERMINATING)


def _gather(flow: Flow, node: str, after_ns: int) -> Group:
    """The group of ``node``, with all groups that it overlaps."""
    nodes = _living_kin(flow, node)
    apart = []
    for group in flow.revival.groups:
        if nodes.isdisjoint(group.nodes):
            apart.append(group)
        else:
            nodes |= set(group.nodes)
            after_ns = max(after_ns, group.after_ns)
    made = Group((node, *sorted(nodes - {node})), after_ns)
    flow.revival.groups = [*apart, made]
    return made


def _complete(flow: Flow, group: Group) -> bool:
    return all(flow.workers[each].state is WorkerState.RESTARTING for each in group.nodes)


def _arm_if_complete(flow: Flow, group: Group) -> list[Instruction]:
    """All are gone: the back-off begins."""
    if not _complete(flow, group):
        return []
    if not group.after_ns:
        return respawn(flow, group)
    return [ArmNode(group.nodes[0], group.after_ns)]


def _arm_start(flow: Flow, node: str) -> ArmNode:
    return ArmNode(node, flow.limits.start_ns)
