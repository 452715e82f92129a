"""A flow's life: submitted → validated → starting → running → draining → stopped, or failed.

The table is total: every state has a handler for every kind of event, an empty cell is illegal and changes nothing. A
flow that fails while it has workers passes through draining with its failure noted, so that ``stopped`` and ``failed``
always mean that nothing of it is left. Sinks start first and sources stop first; the rest ends as its inputs end.
One deadline is armed at a time; which one it is follows from the flow's state. Restarts are in ``revival``; before a
flow first ran there are none. A flow that drains in good order restarts what fails, so that no frame is lost; one that
drains because it failed, or that was told to end at once, restarts nothing any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from chronetix.protocol import cbor
from chronetixd.core import restarts as revival
from chronetixd.core import worker
from chronetixd.core.flow_messages import (
    ENDED,
    EVENTS,
    Arm,
    Collapsed,
    Configure,
    Deadline,
    Disarm,
    Drain,
    Enter,
    Failure,
    FlowEvent,
    FlowState,
    Instruction,
    LeaveRequested,
    Limits,
    Moment,
    NodeDeadline,
    NodeEvent,
    NoSuccession,
    Refused,
    Retire,
    Signal,
    Spawn,
    Start,
    StopMode,
    StopRequested,
    TakeOver,
    WakePeers,
)
from chronetixd.core.levels import sources, start_waves
from chronetixd.core.machine import History, IllegalEvent
from chronetixd.core.packed import PackedFlow, PackedWorker
from chronetixd.core.restart import Rule, Strategy
from chronetixd.core.worker import GONE, Tally, Worker, WorkerState

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

Handler = Callable[["Flow", FlowEvent, Moment], list[Instruction]]


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
        self.revival = revival.Revival(rules or {}, strategy)
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

    def resume(self, incarnations: Mapping[str, int], over: Collection[str]) -> None:
        """It runs already, under workers that an earlier daemon has started, in these incarnations; the nodes that are
        ``over`` had come to their end."""
        self._staff(self.peers)
        for node, subject in self.workers.items():
            subject.incarnation = incarnations.get(node, 0)
            subject.came_back(WorkerState.EXITED if node in over else WorkerState.STARTED)
            subject.finished = node in over
        self.state = FlowState.RUNNING
        self.history.add("Resumed", FlowState.RUNNING)

    def _staff(self, nodes: Iterable[str]) -> None:
        """A worker for each, all of them new."""
        self.tally = Tally()
        self.workers = {node: Worker(node, self.tally) for node in nodes}

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
        self._staff(packed.workers)
        for node, each in packed.workers.items():
            _unpack(self.workers[node], each)
        self.failure, self.killed = packed.failure, list(packed.killed)
        self.deadline, self.stop = packed.deadline, packed.stop
        self.revival.unpack(packed)

    def handle(self, event: FlowEvent, at: Moment) -> list[Instruction]:
        """What to do about ``event``. Raises IllegalEvent, and then nothing has changed."""
        handler = TABLE[self.state][EVENTS.index(type(event))]
        if handler is None:
            raise self._illegal(event)
        return handler(self, event, at)

    def collapse(self, message: str, living: Collection[str]) -> list[Instruction]:
        """Whoever carries its instructions out has failed in the middle of one: nothing is known any more but which
        workers are ``living``. They are killed, and with the last of them the flow has failed."""
        event = Collapsed()
        self.failure = self._first_cause(Failure("internal", "", "", message))
        self.revival = revival.Revival({}, self.revival.strategy)
        self.leaving.clear()
        self.stop = None
        for node in self.peers:
            subject = self.workers.get(node)
            if subject is None:
                subject = self.workers[node] = Worker(node, self.tally)
            subject.came_back(WorkerState.TERMINATING if node in living else WorkerState.FAILED)
        done = [*self._disarm(), *self._enter(FlowState.DRAINING, event)]
        return [*done, Signal(tuple(living), kill=True), *self.end_if_empty(event)]

    def count(self, *states: WorkerState) -> int:
        """How many workers are in one of ``states``."""
        return self.tally.count(states)

    @property
    def all_gone(self) -> bool:
        """None of its workers has a process (any more)."""
        return self.count(*GONE) == len(self.workers)

    # -- before anything runs ------------------------------------------------------------------------------

    def _accept(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        return self._enter(FlowState.VALIDATED, event)

    def _refuse(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        assert isinstance(event, Refused)
        self.failure = Failure("refused", "", "", event.message)
        return self._enter(FlowState.FAILED, event)

    def _launch(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        nodes = tuple(self.peers)
        self._staff(nodes)
        return [
            *self._enter(FlowState.STARTING, event),
            self._arm(Deadline.START, self.limits.start_ns),
            Spawn(nodes),
        ]

    def _stop_unlaunched(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        return self._enter(FlowState.STOPPED, event)

    # -- starting ------------------------------------------------------------------------------------------

    def _node_starting(self, event: FlowEvent, at: Moment) -> list[Instruction]:
        assert isinstance(event, NodeEvent)
        ran = revival.runs_early(self, event.node)
        state = self._apply(event)
        if ran and state in (WorkerState.FAULTED, WorkerState.FAILED):
            return revival.park(self, event)
        match state:
            case WorkerState.OFFERING:
                return [Configure(event.node)]
            case WorkerState.READY if self.count(WorkerState.READY) == len(self.workers):
                return self._start_wave(0)
            case WorkerState.STARTED:
                return self._advance(event, at)
            case _:
                return self._after(event, state)

    def _start_wave(self, wave: int) -> list[Instruction]:
        for node in self.waves[wave]:
            self.workers[node].handle(worker.StartSent())
        return [Start(self.waves[wave])]

    def _advance(self, event: NodeEvent, at: Moment) -> list[Instruction]:
        """A worker has started: start the next wave if that was the last one of its own."""
        if self.count(WorkerState.STARTING):
            return []
        if self.count(WorkerState.READY):
            return self._start_wave(1)
        stop, self.stop = self.stop, None
        running = [*self._enter(FlowState.RUNNING, event), *self._disarm(), *revival.unpark(self, at)]
        return running + self._stop_running(stop, at) if stop and self.state is FlowState.RUNNING else running

    def _stop_starting(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        """Before the first start nothing has happened yet: end it. After, a drain waits until all have started."""
        assert isinstance(event, StopRequested)
        if event.mode is StopMode.DRAIN and self.count(*BEGUN):
            self.stop = event
            return []
        return [*self._leave(event), *self._signal(kill=event.mode is StopMode.KILL)]

    def _late_start(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        """The start deadline: the worker that is furthest behind is the cause."""
        order = list(worker.PHASES)
        unready = [subject for subject in self.workers.values() if subject.state in worker.PHASES]
        late = min(unready, key=lambda subject: order.index(subject.state))
        phase = worker.PHASES[late.state]
        text = f"was not ready within {self.limits.start_ns / 1e9:g} s; it is still in phase {phase!r}"
        return self.fail(Failure("start-timeout", late.node, phase, text), event)

    # -- running -------------------------------------------------------------------------------------------

    def _node_running(self, event: FlowEvent, at: Moment) -> list[Instruction]:
        assert isinstance(event, NodeEvent)
        return revival.on_node(self, event, at)

    def _node_deadline(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        assert isinstance(event, NodeDeadline)
        if event.node not in self.workers:
            raise self._illegal(event)
        ends = self.state is FlowState.DRAINING and not self.drains_well
        return [] if ends else revival.on_deadline(self, event.node)

    def _no_succession(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        assert isinstance(event, NoSuccession)
        if not self.restarts:
            return []
        return self.fail(Failure("restarts", event.node, "", event.message), event)

    def _leave_requested(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        assert isinstance(event, LeaveRequested)
        subject = self.workers.get(event.node)
        if subject is None or subject.state is not WorkerState.STARTED:
            raise self._illegal(event)
        return revival.leave(self, event.node)

    def _take_over(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        assert isinstance(event, TakeOver)
        subject = self.workers.get(event.node)
        if subject is None or subject.state is not WorkerState.RESTARTING or self.revival.group_of(event.node):
            raise self._illegal(event)
        return revival.take_over(self, event.node, event.pid)

    def revise(
        self,
        nodes: tuple[str, ...],
        edges: tuple[tuple[str, str], ...],
        rules: Mapping[str, Rule],
        strategy: Strategy,
    ) -> None:
        """From now on these are the nodes, the data routes, and the rules that say when nodes are restarted. Added
        nodes wait for a TakeOver, removed ones end and then are gone without a trace."""
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
                self.workers[node].awaited()
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

    def _retire(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        assert isinstance(event, Retire)
        if event.node not in self.retiring or self.workers[event.node].state is not WorkerState.STARTED:
            raise self._illegal(event)
        return revival.retire(self, event.node)

    def _stop_running(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        """A drain waits until nodes that are being restarted are back, but not for their back-off."""
        assert isinstance(event, StopRequested)
        if event.mode is not StopMode.DRAIN:
            done = [*self._leave(event), *self._signal(kill=event.mode is StopMode.KILL)]
            return done + self.end_if_empty(event)
        if self.stop is not None:
            return []
        if not revival.unsettled(self):
            return self.drain(event, event)
        self.stop = event
        return [self._arm(Deadline.DRAIN, self._drain_ns(event)), *revival.hurry(self)]

    def _late_back(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        """The drain has waited too long for a node that is being restarted."""
        late = next((w for w in self.workers.values() if w.state not in revival.AT_WORK), None)
        if late is not None and self.failure is None:
            text = "was not restarted in time to drain; frames that it had not taken are lost"
            self.failure = Failure("drain-timeout", late.node, "drain", text)
        done = [*self._leave(event), *self._signal(kill=False)]
        return done + self.end_if_empty(event)

    def drain(self, asked: StopRequested, event: FlowEvent) -> list[Instruction]:
        """Every node is at work or has ended: from here on it is downhill."""
        return [
            *self._leave(event),
            self._arm(Deadline.DRAIN, self._drain_ns(asked)),
            *self._tell_drain(self.sources),
        ]

    def _drain_ns(self, asked: StopRequested) -> int:
        return self.limits.drain_ns if asked.drain_ns is None else asked.drain_ns

    def _leave(self, event: FlowEvent) -> list[Instruction]:
        """To draining: whoever waited to be started again does not any more."""
        return [*self._enter(FlowState.DRAINING, event), *revival.give_up(self)]

    def drain_successor(self, node: str) -> list[Instruction]:
        """A node that was restarted while the flow drains has started: a source is to end again."""
        return self._tell_drain(self.sources & {node}) if self.drains_well else []

    def _tell_drain(self, nodes: Collection[str]) -> list[Instruction]:
        """Drain those of ``nodes`` that run and were not told yet."""
        running = (WorkerState.STARTING, WorkerState.STARTED)
        if not self.count(*running):
            return []
        told = tuple(node for node, w in self.workers.items() if node in nodes and w.state in running)
        for node in told:
            self.workers[node].handle(worker.DrainSent())
        return [Drain(told)] if told else []

    # -- draining ------------------------------------------------------------------------------------------

    def _node_draining(self, event: FlowEvent, at: Moment) -> list[Instruction]:
        assert isinstance(event, NodeEvent)
        if self.drains_well:
            return revival.on_node(self, event, at)
        state = self._apply(event)
        if state is WorkerState.TERMINATING and isinstance(event.event, worker.Spawned):
            return [Signal((event.node,), kill=True)]
        return self._after(event, state)

    def _stop_draining(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        """A second, harder request hurries; one that asks for no more than what goes on changes nothing."""
        assert isinstance(event, StopRequested)
        if event.mode is StopMode.DRAIN or (event.mode is StopMode.NOW and self.deadline is not Deadline.DRAIN):
            return []
        done = [*revival.give_up(self), *self._signal(kill=event.mode is StopMode.KILL)]
        return done + self.end_if_empty(event)

    def _late_end(self, event: FlowEvent, _at: Moment) -> list[Instruction]:
        """The drain took too long: SIGTERM; SIGTERM did not help: SIGKILL."""
        if self.deadline is not Deadline.DRAIN:
            return self._signal(kill=True)
        if self.failure is None:
            late = next(w for w in self.workers.values() if not w.gone)
            text = "did not drain in time and was ended; frames it had not taken are lost"
            self.failure = Failure("drain-timeout", late.node, "drain", text)
        done = [*revival.give_up(self), *self._signal(kill=False)]
        return done + self.end_if_empty(event)

    # -- what they share -----------------------------------------------------------------------------------

    def _apply(self, event: NodeEvent) -> WorkerState:
        subject = self.workers.get(event.node)
        if subject is None:
            raise self._illegal(event)
        return subject.handle(event.event)

    def _after(self, event: NodeEvent, state: WorkerState) -> list[Instruction]:
        """What a worker's bad or final state means for the flow, in whatever state that is."""
        done: list[Instruction] = [WakePeers(event.node)] if state in GONE else []
        if state in (WorkerState.FAULTED, WorkerState.FAILED):
            return done + self.fail(self.cause(event), event)
        return done + self.end_if_empty(event)

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

    def fail(self, failure: Failure, event: FlowEvent) -> list[Instruction]:
        """Note the cause, unless an earlier one is known that is not a mere consequence, and stop the others."""
        known, self.failure = self.failure, self._first_cause(failure)
        if known is None and self.state is FlowState.STARTING and not self.count(*BEGUN):
            stopped = [*self._leave(event), *self._signal(kill=False, spare=FINISHING)]
        elif self.state is FlowState.DRAINING:
            stopped = [*revival.give_up(self), *self._stop_others()]
        else:
            stopped = [*self._leave(event), *self._stop_others()]
        return stopped + self.end_if_empty(event)

    def _first_cause(self, failure: Failure) -> Failure:
        known = self.failure
        replaces = known is None or (known.consequence and not failure.consequence)
        return failure if replaces or known is None else known

    def _stop_others(self) -> list[Instruction]:
        """After a failure: whoever runs drains, whoever has not started is signalled."""
        done = self._tell_drain(self.workers.keys())
        phases = worker.PHASES
        early = tuple(node for node, w in self.workers.items() if w.state in phases) if self.count(*phases) else ()
        for node in early:
            self.workers[node].handle(worker.SignalSent())
        if early:
            done.append(Signal(early, kill=False))
        if self.deadline in (None, Deadline.START) and not self.all_gone:
            done.append(self._arm(Deadline.DRAIN, self.limits.failure_drain_ns))
        return done

    def _signal(self, *, kill: bool, spare: frozenset[WorkerState] = GONE) -> list[Instruction]:
        """Signal everyone who is left, but for states to ``spare``; SIGTERM gets a deadline, SIGKILL needs none."""
        left = tuple(node for node, w in self.workers.items() if w.state not in spare)
        for node in left:
            self.workers[node].handle(worker.SignalSent())
        if kill:
            self.killed += [node for node in left if node not in self.killed]
            return [*self._disarm(), Signal(left, kill=True)]
        return [self._arm(Deadline.TERMINATE, self.limits.terminate_ns), Signal(left, kill=False)]

    def end_if_empty(self, event: FlowEvent | Collapsed) -> list[Instruction]:
        """The end of the flow with that of its last worker."""
        if self.ended or not self.all_gone:
            return []
        if self.state is FlowState.STARTING:
            return []
        for node in tuple(self.retiring):
            self.forget(node)
        final = FlowState.STOPPED if self.failure is None else FlowState.FAILED
        return [*self._disarm(), *self._enter(final, event)]

    def _arm(self, deadline: Deadline, after_ns: int) -> Arm:
        self.deadline = deadline
        return Arm(deadline, after_ns)

    def _disarm(self) -> list[Instruction]:
        if self.deadline is None:
            return []
        self.deadline = None
        return [Disarm()]

    def _enter(self, state: FlowState, event: FlowEvent | Collapsed) -> list[Instruction]:
        self.state = state
        self.history.add(type(event).__name__, state)
        return [Enter(state)]

    def _illegal(self, event: FlowEvent) -> IllegalEvent:
        return IllegalEvent(f"flow {self.name!r}", self.state, type(event).__name__, self.history.entries())


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
    subject.state, subject.history = packed.state, History(packed.history)
    subject.incarnation, subject.pid = packed.incarnation, packed.pid
    subject.exit, subject.fault = packed.exit, packed.fault
    subject.finished, subject.result = packed.finished, cbor.loads(packed.result)


