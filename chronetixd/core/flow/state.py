"""What one flow knows: its nodes and routes, their workers, its state, its deadline, and why it fails.

Handlers change it; nothing here decides what follows from that. It takes no event but for a worker's own
(:meth:`Flow.apply`), and whoever is told to enter a state is told why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from chronetix.protocol import cbor
from chronetixd.core import worker
from chronetixd.core.flow_messages import (
    ENDED,
    Arm,
    Deadline,
    Disarm,
    Enter,
    Failure,
    FlowEvent,
    FlowState,
    Instruction,
    Limits,
    NodeEvent,
    StopRequested,
)
from chronetixd.core.levels import sources, start_waves
from chronetixd.core.machine import History, IllegalEvent
from chronetixd.core.packed import PackedFlow, PackedGroup, PackedWorker
from chronetixd.core.restart import Death, Rule, Strategy
from chronetixd.core.worker import GONE, Tally, Worker, WorkerState

_NEVER = Rule()


@dataclass(slots=True)
class Group:
    """Nodes that come back together, ``after_ns`` from when the last of them is gone. The first one leads."""

    nodes: tuple[str, ...]
    after_ns: int


class Revival:
    """What a flow remembers of its nodes' deaths."""

    __slots__ = ("deaths", "groups", "parked", "rules", "strategy")

    def __init__(self, rules: Mapping[str, Rule], strategy: Strategy) -> None:
        self.rules = rules
        self.strategy = strategy
        self.deaths: dict[str, list[Death]] = {}
        self.groups: list[Group] = []
        self.parked: list[NodeEvent] = []
        """Exits of nodes that ran already while the last sources were still starting."""

    def rule(self, node: str) -> Rule:
        """Its rule; ``temporary`` when it has none."""
        return self.rules.get(node, _NEVER)

    def group_of(self, node: str) -> Group | None:
        """The group that it waits in."""
        return next((group for group in self.groups if node in group.nodes), None)

    def packed(self) -> dict[str, Any]:
        """What :class:`PackedFlow` has of it."""
        return {
            "deaths": {node: list(deaths) for node, deaths in self.deaths.items()},
            "groups": [PackedGroup(nodes=group.nodes, after_ns=group.after_ns) for group in self.groups],
            "parked": [(each.node, each.event.exit) for each in self.parked if isinstance(each.event, worker.Exited)],
        }

    def unpack(self, packed: PackedFlow) -> None:
        """The inverse."""
        self.deaths = {node: list(deaths) for node, deaths in packed.deaths.items()}
        self.groups = [Group(group.nodes, group.after_ns) for group in packed.groups]
        self.parked = [NodeEvent(node, worker.Exited(ended)) for node, ended in packed.parked]


