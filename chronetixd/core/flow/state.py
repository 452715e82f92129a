"""What one flow knows: its nodes and routes, their workers, its state, its deadline, and the cause of its failure.

Handlers change it; nothing here decides what follows from a change. The only events that it takes are those of its
workers (:meth:`FlowMachine.apply`). A handler that makes it enter a state passes the event that caused this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from chronetix.protocol import cbor
from chronetixd.core import worker
from chronetixd.core.flow_messages import (
    ENDED,
    ArmDeadline,
    Deadline,
    DisarmDeadline,
    EnterState,
    FlowEvent,
    FlowFailure,
    FlowState,
    Instruction,
    Limits,
    StopRequested,
    WorkerChanged,
)
from chronetixd.core.levels import sources, start_waves
from chronetixd.core.machine import History, IllegalEvent
from chronetixd.core.packed import PackedFlow, PackedGroup, PackedWorker
from chronetixd.core.restart import CountedExit, Rule, Strategy
from chronetixd.core.worker import GONE, Tally, WorkerMachine, WorkerState

_NEVER = Rule()


@dataclass(slots=True)
class RestartGroup:
    """Nodes that are restarted together, ``after_ns`` after the last of their workers is gone. The first node leads:
    its timer is the group's."""

    nodes: tuple[str, ...]
    after_ns: int


class RestartState:
    """The exits of a flow's nodes that count for restarts, the groups that wait to be restarted, and the rules."""

    __slots__ = ("counted_exits", "groups", "parked", "rules", "strategy")

    def __init__(self, rules: Mapping[str, Rule], strategy: Strategy) -> None:
        self.rules = rules
        self.strategy = strategy
        self.counted_exits: dict[str, list[CountedExit]] = {}
        self.groups: list[RestartGroup] = []
        self.parked: list[WorkerChanged] = []
        """Exits of nodes that had started already while the last sources of the flow were still starting."""

    def rule(self, node: str) -> Rule:
        """Return the rule of ``node``; the rule ``temporary`` when it has none."""
        return self.rules.get(node, _NEVER)

    def group_of(self, node: str) -> RestartGroup | None:
        """Return the group in which ``node`` waits to be restarted, or None."""
        return next((group for group in self.groups if node in group.nodes), None)

    def packed(self) -> dict[str, Any]:
        """Return the fields of :class:`PackedFlow` that hold this state."""
        return {
            "deaths": {node: list(deaths) for node, deaths in self.counted_exits.items()},
            "groups": [PackedGroup(nodes=group.nodes, after_ns=group.after_ns) for group in self.groups],
            "parked": [
                (each.node, each.event.exit) for each in self.parked if isinstance(each.event, worker.ProcessExited)
            ],
        }

    def unpack(self, packed: PackedFlow) -> None:
        """Restore the state from ``packed``."""
        self.counted_exits = {node: list(deaths) for node, deaths in packed.deaths.items()}
        self.groups = [RestartGroup(group.nodes, group.after_ns) for group in packed.groups]
        self.parked = [WorkerChanged(node, worker.ProcessExited(ended)) for node, ended in packed.parked]


