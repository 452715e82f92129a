"""The shell of one flow: gives the core's machine its events and carries out its instructions.

Everything a worker says comes in here; what breaks the rules becomes that worker's fault and ends its flow, nobody
else's. Events that arise while instructions are carried out wait until those are done.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

import shm
from chronetixd import memory, rewiring
from chronetixd.bus import Bus
from chronetixd.core import flow_words as core
from chronetixd.core import worker as life
from chronetixd.core.death import Death
from chronetixd.core.flow import Flow
from chronetixd.core.flow_words import FlowEvent, FlowState, Instruction, NodeEvent, StopMode
from chronetixd.core.held import Held
from chronetixd.core.machine import IllegalEvent
from chronetixd.core.reason import explain, reason
from chronetixd.core.worker import Exit, WorkerState
from chronetixd.deaths import Deaths
from chronetixd.events import Events
from chronetixd.failures import FrameFailures
from chronetixd.heldframes import HeldFrames
from chronetixd.homecoming import Homecoming
from chronetixd.journal import Journal, StoredLife
from chronetixd.launch import Launcher
from chronetixd.lives import Lives
from chronetixd.logs import Logs
from chronetixd.nursery import Nursery
from chronetixd.plan import Plan
from chronetixd.probes import Probes
from chronetixd.revivals import Revivals
from chronetixd.spares import Spares
from chronetixd.taps import Source, Taps
from chronetixd.wiring import ToNode, Wiring
from chronetixd.workerproc import Callbacks, WorkerProcess
from protocol import handshake
from protocol import messages as wire
from protocol.errors import ChronetixError, error
from protocol.framing import type_of

MAX_FAULT_TEXT = 4 * 1024
MAX_TRACEBACK = 64 * 1024
"""Characters that are kept of a worker's fault: it goes into events, lists and descriptions."""

SILENT_EXIT_S = 2.0
"""How long a worker may live on after it closed its control socket."""


