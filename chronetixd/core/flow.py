"""A flow's life: submitted → validated → starting → running → draining → stopped, or failed.

The table is total: every state has a handler for every kind of event, an empty cell is illegal and changes nothing. A
flow that fails while it has workers passes through draining with its failure noted, so that ``stopped`` and ``failed``
always mean that nothing of it is left. Sinks start first and sources stop first; the rest ends as its inputs end.
One deadline is armed at a time; which one it is follows from the flow's state.
"""

from __future__ import annotations

from collections.abc import Callable

from chronetixd.core import restart, worker
from chronetixd.core.flow_words import (
    ENDED,
    EVENTS,
    Arm,
    Configure,
    Deadline,
    Disarm,
    Drain,
    Enter,
    Failure,
    FlowEvent,
    FlowState,
    Instruction,
    Limits,
    Link,
    NodeEvent,
    Refused,
    Signal,
    Spawn,
    Start,
    StopMode,
    StopRequested,
    WakePeers,
)
from chronetixd.core.levels import sources, start_waves
from chronetixd.core.machine import History, IllegalEvent
from chronetixd.core.worker import GONE, Worker, WorkerState

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

Handler = Callable[["Flow", FlowEvent], list[Instruction]]


class Flow:
    """One flow. ``failure`` is the first cause, ``killed`` the nodes that had to be killed to end it."""

    __slots__ = (
        "_stop",
        "_unlinked",
        "deadline",
        "failure",
        "history",
        "killed",
        "limits",
        "name",
        "peers",
        "policy",
        "sources",
        "state",
        "waves",
        "workers",
    )

    def __init__(
        self,
        name: str,
        nodes: tuple[str, ...],
        edges: tuple[tuple[str, str], ...],
        limits: Limits | None = None,
        policy: str = "temporary",
    ) -> None:
        """``edges`` are the data routes as (from, to). Raises ValueError when they form a cycle or no node is there."""
        if not nodes:
            raise ValueError("a flow needs at least one node")
        self.name = name
        self.limits = limits or Limits()
        self.policy = policy
        self.waves = start_waves(nodes, edges)
        self.sources = sources(nodes, edges)
        self.peers: dict[str, set[str]] = {node: set() for node in nodes}
        for source, target in edges:
            self.peers[source].add(target)
            self.peers[target].add(source)
        self.state = FlowState.SUBMITTED
        self.workers: dict[str, Worker] = {}
        self.failure: Failure | None = None
        self.killed: list[str] = []
        self.deadline: Deadline | None = None
        self.history = History()
        self._unlinked = {node: len(peers) + 1 for node, peers in self.peers.items()}
        self._stop: StopRequested | None = None

    @property
    def ended(self) -> bool:
        """Stopped or failed: nothing of it is left."""
        return self.state in ENDED

    def handle(self, event: FlowEvent) -> list[Instruction]:
        """What to do about ``event``. Raises IllegalEvent, and then nothing has changed."""
        handler = TABLE[self.state][EVENTS.index(type(event))]
        if handler is None:
            raise self._illegal(event)
        return handler(self, event)

    def count(self, *states: WorkerState) -> int:
        """How many workers are in one of ``states``."""
        return sum(worker.state in states for worker in self.workers.values())

    # -- before anything runs ------------------------------------------------------------------------------

    def _accept(self, event: FlowEvent) -> list[Instruction]:
        return self._enter(FlowState.VALIDATED, event)

    def _refuse(self, event: FlowEvent) -> list[Instruction]:
        assert isinstance(event, Refused)
        self.failure = Failure("refused", "", "", event.message)
        return self._enter(FlowState.FAILED, event)

    def _launch(self, event: FlowEvent) -> list[Instruction]:
        nodes = tuple(self.peers)
        self.workers = {node: Worker(node) for node in nodes}
        return [
            *self._enter(FlowState.STARTING, event),
            self._arm(Deadline.START, self.limits.start_ns),
            Spawn(nodes),
        ]

    def _stop_unlaunched(self, event: FlowEvent) -> list[Instruction]:
        return self._enter(FlowState.STOPPED, event)

    # -- starting ------------------------------------------------------------------------------------------

    def _node_starting(self, event: FlowEvent) -> list[Instruction]:
        assert isinstance(event, NodeEvent)
        state = self._apply(event)
        match state:
            case WorkerState.OFFERING:
                return [Configure(event.node)]
            case WorkerState.OFFERED:
                return self._link_complete(event.node)
            case WorkerState.READY if self.count(WorkerState.READY) == len(self.workers):
                return self._start_wave(0)
            case WorkerState.STARTED:
                return self._advance(event)
            case _:
                return self._after(event, state)

    def _link_complete(self, node: str) -> list[Instruction]:
        """``node`` has offered: link it and every peer of it for which this was the last one missing."""
        complete = []
        for near in (node, *self.peers[node]):
            self._unlinked[near] -= 1
            if not self._unlinked[near]:
                complete.append(near)
        for near in complete:
            self.workers[near].handle(worker.LinkSent())
        return [Link(tuple(complete))] if complete else []

    def _start_wave(self, wave: int) -> list[Instruction]:
        for node in self.waves[wave]:
            self.workers[node].handle(worker.StartSent())
        return [Start(self.waves[wave])]

    def _advance(self, event: NodeEvent) -> list[Instruction]:
        """A worker has started: start the next wave if that was the last one of its own."""
        if self.count(WorkerState.STARTING):
            return []
        if self.count(WorkerState.READY):
            return self._start_wave(1)
        running = [*self._enter(FlowState.RUNNING, event), *self._disarm()]
        return running + self._drain(self._stop) if self._stop else running

    def _stop_starting(self, event: FlowEvent) -> list[Instruction]:
        """Before the first start nothing has happened yet: end it. After, a drain waits until all have started."""
        assert isinstance(event, StopRequested)
        if event.mode is StopMode.DRAIN and self.count(*BEGUN):
            self._stop = event
            return []
        return [*self._enter(FlowState.DRAINING, event), *self._signal(kill=event.mode is StopMode.KILL)]

    def _late_start(self, event: FlowEvent) -> list[Instruction]:
        """The start deadline: the worker that is furthest behind is the cause."""
        order = list(worker.PHASES)
        unready = [subject for subject in self.workers.values() if subject.state in worker.PHASES]
        late = min(unready, key=lambda subject: order.index(subject.state))
        phase = worker.PHASES[late.state]
        text = f"was not ready within {self.limits.start_ns / 1e9:g} s; it is still in phase {phase!r}"
        return self._fail(Failure("start-timeout", late.node, phase, text), event)

    # -- running -------------------------------------------------------------------------------------------

    def _node_running(self, event: FlowEvent) -> list[Instruction]:
        assert isinstance(event, NodeEvent)
        return self._after(event, self._apply(event))

    def _stop_running(self, event: FlowEvent) -> list[Instruction]:
        assert isinstance(event, StopRequested)
        if event.mode is StopMode.DRAIN:
            return self._drain(event)
        return [*self._enter(FlowState.DRAINING, event), *self._signal(kill=event.mode is StopMode.KILL)]

    def _drain(self, event: StopRequested) -> list[Instruction]:
        limit = self.limits.drain_ns if event.drain_ns is None else event.drain_ns
        return [
            *self._enter(FlowState.DRAINING, event),
            self._arm(Deadline.DRAIN, limit),
            *self._tell_drain(self.sources),
        ]

    def _tell_drain(self, nodes: frozenset[str]) -> list[Instruction]:
        """Drain those of ``nodes`` that run and were not told yet."""
        running = (WorkerState.STARTING, WorkerState.STARTED)
        told = tuple(node for node, w in self.workers.items() if node in nodes and w.state in running)
        for node in told:
            self.workers[node].handle(worker.DrainSent())
        return [Drain(told)] if told else []

    # -- draining ------------------------------------------------------------------------------------------

    def _node_draining(self, event: FlowEvent) -> list[Instruction]:
        assert isinstance(event, NodeEvent)
        state = self._apply(event)
        if state is WorkerState.TERMINATING and isinstance(event.event, worker.Spawned):
            return [Signal((event.node,), kill=True)]
        return self._after(event, state)

    def _stop_draining(self, event: FlowEvent) -> list[Instruction]:
        """A second, harder request hurries; one that asks for no more than what goes on changes nothing."""
        assert isinstance(event, StopRequested)
        if event.mode is StopMode.DRAIN or (event.mode is StopMode.NOW and self.deadline is not Deadline.DRAIN):
            return []
        return self._signal(kill=event.mode is StopMode.KILL)

    def _late_end(self, _event: FlowEvent) -> list[Instruction]:
        """The drain took too long: SIGTERM; SIGTERM did not help: SIGKILL."""
        if self.deadline is not Deadline.DRAIN:
            return self._signal(kill=True)
        if self.failure is None:
            late = next(w for w in self.workers.values() if not w.gone)
            text = "did not drain in time and was ended; frames it had not taken are lost"
            self.failure = Failure("drain-timeout", late.node, "drain", text)
        return self._signal(kill=False)

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
            return done + self._fail(self._cause(event), event)
        return done + self._end_if_empty(event)

    def _cause(self, event: NodeEvent) -> Failure:
        subject = self.workers[event.node]
        if subject.fault is not None:
            fault = subject.fault
            return Failure("fault", event.node, fault.phase, fault.message, fault.consequence)
        if isinstance(event.event, worker.SpawnFailed):
            return Failure("spawn", event.node, "spawn", event.event.message)
        early = "" if subject.finished or (subject.exit and subject.exit.signal) else " before it had finished"
        return Failure("exit", event.node, "", f"{subject.exit}{early}")

    def _fail(self, failure: Failure, event: FlowEvent) -> list[Instruction]:
        """Note the cause, unless an earlier one is known that is not a mere consequence, and stop the others."""
        subject = self.workers[failure.node]
        match restart.decide(self.policy, restart.Death(failure.node, subject.exit)):
            case restart.GiveUp():
                known, self.failure = self.failure, self._first_cause(failure)
        if known is None and self.state is FlowState.STARTING and not self.count(*BEGUN):
            stopped = [*self._enter(FlowState.DRAINING, event), *self._signal(kill=False, spare=FINISHING)]
        elif self.state is FlowState.DRAINING:
            stopped = self._stop_others()
        else:
            stopped = [*self._enter(FlowState.DRAINING, event), *self._stop_others()]
        return stopped + self._end_if_empty(event)

    def _first_cause(self, failure: Failure) -> Failure:
        known = self.failure
        replaces = known is None or (known.consequence and not failure.consequence)
        return failure if replaces or known is None else known

    def _stop_others(self) -> list[Instruction]:
        """After a failure: whoever runs drains, whoever has not started is signalled."""
        done = self._tell_drain(frozenset(self.workers))
        early = tuple(node for node, w in self.workers.items() if w.state in worker.PHASES)
        for node in early:
            self.workers[node].handle(worker.SignalSent())
        if early:
            done.append(Signal(early, kill=False))
        if self.deadline in (None, Deadline.START) and not all(w.gone for w in self.workers.values()):
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

    def _end_if_empty(self, event: FlowEvent) -> list[Instruction]:
        if self.ended or not all(w.gone for w in self.workers.values()):
            return []
        if self.state is FlowState.STARTING:
            return []
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

    def _enter(self, state: FlowState, event: FlowEvent) -> list[Instruction]:
        self.state = state
        self.history.add(type(event).__name__, state)
        return [Enter(state)]

    def _illegal(self, event: FlowEvent) -> IllegalEvent:
        return IllegalEvent(f"flow {self.name!r}", self.state, type(event).__name__, self.history.entries())


_F = Flow
_S = FlowState
_: None = None
# fmt: off
TABLE: dict[FlowState, tuple[Handler | None, ...]] = {
    #              Validated   Refused     Launch      NodeEvent      StopRequested        DeadlinePassed
    _S.SUBMITTED: (_F._accept, _F._refuse, _,          _,             _F._stop_unlaunched, _),
    _S.VALIDATED: (_,          _,          _F._launch, _,             _F._stop_unlaunched, _),
    _S.STARTING:  (_,          _,          _,          _F._node_starting, _F._stop_starting, _F._late_start),
    _S.RUNNING:   (_,          _,          _,          _F._node_running,  _F._stop_running,  _),
    _S.DRAINING:  (_,          _,          _,          _F._node_draining, _F._stop_draining, _F._late_end),
    _S.STOPPED:   (_,          _,          _,          _,             _,                   _),
    _S.FAILED:    (_,          _,          _,          _,             _,                   _),
}
# fmt: on