_F = Flow
_S = FlowState

NEXT: dict[FlowState, tuple[FlowState, ...]] = {
    _S.SUBMITTED: (_S.VALIDATED, _S.FAILED, _S.STOPPED),
    _S.VALIDATED: (_S.STARTING, _S.STOPPED),
    _S.STARTING: (_S.RUNNING, _S.DRAINING),
    _S.RUNNING: (_S.DRAINING, _S.STOPPED),
    _S.DRAINING: (_S.STOPPED, _S.FAILED),
    _S.STOPPED: (),
    _S.FAILED: (),
}
"""Where a flow can go from each state."""

_: None = None
# fmt: off
TABLE: dict[FlowState, tuple[Handler | None, ...]] = {
    # Columns: Validated, Refused, Launch, NodeEvent, StopRequested, DeadlinePassed, NodeDeadline, NoSuccession,
    # LeaveRequested, TakeOver, Retire
    _S.SUBMITTED: (_F._accept, _F._refuse, _, _, _F._stop_unlaunched, _, _, _, _, _, _),
    _S.VALIDATED: (_, _, _F._launch, _, _F._stop_unlaunched, _, _, _, _, _, _),
    _S.STARTING: (_, _, _, _F._node_starting, _F._stop_starting, _F._late_start, _F._node_deadline, _, _, _, _),
    _S.RUNNING: (
        _, _, _, _F._node_running, _F._stop_running, _F._late_back, _F._node_deadline, _F._no_succession,
        _F._leave_requested, _F._take_over, _F._retire
    ),
    _S.DRAINING: (
        _, _, _, _F._node_draining, _F._stop_draining, _F._late_end, _F._node_deadline, _F._no_succession, _, _, _
    ),
    _S.STOPPED: (_, _, _, _, _, _, _, _, _, _, _),
    _S.FAILED: (_, _, _, _, _, _, _, _, _, _, _),
}
# fmt: on
