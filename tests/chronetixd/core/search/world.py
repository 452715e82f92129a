"""A flow in small: the daemon's real tables, workers of ``workers``, memories that are lists. Nothing is left to
chance: who makes the next step follows from a number, and who is killed before which step is said by whoever plays.
All of it can be pickled, also between two steps, so that what has the same beginning is played from there on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from chronetix.protocol import messages as wire
from chronetixd.core import flow_messages as core
from chronetixd.core import rollout as steps
from chronetixd.core import rollout_messages
from chronetixd.core import worker as life
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow.table import handle
from chronetixd.core.flow_messages import FlowState, WorkerChanged
from chronetixd.core.restart import Policy, Rule, Strategy
from chronetixd.core.wiring.machine import WiringMachine
from chronetixd.core.wiring.stages import DataRoute, Handle, LineEnd, Snapshot
from chronetixd.core.worker import Exit, WorkerState
from chronetixd.dataplane.lines import Lines
from tests.chronetixd.core.search.workers import Credit, Frame, Ring, Worker

MOST_STEPS = 4000


@dataclass(frozen=True)
class Shape:
    """A flow: its routes as (from, to), their credits, of routes to ``deep`` nodes some more, and which version of
    which node is another one."""

    edges: tuple[tuple[str, str], ...]
    credits: int = 2
    versions: tuple[str, ...] = ()
    deep: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node for edge in self.edges for node in edge))

    @property
    def routes(self) -> tuple[DataRoute, ...]:
        return tuple(DataRoute(f"{source}-{target}", source, target) for source, target in self.edges)

    def configure(self, node: str) -> wire.Configure:
        """What a worker of ``node`` is told."""

        def port(source: str, target: str, peer: str) -> wire.Port:
            credits = 8 if target in self.deep else self.credits
            route = f"{source}-{target}"
            return wire.Port(route=route, peer=peer, credits=credits, watermark=credits, credit_low=credits // 2)

        return wire.Configure(
            flow="f",
            node=node,
            plugin_id=node,
            version="1",
            kind="Python",
            uri="x",
            inputs=[port(a, b, a) for a, b in self.edges if b == node],
            outputs=[port(a, b, b) for a, b in self.edges if a == node],
        )

    def kinds(self, node: str) -> tuple[bool, bool]:
        """Whether it has inputs, and outputs."""
        return any(b == node for _, b in self.edges), any(a == node for a, _ in self.edges)


@dataclass
class _Turn:
    """What is still tried of one round: ``acts``, then those of ``names``, then what is nobody's. ``slow``: a turn of
    the slow node, from when ``begun`` steps were made."""

    names: list[str] = field(default_factory=list)
    acts: list[Callable[[], bool]] = field(default_factory=list)
    slow: bool = False
    begun: int = 0
    over: bool = False
    moved: bool = False


class World:
    """A flow of ``shape``, until :meth:`become` and :meth:`stop`. ``order`` says who makes the next step; the ``slow``
    node makes one when nobody else can."""

    def __init__(self, shape: Shape, order: int = 0, slow: str = "") -> None:
        self.shape = shape
        self.order = order
        self.slow = slow
        self.memory: dict[int, Any] = {}
        self.kept: set[int] = set()
        self._ends: set[int] = set()
        self._made = 0
        self.lines = Lines(self._new_line, self._ends.discard)
        self.items = 0
        self.count = 0
        self.kills: dict[int, str] = {}
        self.ledgers: dict[str, list[Frame]] = {}
        self.rule = Rule(Policy.TRANSIENT, max=100, backoff_ns=1)
        self.flow = FlowMachine("f", shape.nodes, shape.edges, rules=dict.fromkeys(shape.nodes, self.rule))
        self.machine = WiringMachine(shape.nodes, shape.routes, self)
        self.workers: dict[str, Worker] = {}
        self.former: dict[str, Shape] = {}
        self.rollout: steps.RolloutMachine | None = None
        self.writing = False
        self.becomes = shape
        self.events: deque[core.FlowEvent] = deque()
        self.busy = False
        self.timers: set[str] = set()
        self._turn: _Turn | None = None
        self._until = 0
        self.dispatch(core.Validated())
        self.dispatch(core.Launch())

    # -- memories ------------------------------------------------------------------------------------------

    def handle(self, thing: Any) -> int:
        """A descriptor of a memory, which its maker sends along."""
        self.memory[len(self.memory)] = thing
        return len(self.memory) - 1

    def _new_line(self) -> tuple[int, int]:
        """Both ends, as numbers that differ in their last bit; the producer's is the even one."""
        self._made += 2
        self._ends |= {self._made, self._made + 1}
        return self._made, self._made + 1

    @property
    def ends_left(self) -> set[int]:
        """Ends of lines that nobody was given."""
        return set(self.lines.all_left)

    def check_lines(self) -> None:
        """Whoever live at both ends of a stage have the two ends of one line."""
        for node, worker in self.workers.items():
            for route, out in worker.outs.items() if worker.alive else ():
                for other in self.workers.values() if out.credit is not None and not out.closed else ():
                    for end in other.ins.get(route, ()) if other.alive else ():
                        if end.ring is out.ring and end.credit is out.credit:
                            assert out.line ^ end.line == 1, f"{node} and {other.node} have no line for {route}"
                            assert out.line < end.line, f"{node} and {other.node} have each the other's end for {route}"

    def ledger(self, node: str) -> list[Frame]:
        """What a sink has got, in order."""
        return self.ledgers.setdefault(node, [])

    def remains(self, ring: Handle) -> tuple[int, int]:
        assert ring in self.kept, "a ring that was closed is read"
        frames = self.memory[ring].frames
        return len(frames), max((number for _, number, _ in frames), default=0)

    def snapshot(self, ring: Handle, credit: Handle) -> Snapshot | None:
        assert {ring, credit} <= self.kept, "a memory that was closed is read"
        there, back = self.memory[ring], self.memory[credit]
        assert isinstance(there, Ring)
        assert isinstance(back, Credit)
        figures = dict.fromkeys(_FIGURES, 0)
        outstanding = len(there.frames) - len(back.returned)
        drops = dict.fromkeys(("no_credit", "no_room", "given_up", "overwritten", "unread"), 0)
        return {**figures, "outstanding": outstanding, "credits": there.credits, "next": back.next, "drops": drops}

    # -- the daemon's shell --------------------------------------------------------------------------------

    def dispatch(self, event: core.FlowEvent) -> None:
        self.events.append(event)
        if self.busy:
            return
        self.busy = True
        while self.events:
            for instruction in handle(self.flow, self.events.popleft(), core.ClockAndChance(self.count, 0.5)):
                self._carry_out(instruction)
        self.busy = False
        self._look()

    def _carry_out(self, instruction: core.Instruction) -> None:
        match instruction:
            case core.RequestSpawn(nodes):
                for node in nodes:
                    self._spawn(node, 1)
                    self.events.append(WorkerChanged(node, life.ProcessSpawned(1)))
            case core.SendConfigure(node):
                shape = self.shape if node in self.shape.nodes else self.former[node]
                self._send(node, self.machine.incarnations.configure(node, shape.configure(node)), ())
            case core.LinkSuccessor(node):
                self._wire(self.machine.relink(node))
                self._announce()
            case core.SendStart(nodes):
                for node in nodes:
                    self.machine.started(node)
                    self._send(node, wire.Start(), ())
            case core.SendDrain(nodes):
                for node in nodes:
                    self._send(node, wire.Drain(), ())
            case core.SendLeave(node):
                self._send(node, wire.Leave(), ())
            case core.NodeRemoved(node):
                del self.workers[node]
            case core.Signal(nodes):
                for node in nodes:
                    self.kill(node)
            case core.WakePeers(node):
                self._wire(self.machine.incarnations.gone(node))
                self._announce()
            case core.PrepareSuccessor(node):
                self._wire(self.machine.incarnations.succeeded(node))
                self._announce()
            case core.ArmNodeDeadline(node):
                self.timers.add(node)
            case _:
                pass

    def _spawn(self, node: str, pid: int) -> None:
        assert node not in self.workers or not self.workers[node].alive, "two processes for one node"
        self.workers[node] = Worker(self, node)

    def _send(self, node: str, message: Any, handles: Sequence[Hashable]) -> None:
        memories = [handle for handle in handles if not isinstance(handle, LineEnd)]
        assert all(handle in self.kept for handle in memories), "a memory that was closed is sent"
        handles = [self.lines.take(each) if isinstance(each, LineEnd) else each for each in handles]
        worker = self.workers[node]
        if worker.alive:
            worker.inbox.append((message, tuple(handles)))  # type: ignore[arg-type]

    def _wire(self, told: Sequence[Any]) -> None:
        for node, message, handles in told:
            if isinstance(message, wire.Link) and self.flow.workers[node].state is WorkerState.OFFERED:
                self.dispatch(WorkerChanged(node, life.LinkSent()))
            self._send(node, message, handles)
        for effect in self.machine.take_closes():
            if isinstance(effect.handle, LineEnd):
                self.lines.close(effect.handle)
            else:
                assert effect.handle in self.kept, f"{effect.handle} is closed again, or was never kept"
                self.kept.discard(effect.handle)  # type: ignore[arg-type]

    def _announce(self) -> None:
        for node, subject in tuple(self.flow.workers.items()):
            ready = self.flow.restarts and subject.state is WorkerState.READY
            if ready and self.machine.links.relinked(node):
                self.dispatch(WorkerChanged(node, life.Relinked()))

    def _hear(self, node: str, message: Any, handles: tuple[int, ...]) -> None:
        match message:
            case wire.Hello():
                if self.flow.workers[node].state is WorkerState.GREETING:
                    self.dispatch(WorkerChanged(node, life.Greeted()))
            case wire.Offer():
                self._offered(node, message, handles)
            case wire.Linked():
                self._wire(self.machine.linked(node, message))
                self._announce()
            case wire.Drained():
                self._wire(self.machine.drained(node, message))
                self._look()
            case wire.Ready():
                self._wire(self.machine.ready(node))
                self.dispatch(WorkerChanged(node, life.BecameReady()))
            case wire.Started():
                self.dispatch(WorkerChanged(node, life.HasStarted()))
            case wire.Finished():
                self.dispatch(WorkerChanged(node, life.HasFinished()))
            case Exit():
                self.dispatch(WorkerChanged(node, life.ProcessExited(message)))
            case _:
                raise AssertionError(message)

    def _offered(self, node: str, message: wire.Offer, handles: tuple[int, ...]) -> None:
        if self.flow.workers[node].state in (WorkerState.TERMINATING, WorkerState.FAULTED):
            return
        self.kept |= set(handles)
        rings, credits = handles[: len(message.rings)], handles[len(message.rings) :]
        based = [(Handle(ring), self.memory[ring].base_seq) for ring in rings]
        told = self.machine.incarnations.offer(node, message, based, [Handle(each) for each in credits], {})
        self._wire(told)
        if self.flow.workers[node].state is WorkerState.OFFERING:
            self.dispatch(WorkerChanged(node, life.Offered()))
        self._wire(self.machine.links.due(node))
        self._look()

    # -- a roll-out ----------------------------------------------------------------------------------------

    def become(self, shape: Shape) -> None:
        """Begin a roll-out to ``shape``."""
        before, after = self.shape, shape
        both = [node for node in before.nodes if node in after.nodes]
        changed = {n for n in both if before.kinds(n) != after.kinds(n)} | (set(after.versions) - set(before.versions))
        removed = set(before.nodes) - set(after.nodes)
        added = tuple(node for node in _downstream(after) if node not in before.nodes)
        nodes = tuple(node for node in _downstream(before) if node in changed | removed)
        self.becomes, self.changed = shape, changed
        senders = {node: {a for a, b in before.edges if b == node} for node in before.nodes}
        self.rollout = steps.RolloutMachine(nodes, 1, senders, added, frozenset(removed))
        self._step(rollout_messages.BeginRequested())
        self._look()

    def _look(self) -> None:
        if self.busy or self.rollout is None or self.rollout.over:
            return
        nodes = {
            node: rollout_messages.NodeView(
                each.state, each.incarnation, self.flow.restart_state.group_of(node) is not None
            )
            for node, each in self.flow.workers.items()
        }
        under_way, clean = tuple(self.machine.rerouting.under_way), self.machine.rerouting.clean
        before = self.rollout.step
        self._step(
            rollout_messages.FlowObserved(
                rollout_messages.FlowView(nodes, self.flow.state is FlowState.RUNNING, "", under_way, clean)
            )
        )
        if self.rollout.step is not before:
            self._look()

    def _step(self, event: rollout_messages.RolloutEvent) -> None:
        assert self.rollout is not None
        for instruction in self.rollout.handle(event):
            match instruction:
                case rollout_messages.StandBy(nodes):
                    for node in nodes:
                        self._step(rollout_messages.SuccessorReady(node))
                case rollout_messages.WriteCommit():
                    self.writing = True
                case rollout_messages.ReviseFlow():
                    self._revise()
                case rollout_messages.ReplaceWorker(node):
                    self.dispatch(core.LeaveRequested(node))
                case rollout_messages.RetireNode(node):
                    self.dispatch(core.RetireRequested(node))
                case rollout_messages.StartSuccessor(node):
                    self._take_over(node)
                case rollout_messages.FinishRollout() if self.rollout.step is steps.RolloutStep.ENDED:
                    self._wire(self.machine.rerouting.keep_leaving_workers())
                case _:
                    pass

    def _revise(self) -> None:
        before, after = self.shape, self.becomes
        self.shape = after
        self.former |= {node: before for node in before.nodes if node not in after.nodes}
        self.flow.revise(after.nodes, after.edges, dict.fromkeys(after.nodes, self.rule), Strategy.ONE_FOR_ONE)
        untold = self.changed | (set(before.nodes) ^ set(after.nodes))
        stays = {each.id for each in before.routes} & {each.id for each in after.routes}
        switched = frozenset(stays if before.credits != after.credits else ())
        told = {node: after.configure(node) for node in after.nodes}
        self._wire(self.machine.rerouting.revise(after.routes, told, untold, switched))

    def _take_over(self, node: str) -> None:
        if (
            self.flow.workers[node].state is not WorkerState.RESTARTING
            or self.flow.restart_state.group_of(node) is not None
        ):
            return
        if self.flow.state is not FlowState.RUNNING:
            return
        self._spawn(node, 1)
        self.workers[node].said.popleft()
        self.dispatch(core.SuccessorGiven(node, 1))

    def stop(self) -> None:
        """Have it drain."""
        self.dispatch(core.StopRequested())
        self._look()

    def close(self) -> None:
        """Give all memory back."""
        self.machine.close()
        self._wire(())

    # -- time ----------------------------------------------------------------------------------------------

    def kill(self, node: str) -> None:
        """kill -9, wherever it is."""
        worker = self.workers.get(node)
        if worker is not None and worker.alive:
            worker.alive = False
            worker.state = "killed"

    def run(self, most: int = MOST_STEPS) -> None:
        """Until nobody has anything to do, or ``most`` steps further."""
        self.begin(most)
        self.go_on()

    def begin(self, most: int = MOST_STEPS) -> None:
        """What :meth:`go_on` does from now on."""
        self._until = self.count + most
        self._turn = None

    def go_on(self, pause: int = -1) -> bool:
        """Until nobody has anything to do, or the end of what was begun. True when it pauses before step ``pause``."""
        while self.count < self._until:
            self._turn = turn = self._turn or _Turn(names=self._names())
            while self.count < self._until:
                if self.count == pause:
                    return True
                act = self._next(turn)
                if act is None:
                    break
                victim = self.kills.pop(self.count, None)
                if victim is not None:
                    self.kill(victim)
                went_on = act() or victim is not None
                self.count += went_on
                turn.moved = turn.moved or went_on
            if turn.slow and not turn.moved:
                break
            self._turn = None if turn.moved else _Turn(slow=True, acts=self._acts(self.slow), begun=self.count)
            assert self.count < MOST_STEPS, "it goes round in circles"
        return False

    def _names(self) -> list[str]:
        names = sorted(self.workers)
        at = self.order % max(1, len(names))
        names = names[at:] + names[:at]
        if self.order % 2:
            names.reverse()
        return [node for node in names if node != self.slow]

    def _next(self, turn: _Turn) -> Callable[[], bool] | None:
        """What is tried next; None at the end of the turn, which is, for the slow node, its first step."""
        if turn.slow and self.count != turn.begun:
            return None
        while not turn.acts:
            if turn.names:
                turn.acts = self._acts(turn.names.pop(0))
            elif not turn.slow and not turn.over:
                turn.over, turn.acts = True, [self._timer, self._write]
            else:
                return None
        return turn.acts.pop(0)

    def _write(self) -> bool:
        """The journal has what was to be written."""
        written, self.writing = self.writing, False
        if written:
            self._step(rollout_messages.CommitWritten())
            self._look()
        return written

    def _acts(self, node: str) -> list[Any]:
        worker = self.workers.get(node)
        if worker is None:
            return []
        acts = [worker.step_reader, worker.step_plugin, partial(self._listen, node)]
        return acts if self.order % 3 else acts[::-1]

    def _listen(self, node: str) -> bool:
        worker = self.workers.get(node)
        if worker is None:
            return False
        if worker.said:
            self._hear(node, *worker.said.popleft())
            return True
        if worker.state in ("exited", "killed"):
            ended = Exit(code=0) if worker.state == "exited" else Exit(signal="SIGKILL")
            worker.state = "reaped"
            self._hear(node, ended, ())
            return True
        return False

    def _timer(self) -> bool:
        """Only pauses before restarts pass: nothing may depend on a limit."""
        for node in sorted(self.timers):
            subject = self.flow.workers.get(node)
            if subject is not None and subject.state is WorkerState.RESTARTING:
                self.timers.discard(node)
                self.dispatch(core.NodeDeadline(node))
                return True
        return False


_FIGURES = (
    "committed",
    "bytes",
    "would_block",
    "blocked_ns",
    "producer_sleeps",
    "producer_wakes",
    "skipped",
    "taken",
    "again",
    "consumer_sleeps",
    "consumer_wakes",
    "max_outstanding",
    "max_ns",
    "gave_up_after_ns",
    "dropped",
    "unseen",
    "returned",
    "returned_before",
)


def _downstream(shape: Shape) -> list[str]:
    left = {node: {a for a, b in shape.edges if b == node} for node in shape.nodes}
    found: list[str] = []
    while left:
        ready = [node for node, before in left.items() if not before & left.keys()]
        found += ready
        for node in ready:
            del left[node]
    return found