class FlowMachine:
    """The state of one flow. ``failure`` is the first cause of its failure, ``killed`` are the nodes that had to be
    killed to end it."""

    __slots__ = (
        "consumers",
        "deadline",
        "edges",
        "failure",
        "fed",
        "history",
        "killed",
        "leaving",
        "limits",
        "name",
        "overdue",
        "peers",
        "restart_state",
        "retired",
        "retiring",
        "sources",
        "state",
        "stop",
        "tally",
        "waves",
        "workers",
    )

    def __init__(
        self,
        name: str,
        nodes: tuple[str, ...],
        edges: tuple[tuple[str, str], ...],
        limits: Limits | None = None,
        rules: Mapping[str, Rule] | None = None,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
    ) -> None:
        """Make a submitted flow.

        ``edges`` are the data routes as (from, to). ``rules`` say when a node is restarted; a node without a rule never
        is. Raises ValueError when the routes form a cycle or there is no node.
        """
        if not nodes:
            raise ValueError("a flow needs at least one node")
        self.name = name
        self.limits = limits or Limits()
        self.edges = edges
        self.restart_state = RestartState(rules or {}, strategy)
        self.waves = start_waves(nodes, edges)
        self.sources = sources(nodes, edges)
        self.peers: dict[str, set[str]] = {}
        self.consumers: dict[str, set[str]] = {}
        self._join(nodes, edges)
        self.state = FlowState.SUBMITTED
        self.workers: dict[str, WorkerMachine] = {}
        self.tally = Tally()
        self.failure: FlowFailure | None = None
        self.killed: list[str] = []
        self.leaving: set[str] = set()
        """Nodes whose worker was told to leave and has not left yet."""
        self.retiring: set[str] = set()
        """Removed nodes whose worker is not gone yet."""
        self.fed: set[str] = set()
        """Nodes of ``retiring`` that have inputs: frames that were sent to them are to be worked on even if their
        worker dies."""
        self.retired: set[str] = set()
        """Nodes of ``retiring`` whose worker was told to end."""
        self.overdue: set[str] = set()
        """Nodes of ``retiring`` whose worker did not end in time."""
        self.deadline: Deadline | None = None
        self.history = History()
        self.stop: StopRequested | None = None
        """A requested drain that waits until every node has started, or has started again."""

    @property
    def ended(self) -> bool:
        """Whether the flow is stopped or failed: no worker of it is left."""
        return self.state in ENDED

    @property
    def drains_in_order(self) -> bool:
        """Whether the flow was told to drain, has not failed, and has time left: a node that fails is still
        restarted."""
        return self.state is FlowState.DRAINING and self.failure is None and self.deadline is Deadline.DRAIN

    @property
    def restarts(self) -> bool:
        """Whether a node that fails is restarted as its rule says."""
        return self.state is FlowState.RUNNING or self.drains_in_order

    def count(self, *states: WorkerState) -> int:
        """Return how many workers are in one of ``states``."""
        return self.tally.count(states)

    @property
    def all_gone(self) -> bool:
        """Whether no worker of the flow has a process."""
        return self.count(*GONE) == len(self.workers)

    def cause(self, event: WorkerChanged) -> FlowFailure:
        """Return why the worker that ``event`` is about has failed."""
        subject = self.workers[event.node]
        if subject.fault is not None:
            fault = subject.fault
            return FlowFailure("fault", event.node, fault.phase, fault.message, fault.consequence)
        if isinstance(event.event, worker.ProcessNotSpawned):
            return FlowFailure("spawn", event.node, "spawn", event.event.message)
        early = "" if subject.finished or (subject.exit and subject.exit.signal) else " before it had finished"
        return FlowFailure("exit", event.node, "", f"{subject.exit}{early}")

    def illegal(self, event: FlowEvent) -> IllegalEvent:
        """Return the error for an ``event`` that the present state forbids."""
        return IllegalEvent(f"flow {self.name!r}", self.state, type(event).__name__, self.history.entries())

    # -- for handlers --------------------------------------------------------------------------------------

    def apply(self, event: WorkerChanged) -> WorkerState:
        """Apply ``event`` to its worker and return the worker's new state. Raises IllegalEvent, and then nothing has
        changed."""
        subject = self.workers.get(event.node)
        if subject is None:
            raise self.illegal(event)
        return subject.handle(event.event)

    def enter(self, state: FlowState, event: FlowEvent) -> list[Instruction]:
        """Enter ``state`` because of ``event``, and return the instruction that announces it."""
        self.state = state
        self.history.add(type(event).__name__, state)
        return [EnterState(state)]

    def arm(self, deadline: Deadline, after_ns: int) -> ArmDeadline:
        """Replace the flow's deadline, and return the instruction that arms it."""
        self.deadline = deadline
        return ArmDeadline(deadline, after_ns)

    def disarm(self) -> list[Instruction]:
        """Clear the flow's deadline, and return the instruction that disarms it; none when there was no deadline."""
        if self.deadline is None:
            return []
        self.deadline = None
        return [DisarmDeadline()]

    def note_failure(self, failure: FlowFailure) -> None:
        """Keep ``failure`` as the cause, unless a cause is known already. A known cause that is a mere consequence is
        replaced by one that is not."""
        known = self.failure
        if known is None or (known.consequence and not failure.consequence):
            self.failure = failure

    def create_workers(self, nodes: Iterable[str]) -> None:
        """Replace all workers by new ones, one for each of ``nodes``."""
        self.tally = Tally()
        self.workers = {node: WorkerMachine(node, self.tally) for node in nodes}

    def revise(
        self,
        nodes: tuple[str, ...],
        edges: tuple[tuple[str, str], ...],
        rules: Mapping[str, Rule],
        strategy: Strategy,
    ) -> None:
        """Replace the nodes, the data routes and the rules of the flow. An added node waits for a SuccessorGiven event.
        The worker of a removed node ends, and then the node is forgotten.

        This is no event: it changes what the flow consists of, and not its state.
        """
        self.retiring = {node for node in self.peers if node not in nodes}
        self.fed = {target for _, target in self.edges} & self.retiring
        former = {node: self.restart_state.rule(node) for node in self.retiring}
        self.restart_state.rules, self.restart_state.strategy = {**rules, **former}, strategy
        self.edges = edges
        self.waves = start_waves(nodes, edges)
        self.sources = sources(nodes, edges)
        for node in nodes:
            if node not in self.workers:
                self.workers[node] = WorkerMachine(node, self.tally)
                self.workers[node].handle(worker.AddedWhileRunning())
        self._join((*nodes, *self.retiring), edges)
        for node in tuple(self.retiring):
            if self.workers[node].gone:
                self.forget(node)

    def _join(self, nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> None:
        """Note for each node its peers (the nodes at the other ends of its data routes) and its consumers."""
        self.peers = {node: set() for node in nodes}
        self.consumers = {}
        for source, target in edges:
            self.peers[source].add(target)
            self.peers[target].add(source)
            self.consumers.setdefault(source, set()).add(target)

    def forget(self, node: str) -> None:
        """Forget a removed node whose worker is gone."""
        for nodes in (self.retiring, self.fed, self.retired, self.overdue):
            nodes.discard(node)
        self.workers.pop(node).forget()
        del self.peers[node]

    # -- handed over to the next image of the daemon -------------------------------------------------------

    def packed(self) -> PackedFlow:
        """Return the whole state for the next image of the daemon."""
        return PackedFlow(
            state=self.state,
            history=list(self.history.entries()),
            limits=self.limits,
            workers={node: _packed(subject) for node, subject in self.workers.items()},
            failure=self.failure,
            killed=list(self.killed),
            deadline=self.deadline,
            stop=self.stop,
            **self.restart_state.packed(),
        )

    def unpack(self, packed: PackedFlow) -> None:
        """Restore the state from ``packed``. Raises ValueError when ``packed`` has other nodes."""
        if packed.workers and packed.workers.keys() != self.peers.keys():
            raise ValueError(f"flow {self.name!r} has nodes {sorted(self.peers)}, not {sorted(packed.workers)}")
        self.state, self.history, self.limits = packed.state, History(packed.history), packed.limits
        self.create_workers(packed.workers)
        for node, each in packed.workers.items():
            _unpack(self.workers[node], each)
        self.failure, self.killed = packed.failure, list(packed.killed)
        self.deadline, self.stop = packed.deadline, packed.stop
        self.restart_state.unpack(packed)


def _packed(subject: WorkerMachine) -> PackedWorker:
    return PackedWorker(
        state=subject.state,
        history=list(subject.history.entries()),
        incarnation=subject.incarnation,
        pid=subject.pid,
        exit=subject.exit,
        fault=subject.fault,
        finished=subject.finished,
        result=cbor.dumps(subject.result),
    )


def _unpack(subject: WorkerMachine, packed: PackedWorker) -> None:
    subject.unpack(packed.state, packed.history)
    subject.incarnation, subject.pid = packed.incarnation, packed.pid
    subject.exit, subject.fault = packed.exit, packed.fault
    subject.finished, subject.result = packed.finished, cbor.loads(packed.result)
