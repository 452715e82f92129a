"""The shell of one flow: gives the core's machine its events, and has its instructions carried out.

What breaks the rules becomes a worker's fault and ends its flow, nobody else's. Events that arise while instructions
are carried out (``execute``) wait until those are done. What workers say is in ``worker_messages``, what everybody is
told in ``flow_events``, what is handed over in an upgrade in ``pack``. These, a roll-out and a recovery know of a flow
what their own protocol names, and import none. What is here is one thing: the queue of events, and the few ways by
which something outside becomes one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from chronetix.protocol import messages as wire
from chronetix.protocol.errors import ChronetixError
from chronetixd.core import flow_messages as core
from chronetixd.core import worker as life
from chronetixd.core.change import Change
from chronetixd.core.death import ExitRecord
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow.table import handle
from chronetixd.core.flow_messages import FlowEvent, FlowState, StopMode, WorkerChanged
from chronetixd.core.machine import IllegalEvent
from chronetixd.core.rollout import NodeView
from chronetixd.core.wiring.incarnations import LostMemory
from chronetixd.core.worker import Exit, WorkerState
from chronetixd.dataplane.held_frames import HeldFrameWatch, look
from chronetixd.dataplane.recovered import RecoveredMemory
from chronetixd.dataplane.taps import Taps
from chronetixd.dataplane.wiring import ToNode, Wiring
from chronetixd.flows.context import Services
from chronetixd.flows.execute import Executor
from chronetixd.flows.flow_events import News
from chronetixd.flows.frame_failures import FrameFailures
from chronetixd.flows.liveness import Probes
from chronetixd.flows.plan import Plan
from chronetixd.flows.recovery import Recovery
from chronetixd.flows.restart_timers import RestartTimers
from chronetixd.flows.rollout import Rollout
from chronetixd.flows.worker_messages import WorkerMessages
from chronetixd.flows.worker_records import WorkerRecords
from chronetixd.loop.watchers import Watchers
from chronetixd.store.descriptor_keys import Key
from chronetixd.store.descriptor_names import KeptDescriptors
from chronetixd.store.journal import StoredLife
from chronetixd.workers.process import SILENT_EXIT_S, Callbacks, WorkerProcess

T = TypeVar("T")


class FlowRun:
    """One submitted flow. ``reason`` says why it failed, or who had to be killed."""

    def __init__(self, plan: Plan, services: Services, limits: core.Limits) -> None:
        nodes = tuple(plan.nodes)
        edges = tuple((route.source, route.target) for route in plan.data_routes)
        self.plan = plan
        self.name = plan.name
        self.machine = FlowMachine(plan.name, nodes, edges, limits, plan.rules, plan.strategy)
        self.wiring = Wiring(nodes, plan.data_routes)
        self.workers: dict[str, WorkerProcess] = {}
        self.taps = Taps(self._send_to, self.source)
        self.news = News(services.events, plan.name)
        warn_after_s = services.held_warning_s()
        self.held_frames = HeldFrameWatch(services.loop, warn_after_s, lambda: look(self.wiring), self.news.held)
        self.submitted_unix_ns = self.changed_unix_ns = time.time_ns()
        self.reason = ""
        self.failures = {node: FrameFailures() for node in nodes}
        self.probes = Probes(services.loop, plan.probes, self._ping, self._hear, self._dead)
        self._services = services
        self._log = structlog.get_logger("chronetixd.flow").bind(flow=plan.name)
        self._events: deque[FlowEvent] = deque()
        self._busy = False
        self.last_deaths: dict[str, ExitRecord] = {}
        self.revivals = RestartTimers(services.loop, nodes, lambda node: self.dispatch(core.NodeDeadline(node)))
        self.silent: dict[str, asyncio.TimerHandle] = {}
        """Nodes whose worker has closed its control socket and lives on."""
        self.rollout: Rollout | None = None
        """The last one, which may be under way."""
        self.lives = WorkerRecords(services.journal, plan.name)
        self.keeping = KeptDescriptors(services.store, plan.name)
        self.executor = Executor(self, services)
        self._kept = True
        self.home: Recovery | None = None
        """Its workers are on their way back from the death of a daemon."""
        self._watchers = Watchers(services.loop)
        self._hearing = WorkerMessages(
            self,
            services,
            wiring=self.wiring,
            taps=self.taps,
            held_frames=self.held_frames,
            probes=self.probes,
            failures=self.failures,
            news=self.news,
        )

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
        self.remember(lives)
        self.keeping = KeptDescriptors(self._services.store, self.name, kept)
        self.home = Recovery(
            self._services.loop, self, self.wiring, tuple(self.plan.nodes), lives, RecoveredMemory(kept, whole=whole)
        )
        for node in self.plan.nodes.values():
            self.wiring.know(node.configure)
        self.dispatch(core.Resumed({life.node: life.incarnation for life in lives}, frozenset(self.home.over)))
        self.home.begin()

    def remember(self, lives: Sequence[StoredLife]) -> None:
        """These are the last lives of its workers that the journal has."""
        self.lives = WorkerRecords(self._services.journal, self.name, lives)

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
        self.executor.on_bus = True
        living = [node for node, worker in self.workers.items() if worker.alive]
        for node in living:
            self.executor.begin_watching(node)
        self.held_frames.start()
        self.keep()
        self.send_wiring(told)
        self.news.resumed(len(living), list(died))
        if lost is not None:
            self.dispatch(core.SuccessionFailed(lost.node, lost.what))
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
            kept = self.keeping.follow(self.wiring.memories() | pidfds)
            if self._kept and not kept:
                self.news.not_kept()
            self._kept = kept

    @property
    def in_the_way(self) -> str:
        """What keeps it from being handed over now: the rest of a sentence about it; nothing when it can be."""
        if self.home is not None:
            return "waits for its workers to come back from the death of a daemon"
        if self.rollout is not None and not self.rollout.settled:
            return f"is in the middle of roll-out {self.rollout.number}"
        ending = [node for node, worker in self.workers.items() if worker.ending]
        return f"waits for the end of what node {ending[0]!r} has started" if ending else ""

    def go_on(self, asked: Collection[str]) -> None:
        """It is unpacked. ``asked`` are nodes whose process was asked for and not born."""
        if self.state is FlowState.RUNNING:
            self.held_frames.start()
        for node, subject in self.machine.workers.items():
            if subject.state in (WorkerState.STARTED, WorkerState.DRAINING) and self.workers[node].alive:
                self.probes.start(node)
        again = tuple(node for node in asked if self.machine.workers[node].state is WorkerState.SPAWNING)
        if again:
            self.executor.spawn(again)
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
        return told | ({"waits_for": self.waits_for} if self.waits_for else {})

    @property
    def waits_for(self) -> str:
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
            self.executor.carry_out(instruction)

    def _step(self, event: FlowEvent) -> None:
        subject = self.machine.workers.get(event.node) if isinstance(event, WorkerChanged) else None
        before = subject.state if subject is not None else WorkerState.SPAWNING
        try:
            instructions = handle(self.machine, event, _now())
        except IllegalEvent as illegal:
            self._illegal(event, illegal)
            return
        if isinstance(event, WorkerChanged):
            self._announce(event, before)
        for instruction in instructions:
            self.executor.carry_out(instruction)

    def _illegal(self, event: FlowEvent, illegal: IllegalEvent) -> None:
        """A worker that says what it may not say now has broken the protocol. Anything else is our own defect."""
        if isinstance(event, WorkerChanged) and isinstance(event.event, FROM_WORKER):
            self.broke(event.node, f"sent {type(event.event).__name__!r} while {illegal.state}")
        else:
            self._log.error("an event was not legal and is ignored", event_name=str(event), why=str(illegal))

    @property
    def _callbacks(self) -> Callbacks:
        return Callbacks(
            self._contained(self._spawned),
            self._spawn_failed,
            self._hearing.received,
            self._connection_ended,
            self._contained(self._worker_exited),
        )

    def new_worker(self, node: str) -> WorkerProcess:
        """What is to be the process of ``node`` from now on."""
        services = self._services
        worker = self.workers[node] = WorkerProcess(
            services.loop,
            self.name,
            node,
            services.logs,
            self._callbacks,
            services.sandboxes,
            self.executor.planned(node)[0].manifest.resource_claims,
            services.max_frame,
        )
        return worker

    # -- roll-outs -----------------------------------------------------------------------------------------

    def roll_out(self, rollout: Rollout) -> None:
        """Begin; the one before is over."""
        self.rollout = rollout
        rollout.begin()

    def revise(self, plan: Plan, change: Change) -> None:
        """From now on it is the flow of ``plan``, which differs by ``change``: for who is born, and for who asks."""
        self.executor.revise(change.named("removed"))
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
            self.dispatch(core.SuccessorGiven(node))
            return
        worker.incarnation = self.machine.workers[node].incarnation + 1
        self.workers[node] = worker
        worker.change_hands(self._callbacks)
        self.lives.intend({node: worker.incarnation})
        self.lives.born(node, worker.pid)
        self.keep()
        self.news.spawned(node, worker.pid)
        self.dispatch(core.SuccessorGiven(node, worker.pid))

    def announce_relinked(self) -> None:
        """Successors that no producer has to be linked to any more may start."""
        if not self.machine.restarts or not self.machine.count(WorkerState.READY):
            return
        for node, subject in tuple(self.machine.workers.items()):
            if subject.state is WorkerState.READY and self.wiring.relinked(node):
                self.dispatch(WorkerChanged(node, life.Relinked()))

    def _announce(self, event: WorkerChanged, before: WorkerState) -> None:
        """Starts, faults and ends of workers are for everyone to see."""
        node = event.node
        match event.event:
            case life.ProcessSpawned(pid):
                self.news.spawned(node, pid)
            case life.ProcessNotSpawned(message) if before is not WorkerState.TERMINATING:
                self.news.not_spawned(node, message)
            case life.Faulted() as fault:
                self.news.faulted(node, fault)
            case life.ProcessExited(ended):
                self.news.exited(node, ended, self.last_deaths[node], before, self.workers[node].pid)
            case _:
                pass

    # -- the processes -------------------------------------------------------------------------------------

    def _spawned(self, node: str, pid: int) -> None:
        self.lives.born(node, pid)
        self.keep()
        self.dispatch(WorkerChanged(node, life.ProcessSpawned(pid)))

    def _spawn_failed(self, node: str, message: str) -> None:
        self.dispatch(WorkerChanged(node, life.ProcessNotSpawned(message)))

    def _worker_exited(self, node: str, ended: Exit) -> None:
        if self.home is not None:
            self.home.ended(node, ended)
            return
        silent = self.silent.pop(node, None)
        if silent is not None:
            silent.cancel()
        self._services.bus.drop(self.workers[node])
        self.probes.stop(node)
        death = self.workers[node].death(ended, self.wiring.held(node))
        self.last_deaths[node] = death
        self.taps.gone(node)
        self._services.deaths.add(death)
        incarnation = self.workers[node].incarnation
        self.dispatch(WorkerChanged(node, life.ProcessExited(ended)))
        subject = self.machine.workers.get(node)
        self.lives.gone(node, incarnation, well=subject is None or subject.state is WorkerState.EXITED)

    async def deaths(self) -> dict[str, list[ExitRecord]]:
        """The last exits of each node, of earlier runs of this flow too."""
        nodes = tuple(self.plan.nodes)
        return await self._services.disk.ask(lambda: self._services.deaths.of_all(self.name, nodes))

    def _connection_ended(self, node: str, fault: ChronetixError | None) -> None:
        """Its control socket has ended. If it does not exit by itself now, it can never be told to."""
        if fault is not None:
            self.broke(node, str(fault))
        elif self.workers[node].alive:
            self.watch_silent(node)

    def watch_silent(self, node: str) -> None:
        """Its worker has closed its control socket: it is to exit by itself."""
        self.silent[node] = self._services.loop.call_later(SILENT_EXIT_S, self._went_silent, node)

    def _went_silent(self, node: str) -> None:
        del self.silent[node]
        self.broke(node, "closed its control socket and lives on")

    def broke(self, node: str, what: str) -> None:
        """The worker broke the rules of the wire: nothing it says can be trusted any more, so it is killed."""
        self.dispatch(WorkerChanged(node, life.Faulted("protocol", f"the worker broke the protocol: {what}")))
        self.workers[node].signal(kill=True)

    def _ping(self, node: str, ping: wire.Ping) -> None:
        self.workers[node].send(ping)

    def _hear(self, node: str) -> None:
        self.workers[node].hear()

    def _dead(self, node: str, why: str) -> None:
        """It failed its liveness probe: nothing can be expected of it, so it is killed."""
        self.dispatch(WorkerChanged(node, life.Faulted("liveness", why)))
        self.workers[node].signal(kill=True)

    # -- what its parts see of it --------------------------------------------------------------------------

    def state_of(self, node: str) -> WorkerState:
        """Where the worker of ``node`` is in its life."""
        return self.machine.workers[node].state

    def worker(self, node: str) -> WorkerProcess:
        """The process of ``node``."""
        return self.workers[node]

    def holds(self, node: str, message: wire.Message, descriptors: list[int]) -> bool:
        """What ``node`` said is to be heard later, when all workers are back. Raises ProtocolError."""
        return self.home is not None and self.home.holds(node, message, descriptors)

    def standing(self, node: str) -> WorkerProcess | None:
        """The worker that stands by for ``node``."""
        return self.rollout.standing(node) if self.rollout is not None else None

    def seen(self) -> dict[str, NodeView]:
        """Its nodes as a roll-out sees them."""
        return {node: self._seen(node, subject) for node, subject in self.machine.workers.items()}

    def seen_of(self, node: str) -> NodeView | None:
        """One of them; None when it has no such node."""
        subject = self.machine.workers.get(node)
        return None if subject is None else self._seen(node, subject)

    def _seen(self, node: str, subject: life.WorkerMachine) -> NodeView:
        return NodeView(subject.state, subject.incarnation, self.machine.restart_state.group_of(node) is not None)

    def source(self, node: str) -> Mapping[int, int] | None:
        """What a tap on a route of ``node`` needs of it: its segments; None when it has no memory, or no more."""
        return self.wiring.segments_of(node)

    def _send_to(self, node: str, message: wire.Message, descriptors: Sequence[int]) -> None:
        self.workers[node].send(message, descriptors, give=True)

    def send_wiring(self, messages: Sequence[ToNode]) -> None:
        """Copies of the descriptors travel: ours may be closed before a worker has read what is sent to it. Whoever
        cannot be told for want of descriptors would wait for ever, and is killed."""
        for node, message, descriptors in messages:
            if isinstance(message, wire.Link) and self.machine.workers[node].state is WorkerState.OFFERED:
                self.dispatch(WorkerChanged(node, life.LinkSent()))
            try:
                copies = self.wiring.given(descriptors)
            except OSError as reason:
                self.dispatch(WorkerChanged(node, life.Faulted("wiring", f"no memory could be sent to it: {reason}")))
                self.workers[node].signal(kill=True)
            else:
                self.workers[node].send(message, copies, give=True)


def _now() -> core.ClockAndChance:
    return core.ClockAndChance(time.monotonic_ns(), random.random())


FROM_WORKER = (
    life.Greeted,
    life.Offered,
    life.BecameReady,
    life.HasStarted,
    life.HasFinished,
)
"""Events that are a worker's own words, and that it can say at the wrong time."""
