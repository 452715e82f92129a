"""The shell of one flow: gives the core's machine its events and carries out its instructions.

What breaks the rules becomes a worker's fault and ends its flow, nobody else's. Events that arise while instructions
are carried out wait until those are done. What workers say is in ``hearing``, what everybody is told in ``news``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog

from chronetix import shm
from chronetix.protocol import messages as wire
from chronetix.protocol.errors import ChronetixError
from chronetixd.core import flow_messages as core
from chronetixd.core import worker as life
from chronetixd.core.change import Change
from chronetixd.core.death import Death
from chronetixd.core.flow.state import Flow
from chronetixd.core.flow.table import handle
from chronetixd.core.flow_messages import FlowEvent, FlowState, Instruction, NodeEvent, StopMode
from chronetixd.core.machine import IllegalEvent
from chronetixd.core.packed import PackedFlow, PackedWatch
from chronetixd.core.reason import reason
from chronetixd.core.wiring.lives import LostMemory
from chronetixd.core.worker import Exit, WorkerState
from chronetixd.dataplane import shm_support
from chronetixd.dataplane.held_frames import HeldFrames, look
from chronetixd.dataplane.pack import PackedWiring
from chronetixd.dataplane.recovered import Kept
from chronetixd.dataplane.taps import Taps
from chronetixd.dataplane.wiring import ToNode, Wiring
from chronetixd.flows.context import Services
from chronetixd.flows.flow_events import News
from chronetixd.flows.frame_failures import FrameFailures
from chronetixd.flows.liveness import Probes
from chronetixd.flows.plan import NodePlan, Plan
from chronetixd.flows.recovery import Homecoming
from chronetixd.flows.restart_timers import PackedRevival, Revivals
from chronetixd.flows.rollout import Rollout
from chronetixd.flows.worker_messages import Hearing
from chronetixd.flows.worker_records import Lives
from chronetixd.loop import closing
from chronetixd.loop.alarm import due_ns, left_s
from chronetixd.loop.watchers import Watchers
from chronetixd.packing import Bag, Packed, Unbag
from chronetixd.store.descriptor_keys import Key
from chronetixd.store.descriptor_names import Keeping
from chronetixd.store.journal import StoredLife
from chronetixd.workers.process import Callbacks, PackedProcess, WorkerProcess

T = TypeVar("T")

SILENT_EXIT_S = 10.0
"""How long a worker may live on after it closed its control socket. Giving back what it maps takes a busy
machine seconds when many end at once, and who ends in good order must not be killed for it."""


class PackedRun(Packed, frozen=True):
    """A flow. ``deadline_ns``: when the armed deadline is due. ``silent``: nodes that have closed their control socket
    and live on."""

    machine: PackedFlow
    wiring: PackedWiring
    workers: dict[str, PackedProcess]
    submitted_unix_ns: int
    changed_unix_ns: int
    reason: str
    failures: dict[str, FrameFailures]
    deadline_ns: int | None
    last_deaths: dict[str, Death]
    revivals: dict[str, PackedRevival]
    silent: list[str]
    on_bus: bool
    lives: list[StoredLife]
    warned: PackedWatch
    taps: int
    kept: list[Key] = []
    """What the supervisor keeps of it."""


class FlowRun:
    """One submitted flow. ``reason`` says why it failed, or who had to be killed."""

    def __init__(self, plan: Plan, services: Services, limits: core.Limits) -> None:
        nodes = tuple(plan.nodes)
        edges = tuple((route.source, route.target) for route in plan.data_routes)
        self.plan = plan
        self.name = plan.name
        self.machine = Flow(plan.name, nodes, edges, limits, plan.rules, plan.strategy)
        self.wiring = Wiring(nodes, plan.data_routes)
        self.workers: dict[str, WorkerProcess] = {}
        self.taps = Taps(self._send_to, self.source)
        self.news = News(services.events, plan.name)
        warn_after_s = services.held_warning_s()
        self.held_frames = HeldFrames(services.loop, warn_after_s, lambda: look(self.wiring), self.news.held)
        self.submitted_unix_ns = self.changed_unix_ns = time.time_ns()
        self.reason = ""
        self.failures = {node: FrameFailures() for node in nodes}
        self.probes = Probes(services.loop, plan.probes, self._ping, self._hear, self._dead)
        self._services = services
        self._log = structlog.get_logger("chronetixd.flow").bind(flow=plan.name)
        self._events: deque[FlowEvent] = deque()
        self._busy = False
        self._deadline: asyncio.TimerHandle | None = None
        self._delayed_by = ""
        """What its workers waited for when a deadline passed."""
        self._last_deaths: dict[str, Death] = {}
        self.revivals = Revivals(services.loop, nodes, lambda node: self.dispatch(core.NodeDeadline(node)))
        self._silent: dict[str, asyncio.TimerHandle] = {}
        self._former: dict[str, tuple[NodePlan, str]] = {}
        """Nodes that the flow has no more, until their worker is gone: how they were to be run, and where."""
        self._handovers: dict[str, Any] = {}
        """Results of workers that have left, for those that take over."""
        self.rollout: Rollout | None = None
        """The last one, which may be under way."""
        self._on_bus = False
        self._hearing = Hearing(self, services)
        self._lives = Lives(services.journal, plan.name)
        self._keeping = Keeping(services.store, plan.name)
        self._kept = True
        self.home: Homecoming | None = None
        """Its workers are on their way back from the death of a daemon."""
        self._watchers = Watchers(services.loop)

    @property
    def state(self) -> FlowState:
        """Where it is in its life."""
        return self.machine.state

    @property
    def pids(self) -> set[int]:
        """Processes of its workers that were not reaped."""
        standing = self.rollout.pids if self.rollout is not None else set()
        return {worker.pid for worker in self.workers.values() if worker.alive} | standing

    def launch(self) -> None:
        """Validated already; start it."""
        self.dispatch(core.Validated())
        self.dispatch(core.Launch())

    def refuse(self, why: str) -> None:
        """It cannot be launched: it has failed, and nothing of it was started."""
        self.dispatch(core.Refused(why))

    def rest(self, state: FlowState, reason: str, changed_unix_ns: int) -> None:
        """It has ended under an earlier daemon, in ``state``; it is only listed."""
        self.dispatch(core.Remembered(state))
        self.reason, self.changed_unix_ns = reason, changed_unix_ns
        self.wiring.close()

    def resume(self, lives: Sequence[StoredLife], kept: Mapping[Key, int], *, whole: bool) -> None:
        """It runs under workers that an earlier daemon has started, and whose last ``lives`` these are: go on with
        them as they come back. ``kept`` is what the supervisor had kept of them, ``whole`` or not; the descriptors are
        ours now."""
        self._lives = Lives(self._services.journal, self.name, lives)
        self._keeping = Keeping(self._services.store, self.name, kept)
        self.home = Homecoming(self._services.loop, self, lives, Kept(kept, whole=whole))
        for node in self.plan.nodes.values():
            self.wiring.know(node.configure)
        self.dispatch(core.Resumed({life.node: life.incarnation for life in lives}, frozenset(self.home.over)))
        self.home.begin()

    def came_home(
        self,
        told: list[ToNode],
        lost: LostMemory | None,
        held: Sequence[tuple[str, wire.Message, list[int]]],
        died: Mapping[str, Exit],
        stop: core.StopRequested | None,
    ) -> None:
        """All workers are back, or dead: what has happened meanwhile happens now."""
        self.home = None
        self._on_bus = True
        living = [node for node, worker in self.workers.items() if worker.alive]
        for node in living:
            self._begin_watching(node)
        self.held_frames.start()
        self.keep()
        self.send_wiring(told)
        self.news.resumed(len(living), list(died))
        if lost is not None:
            self.dispatch(core.NoSuccession(lost.node, lost.what))
        for node, message, descriptors in held:
            self._hearing.late(node, message, descriptors)
        for node, ended in died.items():
            self._worker_exited(node, ended)
        if not living and not died:
            stop = core.StopRequested(StopMode.NOW)  # all had come to their end, and only the flow's own was missing
        if stop is not None:
            self.dispatch(stop)
        self._watchers.tell()

    def back_on_bus(self, node: str) -> None:
        """It gets again what its manifest says; to what else, it says itself."""
        self._services.bus.subscribe(self.workers[node], self.plan.nodes[node].configure.subscriptions)

    def keep(self) -> None:
        """Have the supervisor keep what a later daemon would need of this one's memory: before anybody is told of what
        is new. Before the flow runs it is not worth it, as then it is begun anew."""
        survives = self.plan.flow.on_daemon_loss == "survive"
        if survives and self.home is None and self.state in (FlowState.RUNNING, FlowState.DRAINING):
            pidfds = {
                Key(node, "pidfd", worker.incarnation): worker.pidfd
                for node, worker in self.workers.items()
                if worker.alive
            }
            kept = self._keeping.follow(self.wiring.memories() | pidfds)
            if self._kept and not kept:
                self.news.not_kept()
            self._kept = kept

    # -- handed over to the next image of the daemon -------------------------------------------------------

    @property
    def in_the_way(self) -> str:
        """What keeps it from being handed over now: the rest of a sentence about it; nothing when it can be."""
        if self.home is not None:
            return "waits for its workers to come back from the death of a daemon"
        if self.rollout is not None and not self.rollout.settled:
            return f"is in the middle of roll-out {self.rollout.number}"
        ending = [node for node, worker in self.workers.items() if worker.ending]
        return f"waits for the end of what node {ending[0]!r} has started" if ending else ""

    def packed(self, bag: Bag) -> PackedRun:
        """All of it; descriptors go into ``bag``. Nothing may be ``in_the_way``, and its taps are not part of it."""
        return PackedRun(
            machine=self.machine.packed(),
            wiring=self.wiring.packed(bag),
            workers={node: worker.packed(bag) for node, worker in self.workers.items()},
            submitted_unix_ns=self.submitted_unix_ns,
            changed_unix_ns=self.changed_unix_ns,
            reason=self.reason,
            failures=self.failures,
            deadline_ns=due_ns(self._services.loop, self._deadline) if self._deadline is not None else None,
            last_deaths=self._last_deaths,
            revivals=self.revivals.packed(),
            silent=list(self._silent),
            on_bus=self._on_bus,
            lives=self._lives.packed(),
            warned=self.held_frames.packed(),
            taps=self.taps.next,
            kept=self._keeping.packed(),
        )

    def unpack(self, packed: PackedRun, bag: Unbag) -> None:
        """Be the flow that ``packed`` was. Raises ValueError, OSError."""
        self.machine.unpack(packed.machine)
        self.wiring.unpack(packed.wiring, bag)
        for node, worker in packed.workers.items():
            self.new_worker(node).unpack(worker, bag)
        self.submitted_unix_ns, self.changed_unix_ns = packed.submitted_unix_ns, packed.changed_unix_ns
        self.reason = packed.reason
        self.failures |= packed.failures
        self._last_deaths = dict(packed.last_deaths)
        self._on_bus = packed.on_bus
        self._lives = Lives(self._services.journal, self.name, packed.lives)
        self.held_frames.unpack(packed.warned)
        self.taps.next = packed.taps
        self._keeping.unpack(packed.kept)
        self.revivals.unpack(packed.revivals)
        if packed.deadline_ns is not None:
            self._deadline = self._services.loop.call_later(left_s(packed.deadline_ns), self._deadline_passed)
        for node in packed.silent:
            self._silent[node] = self._services.loop.call_later(SILENT_EXIT_S, self._went_silent, node)

    def go_on(self, asked: Collection[str]) -> None:
        """It is unpacked. ``asked`` are nodes whose process was asked for and not born."""
        if self.state is FlowState.RUNNING:
            self.held_frames.start()
        for node, subject in self.machine.workers.items():
            if subject.state in (WorkerState.STARTED, WorkerState.DRAINING) and self.workers[node].alive:
                self.probes.start(node)
        again = tuple(node for node in asked if self.machine.workers[node].state is WorkerState.SPAWNING)
        if again:
            self._spawn(again)
        for node in set(asked) - set(again):
            self._spawn_failed(node, "the daemon was upgraded before it was born")

    def stop(self, mode: StopMode, drain_ns: int | None = None) -> None:
        """Ask it to end; nothing when it has ended."""
        event = core.StopRequested(mode, drain_ns)
        if not self.machine.ended and (self.home is None or self.home.stop(event)):
            self.dispatch(event)

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` after every change of the flow or of a worker, until the returned function is called."""
        return self._watchers.watch(watcher)

    def tell(self) -> None:
        """Something about its routes has changed."""
        self._watchers.tell()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Return once ``reached``: looked at now, and after every change of the flow or of a worker."""
        await self._watchers.until(reached)

    def has_ended(self) -> bool:
        """It has stopped or failed."""
        return self.machine.ended

    def progress(self) -> dict[str, Any]:
        """How far it has come: state, workers that have started, workers."""
        ready = len(self.workers) - self.machine.count(*life.PHASES)
        told = {"flow": self.name, "state": str(self.state), "ready": ready, "total": len(self.plan.nodes)}
        return told | ({"waits_for": self._waits_for} if self._waits_for else {})

    @property
    def _waits_for(self) -> str:
        """What keeps workers from being born that were asked for."""
        trouble = self._services.launcher.trouble
        return trouble if trouble and any(worker.asked for worker in self.workers.values()) else ""

    # -- events in, instructions out -----------------------------------------------------------------------

    def dispatch(self, event: FlowEvent) -> None:
        """Give the machine ``event`` and carry out what it says."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                self._step(self._events.popleft())
        except Exception as defect:
            self._collapse(defect)
        finally:
            self._busy = False
        self._watchers.tell()

    def _contained(self, callback: Callable[[str, T], None]) -> Callable[[str, T], None]:
        def call(node: str, value: T) -> None:
            try:
                callback(node, value)
            except Exception as defect:
                self.broken(defect)

        return call

    def broken(self, defect: Exception) -> None:
        """Something outside of :meth:`dispatch` that belongs to this flow has failed; raised again if it has ended."""
        if self.machine.ended:
            raise defect
        self._collapse(defect)
        self._watchers.tell()

    def _collapse(self, defect: Exception) -> None:
        """Something failed here that nobody had thought of (want of memory, a defect); what it left half done is not
        known. It is this flow's end and no other's; if that fails too, it is the daemon's."""
        self._log.critical("an internal failure: the flow's workers are killed", exc_info=defect)
        self._events.clear()
        if self.home is not None:
            self.home.abandon()
            self.home = None
        living = [node for node, worker in self.workers.items() if worker.to_come]
        text = f"the daemon failed inside while it worked on this flow ({type(defect).__name__}: {defect}); see its log"
        for instruction in handle(self.machine, core.Collapsed(text, tuple(living)), _now()):
            self._carry_out(instruction)

    def _step(self, event: FlowEvent) -> None:
        subject = self.machine.workers.get(event.node) if isinstance(event, NodeEvent) else None
        before = subject.state if subject is not None else WorkerState.SPAWNING
        try:
            instructions = handle(self.machine, event, _now())
        except IllegalEvent as illegal:
            self._illegal(event, illegal)
            return
        if isinstance(event, NodeEvent):
            self._announce(event, before)
        for instruction in instructions:
            self._carry_out(instruction)

    def _illegal(self, event: FlowEvent, illegal: IllegalEvent) -> None:
        """A worker that says what it may not say now has broken the protocol. Anything else is our own defect."""
        if isinstance(event, NodeEvent) and isinstance(event.event, FROM_WORKER):
            self.broke(event.node, f"sent {type(event.event).__name__!r} while {illegal.state}")
        else:
            self._log.error("an event was not legal and is ignored", event_name=str(event), why=str(illegal))

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case core.Spawn(nodes):
                self._spawn(nodes)
            case core.Configure(node):
                self._configure(node)
            case core.Relink(node):
                self.send_wiring(self.wiring.relink(node))
                self.announce_relinked()
            case core.Start(nodes):
                self._start(nodes)
            case core.Drain(nodes):
                self._each(nodes, self._drain)
            case core.Leave(node):
                self._leave(node)
            case core.Left(node):
                self._handovers[node] = self.machine.workers[node].result
            case core.Removed(node):
                self._removed(node)
            case core.Signal(nodes, kill):
                self._each(nodes, lambda worker: worker.signal(kill=kill))
            case core.WakePeers(node):
                self._after_death(node, self.wiring.gone)
            case core.Succeed(node):
                self._after_death(node, self.wiring.succeeded)
            case core.Restarting(node):
                self.revivals.planned(node, instruction.kin, instruction.after_ns, instruction.reason)
                self.news.restarting(instruction, self.machine.revival.rule(node))
            case core.Restarted(node):
                self.revivals.back(node)
                self._begin_watching(node)
                subject = self.machine.workers[node]
                reason = self.revivals[node].last_reason
                self.news.restarted(node, reason, subject.incarnation, self.workers[node].pid)
            case core.ArmNode(node, after_ns):
                self.revivals.arm(node, after_ns)
            case core.Arm(_, after_ns):
                self._disarm()
                self._deadline = self._services.loop.call_later(after_ns / 1e9, self._deadline_passed)
            case core.Disarm():
                self._disarm()
            case core.Enter(state):
                self._entered(state)

    def _each(self, nodes: Iterable[str], act: Callable[[WorkerProcess], None]) -> None:
        """Have all of these workers told: one now, and a thousand with turns for everybody else."""
        for worker in [self.workers[node] for node in nodes]:
            self._services.nursery.turns.add(partial(act, worker))

    def _drain(self, worker: WorkerProcess) -> None:
        self._services.bus.stop_timers(worker)
        worker.send(wire.Drain())

    @property
    def _callbacks(self) -> Callbacks:
        return Callbacks(
            self._contained(self._spawned),
            self._spawn_failed,
            self._hearing.received,
            self._connection_ended,
            self._contained(self._worker_exited),
        )

    def _planned(self, node: str) -> tuple[NodePlan, str]:
        """How ``node`` is run, and where; also one that the flow has no more."""
        found = self.plan.nodes.get(node)
        return (found, self.plan.base_dir) if found is not None else self._former[node]

    def new_worker(self, node: str) -> WorkerProcess:
        """What is to be the process of ``node`` from now on."""
        services = self._services
        worker = self.workers[node] = WorkerProcess(
            services.loop,
            self.name,
            node,
            services.logs,
            self._callbacks,
            services.nursery,
            self._planned(node)[0].manifest.resource_claims,
            services.max_frame,
        )
        return worker

    def _spawn(self, nodes: tuple[str, ...]) -> None:
        services = self._services
        self._lives.intend({node: self.machine.workers[node].incarnation for node in nodes})
        for node in nodes:
            worker = self.new_worker(node)
            worker.incarnation = self.machine.workers[node].incarnation
            worker.to_come = True
            services.nursery.turns.add(partial(self._spawn_one, worker))

    def _spawn_one(self, worker: WorkerProcess) -> None:
        """It is its turn; it may have been told to end before."""
        services, node = self._services, worker.node
        if self.workers.get(node) is not worker or not worker.to_come:
            return
        if self.machine.workers[node].state is not WorkerState.SPAWNING:
            self._not_spawned(worker, "it was to end before it was asked for")
            return
        env = {"CHRONETIX_FLOW": self.name, "CHRONETIX_NODE": node}
        plan, base_dir = self._planned(node)
        argv = plan.argv
        spare = None if argv else services.spares.take()
        try:
            if spare is not None:
                worker.adopt(spare, env, base_dir)
            else:
                worker.spawn(services.launcher, argv, env, base_dir)
        except OSError as refused:
            if spare is not None:
                services.spares.give_back(spare)
            self._not_spawned(worker, str(refused))

    def _not_spawned(self, worker: WorkerProcess, why: str) -> None:
        worker.to_come = False
        self.dispatch(NodeEvent(worker.node, life.SpawnFailed(why)))

    def _configure(self, node: str) -> None:
        message = self.wiring.configure(node, self._planned(node)[0].configure)
        if message.on_daemon_loss == "survive":
            message = msgspec.structs.replace(message, socket=self._services.socket(), token=self._lives.token(node))
        self.workers[node].send(message)

    def _start(self, nodes: tuple[str, ...]) -> None:
        """All are ready: first put everyone on the bus, so that nothing published from now on is missed."""
        for node in nodes if self._on_bus else self.workers:
            self._services.bus.subscribe(self.workers[node], self._planned(node)[0].configure.subscriptions)
        self._on_bus = True
        starting = {node: self.workers[node] for node in nodes}
        if self.plan.flow.on_daemon_loss == "survive":
            # From then on they may outlive us: that they were born has to be known.
            self._services.journal.when_written(lambda: self._send_start(starting))
        else:
            self._send_start(starting)

    def _send_start(self, starting: Mapping[str, WorkerProcess]) -> None:
        """To those that are to start still: the disk may have taken long."""
        workers = self.machine.workers
        left = [
            node
            for node, worker in starting.items()
            if self.workers.get(node) is worker and node in workers and workers[node].state is WorkerState.STARTING
        ]
        for node in left:
            self.wiring.started(node)
        self.keep()
        self._each(left, self._tell_start)

    def _tell_start(self, worker: WorkerProcess) -> None:
        worker.send(wire.Start(handover=self._handovers.pop(worker.node, None)))

    # -- roll-outs -----------------------------------------------------------------------------------------

    def roll_out(self, rollout: Rollout) -> None:
        """Begin; the one before is over."""
        self.rollout = rollout
        rollout.begin()

    def revise(self, plan: Plan, change: Change) -> None:
        """From now on it is the flow of ``plan``, which differs by ``change``: for who is born, and for who asks."""
        self._former |= {node: (self.plan.nodes[node], self.plan.base_dir) for node in change.named("removed")}
        self.plan = plan
        edges = tuple((route.source, route.target) for route in plan.data_routes)
        self.machine.revise(tuple(plan.nodes), edges, plan.rules, plan.strategy)
        self.probes.revise(plan.probes)
        for node in change.named("added"):
            self.failures[node] = FrameFailures()
            self.revivals.add(node)
        told = {node: each.configure for node, each in plan.nodes.items()}
        untold = change.named("added") | change.named("changed") | change.named("removed")
        switched = frozenset(each.name for each in change.routes if each.kind == "changed")
        self.taps.removed({each.name for each in change.routes if each.kind == "removed"})
        self.send_wiring(self.wiring.revise(plan.data_routes, told, untold, switched))

    def take_over(self, node: str, worker: WorkerProcess | None) -> None:
        """``node`` has no worker: ``worker``, which has stood by, is its next one; without one it gets a new one."""
        self.revivals.planned(node, (), 0, "was replaced by a roll-out")
        if worker is None:
            self.dispatch(core.TakeOver(node))
            return
        worker.incarnation = self.machine.workers[node].incarnation + 1
        self.workers[node] = worker
        worker.change_hands(self._callbacks)
        self._lives.intend({node: worker.incarnation})
        self._lives.born(node, worker.pid)
        self.keep()
        self.news.spawned(node, worker.pid)
        self.dispatch(core.TakeOver(node, worker.pid))

    def _removed(self, node: str) -> None:
        del self.workers[node]
        self.failures.pop(node, None)
        self._former.pop(node, None)
        self.revivals.forget(node)

    def _leave(self, node: str) -> None:
        """What comes for it on the bus from now on is for its successor."""
        successor = self.rollout.standing(node) if self.rollout is not None else None
        self._services.bus.hand_over(self.workers[node], successor, self.plan.nodes[node].configure.subscriptions)
        self.probes.stop(node)
        self.workers[node].send(wire.Leave())

    # -- restarts ------------------------------------------------------------------------------------------

    def _after_death(self, node: str, settle: Callable[[str], list[ToNode]]) -> None:
        """Its routes go on without it, or wait for its successor, unless it left something that none can go on from."""
        try:
            self.send_wiring(settle(node))
            self.keep()
        except LostMemory as lost:
            self.dispatch(core.NoSuccession(lost.node, lost.what))
        except (shm.PeerFault, OSError, MemoryError) as fault:
            self.dispatch(core.NoSuccession(node, f"left a ring that nobody can go on from: {fault}"))
        self.announce_relinked()

    def announce_relinked(self) -> None:
        """Successors that no producer has to be linked to any more may start."""
        if not self.machine.restarts or not self.machine.count(WorkerState.READY):
            return
        for node, subject in tuple(self.machine.workers.items()):
            if subject.state is WorkerState.READY and self.wiring.relinked(node):
                self.dispatch(NodeEvent(node, life.Relinked()))

    def _entered(self, state: FlowState) -> None:
        self.changed_unix_ns = time.time_ns()
        if state is FlowState.RUNNING:
            self.keep()
            self.held_frames.start()
            for node, worker in self.workers.items():
                if worker.alive:
                    self._begin_watching(node)
        if self.machine.ended:
            self._release()
        failure = self.machine.failure
        why = self.reason or (f"node {failure.node!r} {failure.message}" if failure else "")
        self.news.entered(state, why, len(self.plan.nodes))

    def _begin_watching(self, node: str) -> None:
        """Its worker runs: timers tick, and it is asked whether it lives."""
        timers = self._planned(node)[0].configure.timers
        if timers:
            self._services.bus.start_timers(self.workers[node], timers)
        self.probes.start(node)

    def _release(self) -> None:
        """The last worker is gone: say why it ended, and give everything back."""
        failure = self.machine.failure
        if failure is not None:
            worker = self.workers.get(failure.node)
            subject = self.machine.workers.get(failure.node)
            ended, tail = subject.exit if subject else None, worker.stderr_tail if worker else []
            self.reason = reason(failure, ended, tail, self._last_deaths.get(failure.node))
            self.reason += f"; {self._delayed_by}" if self._delayed_by else ""
        elif self.machine.killed:
            self.reason = f"killed: {', '.join(self.machine.killed)}"
        for node in tuple(self.workers):
            if node not in self.plan.nodes:
                self._removed(node)
        self.revivals.close()
        self.taps.end()
        self.held_frames.stop()
        self._keeping.close()
        self.wiring.close(closing.beside)
        shm_support.flow_ended()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _deadline_passed(self) -> None:
        self._deadline = None
        self._delayed_by = self._waits_for
        self.dispatch(core.DeadlinePassed())

    def _announce(self, event: NodeEvent, before: WorkerState) -> None:
        """Starts, faults and ends of workers are for everyone to see."""
        node = event.node
        match event.event:
            case life.Spawned(pid):
                self.news.spawned(node, pid)
            case life.SpawnFailed(message) if before is not WorkerState.TERMINATING:
                self.news.not_spawned(node, message)
            case life.Faulted() as fault:
                self.news.faulted(node, fault)
            case life.Exited(ended):
                self.news.exited(node, ended, self._last_deaths[node], before, self.workers[node].pid)
            case _:
                pass

    # -- the processes -------------------------------------------------------------------------------------

    def _spawned(self, node: str, pid: int) -> None:
        self._lives.born(node, pid)
        self.keep()
        self.dispatch(NodeEvent(node, life.Spawned(pid)))

    def _spawn_failed(self, node: str, message: str) -> None:
        self.dispatch(NodeEvent(node, life.SpawnFailed(message)))

    def _worker_exited(self, node: str, ended: Exit) -> None:
        if self.home is not None:
            self.home.ended(node, ended)
            return
        silent = self._silent.pop(node, None)
        if silent is not None:
            silent.cancel()
        self._services.bus.drop(self.workers[node])
        self.probes.stop(node)
        death = self.workers[node].death(ended, self.wiring.held(node))
        self._last_deaths[node] = death
        self.taps.gone(node)
        self._services.deaths.add(death)
        incarnation = self.workers[node].incarnation
        self.dispatch(NodeEvent(node, life.Exited(ended)))
        subject = self.machine.workers.get(node)
        self._lives.gone(node, incarnation, well=subject is None or subject.state is WorkerState.EXITED)

    async def deaths(self) -> dict[str, list[Death]]:
        """The last exits of each node, of earlier runs of this flow too."""
        nodes = tuple(self.plan.nodes)
        return await self._services.disk.ask(lambda: self._services.deaths.of_all(self.name, nodes))

    def _connection_ended(self, node: str, fault: ChronetixError | None) -> None:
        """Its control socket has ended. If it does not exit by itself now, it can never be told to."""
        if fault is not None:
            self.broke(node, str(fault))
        elif self.workers[node].alive:
            self._silent[node] = self._services.loop.call_later(SILENT_EXIT_S, self._went_silent, node)

    def _went_silent(self, node: str) -> None:
        del self._silent[node]
        self.broke(node, "closed its control socket and lives on")

    def broke(self, node: str, what: str) -> None:
        """The worker broke the rules of the wire: nothing it says can be trusted any more, so it is killed."""
        self.dispatch(NodeEvent(node, life.Faulted("protocol", f"the worker broke the protocol: {what}")))
        self.workers[node].signal(kill=True)

    def _ping(self, node: str, ping: wire.Ping) -> None:
        self.workers[node].send(ping)

    def _hear(self, node: str) -> None:
        self.workers[node].hear()

    def _dead(self, node: str, why: str) -> None:
        """It failed its liveness probe: nothing can be expected of it, so it is killed."""
        self.dispatch(NodeEvent(node, life.Faulted("liveness", why)))
        self.workers[node].signal(kill=True)

    def source(self, node: str) -> Mapping[int, int] | None:
        """What a tap on a route of ``node`` needs of it: its segments; None when it has no memory, or no more."""
        return self.wiring.segments_of(node)

    def _send_to(self, node: str, message: wire.Message, descriptors: Sequence[int]) -> None:
        self.workers[node].send(message, descriptors, give=True)

    def send_wiring(self, messages: list[ToNode]) -> None:
        """Copies of the descriptors travel: ours may be closed before a worker has read what is sent to it. Whoever
        cannot be told for want of descriptors would wait for ever, and is killed."""
        for node, message, descriptors in messages:
            if isinstance(message, wire.Link) and self.machine.workers[node].state is WorkerState.OFFERED:
                self.dispatch(NodeEvent(node, life.LinkSent()))
            try:
                copies = self.wiring.given(descriptors)
            except OSError as reason:
                self.dispatch(NodeEvent(node, life.Faulted("wiring", f"no memory could be sent to it: {reason}")))
                self.workers[node].signal(kill=True)
            else:
                self.workers[node].send(message, copies, give=True)


def _now() -> core.Moment:
    return core.Moment(time.monotonic_ns(), random.random())


FROM_WORKER = (
    life.Greeted,
    life.Offered,
    life.BecameReady,
    life.HasStarted,
    life.HasFinished,
)
"""Events that are a worker's own words, and that it can say at the wrong time."""