@dataclass(frozen=True, slots=True)
class Services:
    """What every flow shares."""

    loop: asyncio.AbstractEventLoop
    launcher: Launcher
    spares: Spares
    nursery: Nursery
    bus: Bus
    events: Events
    logs: Logs
    deaths: Deaths
    journal: Journal
    socket: Callable[[], str]
    """Path of the control socket."""
    daemon: str
    max_frame: int = wire.MAX_FRAME
    held_warning_s: float = 30.0


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
        self.taps = Taps(self._send_to, self._source)
        self.held_frames = HeldFrames(services.loop, services.held_warning_s, self._look_at_held, self._warn_of_held)
        self.submitted_unix_ns = self.changed_unix_ns = time.time_ns()
        self.reason = ""
        self.failures = {node: FrameFailures() for node in nodes}
        self._probes = Probes(services.loop, plan.probes, self._ping, self._dead)
        self._services = services
        self._log = structlog.get_logger("chronetixd.flow").bind(flow=plan.name)
        self._events: deque[FlowEvent] = deque()
        self._busy = False
        self._deadline: asyncio.TimerHandle | None = None
        self._last_deaths: dict[str, Death] = {}
        self.revivals = Revivals(services.loop, nodes, lambda node: self.dispatch(core.NodeDeadline(node)))
        self._silent: dict[str, asyncio.TimerHandle] = {}
        self._on_bus = False
        self._lives = Lives(services.journal, plan.name)
        self.home: Homecoming | None = None
        """Its workers are on their way back from the death of a daemon."""
        self._watchers: dict[object, Callable[[], None]] = {}

    @property
    def state(self) -> FlowState:
        """Where it is in its life."""
        return self.machine.state

    @property
    def pids(self) -> set[int]:
        """Processes of its workers that were not reaped."""
        return {worker.pid for worker in self.workers.values() if worker.alive}

    def launch(self) -> None:
        """Validated already; start it."""
        self.dispatch(core.Validated())
        self.dispatch(core.Launch())

    def refuse(self, why: str) -> None:
        """It cannot be launched: it has failed, and nothing of it was started."""
        self.dispatch(core.Refused(why))

    def rest(self, state: FlowState, reason: str, changed_unix_ns: int) -> None:
        """It has ended under an earlier daemon, in ``state``; it is only listed."""
        self.machine.state = state
        self.reason, self.changed_unix_ns = reason, changed_unix_ns
        self.wiring.close()

    def resume(self, lives: Sequence[StoredLife], kept: Mapping[rewiring.Key, int]) -> None:
        """It runs under workers that an earlier daemon has started, and whose last ``lives`` these are: go on with
        them as they come back. ``kept`` is memory of theirs; the descriptors stay the caller's."""
        self._lives = Lives(self._services.journal, self.name, lives)
        self.home = Homecoming(self._services.loop, self, lives, kept)
        for node in self.plan.nodes.values():
            self.wiring.know(node.configure)
        self.machine.resume({life.node: life.incarnation for life in lives}, self.home.over)
        self.home.begin()

    def came_home(
        self,
        told: list[ToNode],
        lost: rewiring.LostMemory | None,
        died: Mapping[str, Exit],
        stop: core.StopRequested | None,
    ) -> None:
        """All workers are back, or dead: what has happened meanwhile happens now."""
        self.home = None
        self._on_bus = True
        living = {node: worker for node, worker in self.workers.items() if worker.alive}
        for node, worker in living.items():
            self._services.bus.subscribe(worker, self.plan.nodes[node].configure.subscriptions)
            self._begin_watching(node)
        self._watch_held()
        self._send_wiring(told)
        message = f"{len(living)} workers have outlived the daemon, {len(died)} have died meanwhile"
        self._services.events.emit("flow-resumed", flow=self.name, message=message, died=sorted(died))
        if lost is not None:
            self.dispatch(core.NoSuccession(lost.node, lost.what))
        for node, ended in died.items():
            self._worker_exited(node, ended)
        if stop is not None:
            self.dispatch(stop)
        self._tell_watchers()

    def stop(self, mode: StopMode, drain_ns: int | None = None) -> None:
        """Ask it to end; nothing when it has ended."""
        event = core.StopRequested(mode, drain_ns)
        if not self.machine.ended and (self.home is None or self.home.stop(event)):
            self.dispatch(event)

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` after every change of the flow or of a worker, until the returned function is called."""
        key = object()
        self._watchers[key] = watcher
        return lambda: (self._watchers.pop(key, None), None)[1]

    def progress(self) -> dict[str, Any]:
        """How far it has come: state, workers that have started, workers."""
        ready = len(self.workers) - self.machine.count(*life.PHASES)
        return {"flow": self.name, "state": str(self.state), "ready": ready, "total": len(self.plan.nodes)}

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
        finally:
            self._busy = False
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        for watcher in tuple(self._watchers.values()):
            watcher()

    def _step(self, event: FlowEvent) -> None:
        subject = self.machine.workers.get(event.node) if isinstance(event, NodeEvent) else None
        before = subject.state if subject is not None else WorkerState.SPAWNING
        try:
            instructions = self.machine.handle(event, core.Moment(time.monotonic_ns(), random.random()))
        except IllegalEvent as illegal:
            self._illegal(event, illegal)
            return
        if isinstance(event, NodeEvent):
            self._announce_worker(event, before)
        for instruction in instructions:
            self._carry_out(instruction)

    def _illegal(self, event: FlowEvent, illegal: IllegalEvent) -> None:
        """A worker that says what it may not say now has broken the protocol. Anything else is our own defect."""
        if isinstance(event, NodeEvent) and isinstance(event.event, FROM_WORKER):
            self._broke(event.node, f"sent {type(event.event).__name__!r} while {illegal.state}")
        else:
            self._log.error("an event was not legal and is ignored", event_name=str(event), why=str(illegal))

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case core.Spawn(nodes):
                self._spawn(nodes)
            case core.Configure(node):
                self._configure(node)
            case core.Relink(node):
                self._send_wiring(self.wiring.relink(node))
                self._announce_relinked()
            case core.Start(nodes):
                self._start(nodes)
            case core.Drain(nodes):
                for node in nodes:
                    self._services.bus.stop_timers(self.workers[node])
                    self.workers[node].send(wire.Drain())
            case core.Signal(nodes, kill):
                for node in nodes:
                    self.workers[node].signal(kill=kill)
            case core.WakePeers(node):
                self._send_wiring(self.wiring.gone(node))
                self._announce_relinked()
            case core.Succeed(node):
                self._succeed(node)
            case core.Restarting():
                self._restarting(instruction)
            case core.Restarted(node):
                self._restarted(node)
            case core.ArmNode(node, after_ns):
                self.revivals.arm(node, after_ns)
            case core.Arm(_, after_ns):
                self._disarm()
                self._deadline = self._services.loop.call_later(after_ns / 1e9, self._deadline_passed)
            case core.Disarm():
                self._disarm()
            case core.Enter(state):
                self._entered(state)

    def new_worker(self, node: str) -> WorkerProcess:
        """What is to be the process of ``node`` from now on."""
        services = self._services
        worker = self.workers[node] = WorkerProcess(
            services.loop,
            self.name,
            node,
            services.logs,
            Callbacks(self._spawned, self._spawn_failed, self._received, self._connection_ended, self._worker_exited),
            services.nursery,
            self.plan.nodes[node].manifest.resource_claims,
            services.max_frame,
        )
        return worker

    def _spawn(self, nodes: tuple[str, ...]) -> None:
        services = self._services
        self._lives.intend({node: self.machine.workers[node].incarnation for node in nodes})
        for node in nodes:
            worker = self.new_worker(node)
            worker.incarnation = self.machine.workers[node].incarnation
            env = {"CHRONETIX_FLOW": self.name, "CHRONETIX_NODE": node}
            argv = self.plan.nodes[node].argv
            spare = None if argv else services.spares.take()
            try:
                if spare is not None:
                    worker.adopt(spare, env, self.plan.base_dir)
                else:
                    worker.spawn(services.launcher, argv, env, self.plan.base_dir)
            except OSError as refused:
                if spare is not None:
                    services.spares.give_back(spare)
                self.dispatch(NodeEvent(node, life.SpawnFailed(str(refused))))

    def _configure(self, node: str) -> None:
        message = self.wiring.configure(node, self.plan.nodes[node].configure)
        if message.on_daemon_loss == "survive":
            message = msgspec.structs.replace(message, socket=self._services.socket(), token=self._lives.token(node))
        self.workers[node].send(message)

    def _start(self, nodes: tuple[str, ...]) -> None:
        """All are ready: first put everyone on the bus, so that nothing published from now on is missed."""
        for node in nodes if self._on_bus else self.workers:
            self._services.bus.subscribe(self.workers[node], self.plan.nodes[node].configure.subscriptions)
        self._on_bus = True
        for node in nodes:
            self.wiring.started(node)
            self.workers[node].send(wire.Start())

    # -- restarts ------------------------------------------------------------------------------------------

    def _succeed(self, node: str) -> None:
        """Its routes wait for its successor, unless it left something that none can go on from."""
        try:
            self._send_wiring(self.wiring.succeeded(node))
        except (shm.PeerFault, OSError) as fault:
            self.dispatch(core.NoSuccession(node, f"left a ring that no successor can go on from: {fault}"))
        self._announce_relinked()

    def _restarting(self, plan: core.Restarting) -> None:
        self.revivals.planned(plan.node, plan.kin, plan.after_ns, plan.reason)
        rule = self.machine.revival.rule(plan.node)
        message = f"it {plan.reason}; restart {plan.attempt} of at most {rule.max} within {rule.window_ns / 1e9:g} s"
        self._services.events.emit(
            "node-restarting",
            flow=self.name,
            node=plan.node,
            message=message,
            reason=plan.reason,
            attempt=plan.attempt,
            after_ms=plan.after_ns / 1e6,
            kin=list(plan.kin),
        )

    def _restarted(self, node: str) -> None:
        self.revivals.back(node)
        self._begin_watching(node)
        worker, reason = self.workers[node], self.revivals[node].last_reason
        incarnation = self.machine.workers[node].incarnation
        self._services.events.emit(
            "node-restarted",
            flow=self.name,
            node=node,
            message=f"it runs again, in incarnation {incarnation}",
            reason=reason,
            incarnation=incarnation,
            worker=worker.pid,
        )

    def _announce_relinked(self) -> None:
        """Successors that no producer has to be linked to any more may start."""
        for node, subject in self.machine.workers.items():
            if subject.state is WorkerState.READY and subject.incarnation and self.wiring.relinked(node):
                self.dispatch(NodeEvent(node, life.Relinked()))

    def _entered(self, state: FlowState) -> None:
        self.changed_unix_ns = time.time_ns()
        if state is FlowState.RUNNING:
            self._watch_held()
            for node, worker in self.workers.items():
                if worker.alive:
                    self._begin_watching(node)
        if self.machine.ended:
            self._release()
        failure = self.machine.failure
        why = self.reason or (f"node {failure.node!r} {failure.message}" if failure else "")
        self._services.events.emit(f"flow-{state}", flow=self.name, message=why, nodes=len(self.plan.nodes))

    def _begin_watching(self, node: str) -> None:
        """Its worker runs: timers tick, and it is asked whether it lives."""
        timers = self.plan.nodes[node].configure.timers
        if timers:
            self._services.bus.start_timers(self.workers[node], timers)
        self._probes.start(node)

    def _release(self) -> None:
        """The last worker is gone: say why it ended, and give everything back."""
        failure = self.machine.failure
        if failure is not None:
            worker = self.workers.get(failure.node)
            subject = self.machine.workers.get(failure.node)
            ended, tail = subject.exit if subject else None, worker.stderr_tail if worker else []
            self.reason = reason(failure, ended, tail, self._last_deaths.get(failure.node))
        elif self.machine.killed:
            self.reason = f"killed: {', '.join(self.machine.killed)}"
        self.revivals.close()
        self.taps.end()
        self.held_frames.stop()
        self.wiring.close()
        memory.flow_ended()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _deadline_passed(self) -> None:
        self._deadline = None
        self.dispatch(core.DeadlinePassed())

    def _announce_worker(self, event: NodeEvent, before: WorkerState) -> None:
        """Starts, faults and ends of workers are events for everyone to see."""
        emit = self._services.events.emit
        match event.event:
            case life.Spawned(pid):
                emit("worker-spawned", flow=self.name, node=event.node, worker=pid)
            case life.Faulted(phase, message):
                emit("worker-faulted", flow=self.name, node=event.node, message=message, phase=phase)
            case life.SpawnFailed(message):
                emit("worker-failed", flow=self.name, node=event.node, message=message)
            case life.Exited(exit):
                wanted = before is WorkerState.TERMINATING or (before is WorkerState.FINISHED and exit.code == 0)
                kind = "worker-exited" if wanted else "worker-failed"
                worker = self.workers[event.node]
                death = self._last_deaths[event.node]
                message = explain(exit, death)
                emit(kind, flow=self.name, node=event.node, message=message, worker=worker.pid, **death.essence())
            case _:
                pass

    # -- the processes -------------------------------------------------------------------------------------

    def _spawned(self, node: str, pid: int) -> None:
        self._lives.born(node, pid)
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
        self._probes.stop(node)
        death = self.workers[node].death(ended, self.wiring.held(node))
        self._last_deaths[node] = death
        self.taps.gone(node)
        self._services.deaths.add(death)
        self.dispatch(NodeEvent(node, life.Exited(ended)))
        self._lives.gone(node, well=self.machine.workers[node].state is WorkerState.EXITED)

    def deaths(self, node: str) -> list[Death]:
        """The last exits of ``node``, of earlier runs of this flow too."""
        return self._services.deaths.of(self.name, node)

    def _connection_ended(self, node: str, fault: ChronetixError | None) -> None:
        """Its control socket has ended. If it does not exit by itself now, it can never be told to."""
        if fault is not None:
            self._broke(node, str(fault))
        elif self.workers[node].alive:
            self._silent[node] = self._services.loop.call_later(SILENT_EXIT_S, self._went_silent, node)

    def _went_silent(self, node: str) -> None:
        del self._silent[node]
        self._broke(node, "closed its control socket and lives on")

    def _broke(self, node: str, what: str) -> None:
        """The worker broke the rules of the wire: nothing it says can be trusted any more, so it is killed."""
        self.dispatch(NodeEvent(node, life.Faulted("protocol", f"the worker broke the protocol: {what}")))
        self.workers[node].signal(kill=True)

    def _ping(self, node: str, ping: wire.Ping) -> None:
        self.workers[node].send(ping)

    def _dead(self, node: str, why: str) -> None:
        """It failed its liveness probe: nothing can be expected of it, so it is killed."""
        self.dispatch(NodeEvent(node, life.Faulted("liveness", why)))
        self.workers[node].signal(kill=True)

    # -- what workers say ----------------------------------------------------------------------------------

    def _received(self, node: str, message: wire.Message, descriptors: list[int]) -> None:
        if isinstance(message, wire.Hello):
            self._hello(node, message)
            return
        state = self.machine.workers[node].state
        if state in (WorkerState.SPAWNING, WorkerState.GREETING):
            raise error("unexpected-message", type=type_of(message), when="before the hello")
        self._heard(node, message, descriptors)

    def _hello(self, node: str, hello: wire.Hello) -> None:
        reply = handshake.answer(
            hello, daemon=self._services.daemon, roles=("worker",), max_frame=self._services.max_frame
        )
        self.workers[node].send(reply)
        if isinstance(reply, wire.Failure):
            self._broke(node, reply.message)
        else:
            self.dispatch(NodeEvent(node, life.Greeted()))

    def _heard(self, node: str, message: wire.Message, descriptors: list[int]) -> None:
        worker = self.workers[node]
        match message:
            case wire.Offer() if self.taps.offers(message):
                self.taps.offered(node, message, descriptors)
            case wire.Linked(routes=routes) if routes and all(route.startswith("tap/") for route in routes):
                self.taps.linked(node, routes)
            case wire.GaveUp(route=route, waited_ns=waited_ns):
                self._gave_up(node, route, waited_ns)
            case wire.Offer():
                self._offered(node, message, descriptors)
            case wire.Linked():
                self._send_wiring(self.wiring.linked(node, message))
                self._announce_relinked()
            case wire.Drained():
                self.wiring.drained(node, message)
            case wire.Ready():
                self._send_wiring(self.wiring.ready(node))
                self.dispatch(NodeEvent(node, life.BecameReady()))
            case wire.Started():
                self.dispatch(NodeEvent(node, life.HasStarted()))
            case wire.Finished(result=result):
                self.dispatch(NodeEvent(node, life.HasFinished(result)))
            case wire.Fault(phase=phase, error=name, message=text, traceback=trace):
                name, text, trace = name[:MAX_FAULT_TEXT], text[:MAX_FAULT_TEXT], trace[-MAX_TRACEBACK:]
                worker.fault = {"phase": phase, "error": name, "message": text, "traceback": trace}
                consequence = name == "RouteClosed"
                self.dispatch(NodeEvent(node, life.Faulted(phase, f"{name}: {text}", consequence)))
            case wire.Segment():
                self.held_frames.stir()
                self._send_wiring(self.wiring.grow(node, message, descriptors))
                source = self._source(node)
                if source is not None:
                    self.taps.grew(node, message.index, source.segments[message.index])
            case wire.SegmentMapped():
                self._send_wiring(self.wiring.mapped(node, message))
            case wire.SegmentDropped(route=""):
                self._send_wiring(self.wiring.drop(node, message, reuse=not self.taps.listen_to(node)))
            case wire.SegmentDropped():
                self._send_wiring(self.wiring.dropped(node, message))
            case wire.Log(level=level, message=line, unix_ns=at, fields=fields):
                self.held_frames.stir()
                self._services.logs.logged(self.name, node, worker.pid, level, line, at, fields)
            case wire.FrameFailed():
                self._frame_failed(node, message)
            case wire.Pong(progress=steps, busy_ns=busy_ns):
                worker.progress = {"steps": steps, "busy_ns": busy_ns}
                self._probes.answered(node, message)
            case wire.Publish() | wire.Subscribe() | wire.Unsubscribe() | wire.Request() | wire.Reply():
                self.held_frames.stir()
                self._services.bus.handle(worker, message)
            case _:
                raise error("unexpected-message", type=type_of(message), when="after the hello")

    def _frame_failed(self, node: str, failed: wire.FrameFailed) -> None:
        """Counted always; told when a frame was set aside, more seldom the more there are."""
        failures = self.failures[node]
        if failures.count(failed):
            message = f"{failed.error[:MAX_FAULT_TEXT]}: {failed.message[:MAX_FAULT_TEXT]}"
            self._services.events.emit(
                "frame-failed",
                flow=self.name,
                node=node,
                message=message,
                route=failed.route,
                seq=failed.seq,
                attempts=failed.attempts,
                outcome=failed.outcome,
                set_aside=failures.set_aside,
            )

    def _watch_held(self) -> None:
        """A flow without data routes has nothing to look at, and no timer."""
        if self.plan.data_routes:
            self.held_frames.start()

    def _look_at_held(self) -> tuple[list[Held], list[int]]:
        kept: list[Held] = []
        progress: list[int] = []
        for route in self.wiring.routes:
            snapshot = self.wiring.snapshot(route)
            if snapshot is None:
                continue
            progress += (snapshot["committed"], snapshot["returned"])
            held = self.wiring.kept(route) if snapshot["outstanding"] else None
            if held is not None:
                kept.append(Held(route.id, route.target, held[1], held[2], held[0]))
        return kept, progress

    def _warn_of_held(self, held: Held) -> None:
        frames = f"and {held.kept - 1} more " if held.kept > 1 else ""
        self._services.events.emit(
            "frame-held",
            flow=self.name,
            node=held.node,
            message=f"it keeps frame {held.seq} {frames}of route {held.route}; sent {held.age_ns / 1e9:.0f} s ago",
            route=held.route,
            seq=held.seq,
            kept=held.kept,
            age_ns=held.age_ns,
        )

    def _gave_up(self, node: str, route: str, waited_ns: int) -> None:
        """A consumer was too slow for its route's limit: the route is closed, and everybody may know."""
        if not any(each.id == route and each.source == node for each in self.wiring.routes):
            raise error("malformed-message", type="gave-up", reason=f"{route!r} is not an output of node {node!r}")
        text = f"route {route}: no credit came back for {waited_ns // 1_000_000} ms, nothing more is sent there"
        self._services.events.emit(
            "route-given-up", flow=self.name, node=node, message=text, route=route, waited_ns=waited_ns
        )

    def _source(self, node: str) -> Source | None:
        offered = self.wiring.offered_by(node)
        return None if offered is None else Source(*offered)

    def _send_to(self, node: str, message: wire.Message, descriptors: Sequence[int]) -> None:
        self.workers[node].send(message, descriptors, give=True)

    def _offered(self, node: str, offer: wire.Offer, descriptors: list[int]) -> None:
        """Its first memory, or that of an extension; either may be the last thing that somebody waits for."""
        state = self.machine.workers[node].state
        if state is WorkerState.OFFERING or state in LINKED:
            self.wiring.offer(node, offer, descriptors)
        if state not in LINKED:
            self.dispatch(NodeEvent(node, life.Offered()))
        if state is WorkerState.OFFERING or state in LINKED:
            for link in self.wiring.links(node):
                if self.machine.workers[link.node].state is WorkerState.OFFERED:
                    self.dispatch(NodeEvent(link.node, life.LinkSent()))
                self._send_wiring([link])

    def _send_wiring(self, messages: list[ToNode]) -> None:
        """Copies of the descriptors travel: ours may be closed before a worker has read what is sent to it."""
        for node, message, descriptors in messages:
            self.workers[node].send(message, [os.dup(fd) for fd in descriptors], give=True)


LINKED = frozenset(
    {WorkerState.READY, WorkerState.STARTING, WorkerState.STARTED, WorkerState.DRAINING, WorkerState.FINISHED}
)
"""States in which a worker may be extended, and offers what it was asked for."""

FROM_WORKER = (
    life.Greeted,
    life.Offered,
    life.BecameReady,
    life.HasStarted,
    life.HasFinished,
)
"""Events that are a worker's own words, and that it can say at the wrong time."""
