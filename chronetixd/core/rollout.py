"""A roll-out: replaces workers of a running flow. The steps as a pure state machine beside that of the flow.

 preparing ─ all successors ready ─▶ settling ─ no node restarts ─▶ committing ─ written, still none ─▶ switching
     └── not ready in time, or failed ──────┴─────────────────────────┴──▶ rolled-back: no change        │
                           done ◀─ taking-over ◀─ the last worker left ─ leaving ◀─ all outputs switched ┘

Rules: until ``ReviseFlow`` nothing that runs is changed, and a commit that was written is revoked if the roll-out is
rolled back. After ``ReviseFlow`` there is no way back: a node that fails from then on is restarted as the new flow
says. First, added nodes start, and nodes that stay switch their outputs to the new routes. Then workers leave, or end
if their node was removed, each after the nodes that send to it, so that frames from old workers are worked on by old
workers. Then all successors take over at once, sinks first. A node that was restarted meanwhile counts as left: nodes
behind it do not wait for the nodes before it, because those may be waiting for it. The machine decides by the present
state of the flow and not by what has happened: the calling code reports ``FlowObserved`` after every change. The table
is total.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum

from chronetixd.core.machine import History, IllegalEvent
from chronetixd.core.rollout_messages import (
    EVENTS,
    ArmReadyDeadline,
    DisarmReadyDeadline,
    DismissSuccessor,
    FinishRollout,
    FlowObserved,
    FlowView,
    NodeView,
    ReplaceWorker,
    RetireNode,
    ReviseFlow,
    RevokeCommit,
    RollbackRequested,
    RolloutEvent,
    RolloutInstruction,
    StandBy,
    StartSuccessor,
    SuccessorLost,
    SuccessorReady,
    WriteCommit,
)
from chronetixd.core.worker import GONE, WorkerState


class RolloutStep(StrEnum):
    """How far a roll-out has come."""

    PLANNED = "planned"
    PREPARING = "preparing"
    SETTLING = "settling"
    COMMITTING = "committing"
    SWITCHING = "switching"
    LEAVING = "leaving"
    TAKING_OVER = "taking-over"
    DONE = "done"
    ROLLED_BACK = "rolled-back"
    ENDED = "ended"
    """The flow has ended before the roll-out was done."""


OVER = frozenset({RolloutStep.DONE, RolloutStep.ROLLED_BACK, RolloutStep.ENDED})

COMMITTED = frozenset({RolloutStep.SWITCHING, RolloutStep.LEAVING, RolloutStep.TAKING_OVER})
"""Steps in which a roll-out is not done and can no longer be rolled back."""

RUNNING_OR_DONE = frozenset({WorkerState.STARTED, WorkerState.FINISHED}) | GONE
"""States of a node that a roll-out does not wait for."""

ENDED_WELL = GONE | {WorkerState.FINISHED}


class RolloutMachine:
    """Replaces the workers of ``nodes``, and ends those of nodes that are ``removed``. ``nodes`` is ordered: a node
    comes after the nodes that send to it, its ``senders``. ``added`` nodes are started. ``asked`` are the nodes whose
    worker was told to leave or end. ``skipped`` are nodes that need not be replaced any more: they have ended, or were
    restarted meanwhile."""

    __slots__ = (
        "added",
        "asked",
        "history",
        "leaving",
        "nodes",
        "old_incarnations",
        "ready_ns",
        "removed",
        "rerouting",
        "senders",
        "skipped",
        "standing_by",
        "step",
        "successors_due",
        "waiting",
        "why",
        "written",
    )

    def __init__(
        self,
        nodes: tuple[str, ...],
        ready_ns: int,
        senders: Mapping[str, Collection[str]],
        added: tuple[str, ...] = (),
        removed: frozenset[str] = frozenset(),
    ) -> None:
        self.nodes = nodes
        self.senders = senders
        self.added = added
        self.removed = removed
        self.ready_ns = ready_ns
        self.step = RolloutStep.PLANNED
        self.waiting = {*nodes, *added} - removed
        self.rerouting: list[str] = []
        self.standing_by: set[str] = set()
        self.old_incarnations: dict[str, int] = {}
        """The incarnation of each node at the time of the commit."""
        self.asked: list[str] = []
        self.leaving: list[str] = []
        """Nodes whose worker was told to leave or end and has not done so."""
        self.skipped: set[str] = set()
        self.successors_due: set[str] = set()
        """Nodes whose successor was told to take over and has not started."""
        self.written = False
        """Whether the commit is in the journal."""
        self.why = ""
        self.history = History()

    @property
    def over(self) -> bool:
        """Whether the roll-out has reached a final step."""
        return self.step in OVER

    @property
    def waits_for(self) -> list[str]:
        """The nodes that the present step waits for."""
        if self.step is RolloutStep.PREPARING:
            return [node for node in (*self.nodes, *self.added) if node in self.waiting]
        if self.step is RolloutStep.SWITCHING:
            return self.rerouting
        if self.step is RolloutStep.LEAVING:
            return self.leaving
        return (
            [node for node in (*self.nodes, *self.added) if node in self.successors_due]
            if self.step is RolloutStep.TAKING_OVER
            else []
        )

    def handle(self, event: RolloutEvent) -> list[RolloutInstruction]:
        """Return the instructions that follow ``event``. Raises IllegalEvent, and then nothing has changed."""
        handler = TABLE[self.step][EVENTS.index(type(event))]
        if handler is None:
            raise IllegalEvent("roll-out", self.step, type(event).__name__, self.history.entries())
        before = self.step
        done = handler(self, event)
        if self.step is not before:
            self.history.add(type(event).__name__, self.step)
        return done

    # -- before anything is changed ------------------------------------------------------------------------

    def _prepare(self, _event: RolloutEvent) -> list[RolloutInstruction]:
        new = tuple(node for node in (*self.nodes, *self.added) if node not in self.removed)
        self.step = RolloutStep.PREPARING if new else RolloutStep.SETTLING
        return [StandBy(new), ArmReadyDeadline(self.ready_ns)] if new else [ArmReadyDeadline(self.ready_ns)]

    def _successor_ready(self, event: RolloutEvent) -> list[RolloutInstruction]:
        assert isinstance(event, SuccessorReady)
        self.waiting.discard(event.node)
        self.standing_by.add(event.node)
        if not self.waiting:
            self.step = RolloutStep.SETTLING
        return []

    def _successor_lost_early(self, event: RolloutEvent) -> list[RolloutInstruction]:
        assert isinstance(event, SuccessorLost)
        self.waiting.discard(event.node)
        self.standing_by.discard(event.node)
        return self._roll_back(f"the new worker of node {event.node!r} {event.why}")

    def _ready_deadline_passed(self, _event: RolloutEvent) -> list[RolloutInstruction]:
        if self.step is RolloutStep.COMMITTING and not self.written:
            return self._roll_back(f"it was not written down within {self.ready_ns / 1e9:g} s")
        if self.step is not RolloutStep.PREPARING:
            return self._roll_back(f"nodes were restarted all the time for {self.ready_ns / 1e9:g} s")
        late = ", ".join(repr(node) for node in self.waits_for)
        return self._roll_back(f"the new worker of node {late} was not ready within {self.ready_ns / 1e9:g} s")

    def _rollback_requested(self, event: RolloutEvent) -> list[RolloutInstruction]:
        assert isinstance(event, RollbackRequested)
        return self._roll_back(event.why)

    def _roll_back(self, why: str) -> list[RolloutInstruction]:
        revoked = [RevokeCommit()] if self.step is RolloutStep.COMMITTING else []
        self.step, self.why = RolloutStep.ROLLED_BACK, why
        return [DisarmReadyDeadline(), *revoked, *self._dismiss_all(), FinishRollout(why)]

    def _observe_early(self, event: RolloutEvent) -> list[RolloutInstruction]:
        assert isinstance(event, FlowObserved)
        return [] if event.view.runs else self._end()

    def _settle(self, event: RolloutEvent) -> list[RolloutInstruction]:
        assert isinstance(event, FlowObserved)
        if not event.view.runs:
            return self._end()
        if not self._nobody_restarts(event.view):
            return []
        if event.view.obstacle:
            return self._roll_back(event.view.obstacle)
        self.step = RolloutStep.COMMITTING
        return [WriteCommit()]

    @staticmethod
    def _nobody_restarts(view: FlowView) -> bool:
        """Return whether no node is being restarted."""
        return all(seen.state in RUNNING_OR_DONE for seen in view.nodes.values())

    def _commit_written(self, _event: RolloutEvent) -> list[RolloutInstruction]:
        self.written = True
        return []

    def _commit(self, event: RolloutEvent) -> list[RolloutInstruction]:
        """Revise the flow once the commit is written. If a node has died meanwhile, wait until it has been
        restarted."""
        assert isinstance(event, FlowObserved)
        if not event.view.runs:
            return self._end()
        if not self.written or not self._nobody_restarts(event.view):
            return []
        if event.view.obstacle:
            return self._roll_back(event.view.obstacle)
        self.step = RolloutStep.SWITCHING
        self.old_incarnations = {
            node: event.view.nodes[node].incarnation for node in self.nodes if node in event.view.nodes
        }
        self.old_incarnations |= dict.fromkeys(self.added, -1)
        self.successors_due = set(self.added)
        return [DisarmReadyDeadline(), ReviseFlow(), *self._start_successors(self.added)]

    # -- no way back ---------------------------------------------------------------------------------------

    def _successor_lost(self, event: RolloutEvent) -> list[RolloutInstruction]:
        """Forget the successor: another one is spawned when the node has to be replaced."""
        assert isinstance(event, SuccessorLost)
        self.standing_by.discard(event.node)
        return []

    def _switch(self, event: RolloutEvent) -> list[RolloutInstruction]:
        """Wait until nodes that stay send by the new routes, so that no more frames come by the old ones."""
        assert isinstance(event, FlowObserved)
        self.rerouting = list(event.view.rerouting)
        if not event.view.runs:
            return self._end()
        if self.rerouting:
            return self._replace_next(event.view, all_switched=False)
        self.step = RolloutStep.LEAVING
        return self._replace(event)

    def _replace(self, event: RolloutEvent) -> list[RolloutInstruction]:
        """Tell the next workers to leave. When the last one has left, let all successors take over."""
        assert isinstance(event, FlowObserved)
        if not event.view.runs:
            return self._end()
        done = self._replace_next(event.view, all_switched=True)
        left = all(self._has_left(node, event.view) for node in self.nodes)
        return done + self._take_over() if left else done

    def _replace_next(self, view: FlowView, *, all_switched: bool) -> list[RolloutInstruction]:
        """Tell those workers to leave or end whose senders have left. While not all nodes have switched their outputs,
        only nodes whose senders are all among ``nodes`` are considered: any other sender may still send to them by an
        old route."""
        done: list[RolloutInstruction] = []
        for node in self.nodes:
            seen = view.nodes.get(node)
            if seen is not None and node not in self.skipped | self.removed and self._replaced_already(node, seen):
                self.skipped.add(node)
                done += self._dismiss(node)
        for node in self.nodes:
            if self._has_left(node, view) or node in self.asked or view.nodes[node].state is not WorkerState.STARTED:
                continue
            senders = self.senders.get(node, ())
            known = all_switched or (bool(senders) and all(each in self.nodes for each in senders))
            if known and all(self._has_left(each, view) for each in senders if each in self.nodes):
                self.asked.append(node)
                done.append(RetireNode(node) if node in self.removed else ReplaceWorker(node))
        self.leaving = [node for node in self.asked if not self._has_left(node, view)]
        return done

    def _replaced_already(self, node: str, seen: NodeView) -> bool:
        """Return whether the worker of ``node`` is not the one of before the commit any more, or has ended and will not
        be restarted."""
        return (
            seen.incarnation > self.old_incarnations[node]
            or seen.grouped
            or seen.state in ENDED_WELL - self._states_of_leaving(node)
        )

    def _has_left(self, node: str, view: FlowView) -> bool:
        """Return whether no more frames come from the worker that ``node`` had at the commit."""
        seen = view.nodes.get(node)
        if seen is None or node in self.skipped:
            return True
        return node in self.asked and node not in self.removed and seen.state is WorkerState.RESTARTING

    def _states_of_leaving(self, node: str) -> frozenset[WorkerState]:
        """Return the ended states that a worker passes through because it was told to leave; none for a node that was
        not told."""
        return ENDED_WELL if node in self.asked else frozenset()

    def _take_over(self) -> list[RolloutInstruction]:
        self.step = RolloutStep.TAKING_OVER
        left = {node for node in self.asked if node not in self.skipped | self.removed}
        self.successors_due |= left
        return self._start_successors(node for node in reversed(self.nodes) if node in left)

    def _start_successors(self, nodes: Iterable[str]) -> list[RolloutInstruction]:
        """Order the successors of ``nodes`` to take over."""
        done: list[RolloutInstruction] = []
        for node in nodes:
            done.append(StartSuccessor(node, node not in self.standing_by))
            self.standing_by.discard(node)
        return done

    def _await_successors(self, event: RolloutEvent) -> list[RolloutInstruction]:
        assert isinstance(event, FlowObserved)
        if not event.view.runs:
            return self._end()
        nodes = event.view.nodes
        self.successors_due -= {
            node
            for node in self.successors_due
            if nodes[node].state in RUNNING_OR_DONE and nodes[node].incarnation > self.old_incarnations[node]
        }
        if self.successors_due or not event.view.clean:
            return []
        self.step = RolloutStep.DONE
        return [FinishRollout()]

    def _end(self) -> list[RolloutInstruction]:
        committed = self.step in COMMITTED
        self.step, self.why = RolloutStep.ENDED, "the flow has ended before"
        return [*([] if committed else [DisarmReadyDeadline()]), *self._dismiss_all(), FinishRollout(self.why)]

    def _dismiss(self, node: str) -> list[RolloutInstruction]:
        known = node in self.standing_by or node in self.waiting
        self.standing_by.discard(node)
        self.waiting.discard(node)
        return [DismissSuccessor(node)] if known else []

    def _dismiss_all(self) -> list[RolloutInstruction]:
        return [each for node in (*self.nodes, *self.added) for each in self._dismiss(node)]

    def _ignore(self, _event: RolloutEvent) -> list[RolloutInstruction]:
        return []


Handler = Callable[[RolloutMachine, RolloutEvent], list[RolloutInstruction]]
_R = RolloutMachine
_: None = None
# fmt: off
_BEGIN, _READY, _LOST, _LOST_EARLY = _R._prepare, _R._successor_ready, _R._successor_lost, _R._successor_lost_early
_LATE, _BACK, _WROTE, _IGN = _R._ready_deadline_passed, _R._rollback_requested, _R._commit_written, _R._ignore
_EARLY, _SETTLE, _COMMIT, _SWITCH = _R._observe_early, _R._settle, _R._commit, _R._switch
_REPLACE, _AWAIT = _R._replace, _R._await_successors
TABLE: dict[RolloutStep, tuple[Handler | None, ...]] = {
    # Columns: BeginRequested, SuccessorReady, SuccessorLost, FlowObserved, ReadyDeadlinePassed, RollbackRequested,
    # CommitWritten
    RolloutStep.PLANNED:     (_BEGIN, _,      _,           _IGN,     _,     _,     _),
    RolloutStep.PREPARING:   (_,      _READY, _LOST_EARLY, _EARLY,   _LATE, _BACK, _),
    RolloutStep.SETTLING:    (_,      _,      _LOST_EARLY, _SETTLE,  _LATE, _BACK, _),
    RolloutStep.COMMITTING:  (_,      _,      _LOST_EARLY, _COMMIT,  _LATE, _BACK, _WROTE),
    RolloutStep.SWITCHING:   (_,      _,      _LOST,       _SWITCH,  _,     _,     _),
    RolloutStep.LEAVING:     (_,      _,      _LOST,       _REPLACE, _,     _,     _),
    RolloutStep.TAKING_OVER: (_,      _,      _LOST,       _AWAIT,   _,     _,     _),
    RolloutStep.DONE:        (_,      _,      _IGN,        _IGN,     _,     _,     _),
    RolloutStep.ROLLED_BACK: (_,      _,      _IGN,        _IGN,     _,     _,     _IGN),
    RolloutStep.ENDED:       (_,      _,      _IGN,        _IGN,     _,     _,     _IGN),
}
# fmt: on