class Flow:
    """One flow. ``failure`` is the first cause, ``killed`` the nodes that had to be killed to end it."""

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
        "retired",
        "retiring",
        "revival",
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
        """``edges`` are the data routes as (from, to); ``rules`` say of nodes when they are restarted, by default
        never. Raises ValueError when the routes form a cycle or no node is there."""
        if not nodes:
            raise ValueError("a flow needs at least one node")
        self.name = name
        self.limits = limits or Limits()
        self.edges = edges
        self.revival = Revival(rules or {}, strategy)
        self.waves = start_waves(nodes, edges)
        self.sources = sources(nodes, edges)
        self.peers: dict[str, set[str]] = {}
        self.consumers: dict[str, set[str]] = {}
        self._join(nodes, edges)
        self.state = FlowState.SUBMITTED
        self.workers: dict[str, Worker] = {}
        self.tally = Tally()
        self.failure: Failure | None = None
        self.killed: list[str] = []
        self.leaving: set[str] = set()
        """Nodes whose worker was told to leave its place to another one, and has not yet."""
        self.retiring: set[str] = set()
        """Nodes that the flow has no more, and whose worker is not gone yet."""
        self.fed: set[str] = set()
        """Of those the ones with inputs: what was sent to them they are to work on, whatever dies."""
        self.retired: set[str] = set()
        """Of those the ones that were told to end."""
        self.overdue: set[str] = set()
        """Of those the ones that did not end in time."""
        self.deadline: Deadline | None = None
        self.history = History()
        self.stop: StopRequested | None = None
        """A drain that was asked for and waits until every node has started, or started again."""

    @property
    def ended(self) -> bool:
        """Stopped or failed: nothing of it is left."""
        return self.state in ENDED

    @property
    def drains_well(self) -> bool:
        """It was told to drain, nothing has failed for good, and there is time left: what dies is restarted."""
        return self.state is FlowState.DRAINING and self.failure is None and self.deadline is Deadline.DRAIN

    @property
    def restarts(self) -> bool:
        """What dies is restarted, as its rule says."""
        return self.state is FlowState.RUNNING or self.drains_well

    def count(self, *states: WorkerState) -> int:
        """How many workers are in one of ``states``."""
        return self.tally.count(states)

    @property
    def all_gone(self) -> bool:
        """None of its workers has a process (any more)."""
        return self.count(*GONE) == len(self.workers)

    def cause(self, event: NodeEvent) -> Failure:
        """Why its worker has failed."""
        subject = self.workers[event.node]
        if subject.fault is not None:
            fault = subject.fault
            return Failure("fault", event.node, fault.phase, fault.message, fault.consequence)
        if isinstance(event.event, worker.SpawnFailed):
            return Failure("spawn", event.node, "spawn", event.event.message)
        early = "" if subject.finished or (subject.exit and subject.exit.signal) else " before it had finished"
        return Failure("exit", event.node, "", f"{subject.exit}{early}")

    def illegal(self, event: FlowEvent) -> IllegalEvent:
        """That ``event`` cannot be now."""
        return IllegalEvent(f"flow {self.name!r}", self.state, type(event).__name__, self.history.entries())

    # -- for handlers --------------------------------------------------------------------------------------

    def apply(self, event: NodeEvent) -> WorkerState:
        """The state of its worker after ``event``. Raises IllegalEvent, and then nothing has changed."""
        subject = self.workers.get(event.node)
        if subject is None:
            raise self.illegal(event)
        return subject.handle(event.event)

    def enter(self, state: FlowState, event: FlowEvent) -> list[Instruction]:
        """It is in ``state``, because of ``event``."""
        self.state = state
        self.history.add(type(event).__name__, state)
        return [Enter(state)]

    def arm(self, deadline: Deadline, after_ns: int) -> Arm:
        """From now on this is its deadline."""
        self.deadline = deadline
        return Arm(deadline, after_ns)

    def disarm(self) -> list[Instruction]:
        """It has no deadline, if it had one."""
        if self.deadline is None:
            return []
        self.deadline = None
        return [Disarm()]

    def blame(self, failure: Failure) -> None:
        """It fails because of ``failure``, unless an earlier cause is known that is not a mere consequence."""
        known = self.failure
        if known is None or (known.consequence and not failure.consequence):
            self.failure = failure

    def staff(self, nodes: Iterable[str]) -> None:
        """A worker for each, all of them new."""
        self.tally = Tally()
        self.workers = {node: Worker(node, self.tally) for node in nodes}

    def revise(
        self,
        nodes: tuple[str, ...],
        edges: tuple[tuple[str, str], ...],
        rules: Mapping[str, Rule],
        strategy: Strategy,
    ) -> None:
        """From now on these are the nodes, the data routes, and the rules that say when nodes are restarted. Added
        nodes wait for a TakeOver, removed ones end and then are gone without a trace.

        No event: it changes what the flow is, and not where it is in its life.
        """
        self.retiring = {node for node in self.peers if node not in nodes}
        self.fed = {target for _, target in self.edges} & self.retiring
        former = {node: self.revival.rule(node) for node in self.retiring}
        self.revival.rules, self.revival.strategy = {**rules, **former}, strategy
        self.edges = edges
        self.waves = start_waves(nodes, edges)
        self.sources = sources(nodes, edges)
        for node in nodes:
            if node not in self.workers:
                self.workers[node] = Worker(node, self.tally)
                self.workers[node].handle(worker.Awaited())
        self._join((*nodes, *self.retiring), edges)
        for node in tuple(self.retiring):
            if self.workers[node].gone:
                self.forget(node)

    def _join(self, nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> None:
        """Who has a data route with whom, and who sends to whom."""
        self.peers = {node: set() for node in nodes}
        self.consumers = {}
        for source, target in edges:
            self.peers[source].add(target)
            self.peers[target].add(source)
            self.consumers.setdefault(source, set()).add(target)

    def forget(self, node: str) -> None:
        """A node that was removed is gone."""
        for nodes in (self.retiring, self.fed, self.retired, self.overdue):
            nodes.discard(node)
        self.workers.pop(node).forget()
        del self.peers[node]

    # -- handed over to the next image of the daemon -------------------------------------------------------

    def packed(self) -> PackedFlow:
        """All of its state."""
        return PackedFlow(
            state=self.state,
            history=list(self.history.entries()),
            limits=self.limits,
            workers={node: _packed(subject) for node, subject in self.workers.items()},
            failure=self.failure,
            killed=list(self.killed),
            deadline=self.deadline,
            stop=self.stop,
            **self.revival.packed(),
        )

    def unpack(self, packed: PackedFlow) -> None:
        """Be the flow that ``packed`` was. Raises ValueError when that has other nodes."""
        if packed.workers and packed.workers.keys() != self.peers.keys():
            raise ValueError(f"flow {self.name!r} has nodes {sorted(self.peers)}, not {sorted(packed.workers)}")
        self.state, self.history, self.limits = packed.state, History(packed.history), packed.limits
        self.staff(packed.workers)
        for node, each in packed.workers.items():
            _unpack(self.workers[node], each)
        self.failure, self.killed = packed.failure, list(packed.killed)
        self.deadline, self.stop = packed.deadline, packed.stop
        self.revival.unpack(packed)


def _packed(subject: Worker) -> PackedWorker:
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


def _unpack(subject: Worker, packed: PackedWorker) -> None:
    subject.unpack(packed.state, packed.history)
    subject.incarnation, subject.pid = packed.incarnation, packed.pid
    subject.exit, subject.fault = packed.exit, packed.fault
    subject.finished, subject.result = packed.finished, cbor.loads(packed.result)
