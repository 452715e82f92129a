"""Runs one flow: feeds events to the core's machine and has its instructions carried out.

A broken rule is a fault of one worker; it ends the flow of this worker and no other. Events that arise while
instructions are carried out (``execute``) wait until those are done. Messages of workers are handled in
``worker_messages``, events are emitted in ``flow_events``, and the hand-over in an upgrade is in ``pack``. These
modules, a roll-out and a recovery know of a flow what their own protocol class names, and do not import this module.
This module has one purpose: the queue of events, and the few ways in which something outside becomes an event. It is
longer than 400 lines because all of these ways end in that queue.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from chronetix.protocol import messages as wire
from chronetix.protocol.errors import ChronetixError, LocalError, error
from chronetixd.core import flow_messages as core
from chronetixd.core import worker as worker_core
from chronetixd.core.change import Change
from chronetixd.core.death import ExitRecord
from chronetixd.core.deliveries import Deliveries
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow.table import handle
from chronetixd.core.flow_messages import FlowEvent, FlowState, StopMode, WorkerChanged
from chronetixd.core.machine import IllegalEvent
from chronetixd.core.rollout_messages import NodeView
from chronetixd.core.wiring.incarnations import LostMemory
from chronetixd.core.worker import Exit, WorkerState
from chronetixd.dataplane.held_frames import HeldFrameWatch, look
from chronetixd.dataplane.recovered import RecoveredMemory
from chronetixd.dataplane.taps import Taps
from chronetixd.dataplane.wiring import FlowWiring, ToNode
from chronetixd.flows.context import Services
from chronetixd.flows.execute import Executor
from chronetixd.flows.flow_events import FlowEvents
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
from chronetixd.store.journal_file import StoredWorker
from chronetixd.workers.process import SILENT_EXIT_S, Callbacks, WorkerProcess

ATTACHED_EXIT_S = 0.5
"""How long after the end of an attached worker's connection its process may take to end, so that its exit is known."""

T = TypeVar("T")


class FlowRun:
    """One submitted flow. ``reason`` tells why it failed, or which nodes had to be killed."""

    def __init__(self, plan: Plan, services: Services, limits: core.Limits) -> None:
        nodes = tuple(plan.nodes)
        edges = tuple((route.source, route.target) for route in plan.data_routes)
        self.plan = plan
        self.name = plan.name
        self.machine = FlowMachine(plan.name, nodes, edges, limits, plan.rules, plan.strategy)
        self.wiring = FlowWiring(nodes, plan.data_routes)
        self.workers: dict[str, WorkerProcess] = {}
        self.taps = Taps(self._send_to, self.source)
        self.flow_events = FlowEvents(services.events, plan.name)
        warn_after_s = services.held_warning_s()
        self.held_frames = HeldFrameWatch(services.loop, warn_after_s, lambda: look(self.wiring), self.flow_events.held)
        self.submitted_unix_ns = self.changed_unix_ns = time.time_ns()
        self.reason = ""
        self.failures = {node: FrameFailures() for node in nodes}
        self.deliveries: defaultdict[str, Deliveries] = defaultdict(Deliveries)
        self.probes = Probes(services.loop, plan.probes, self._ping, self._hear, self._probe_failed)
        self._services = services
        self._log = structlog.get_logger("chronetixd.flow").bind(flow=plan.name)
        self._events: deque[FlowEvent] = deque()
        self._busy = False
        self.last_exits: dict[str, ExitRecord] = {}
        self.restart_timers = RestartTimers(services.loop, nodes, lambda node: self.dispatch(core.NodeDeadline(node)))
        self.silent: dict[str, asyncio.TimerHandle] = {}
        """Nodes whose worker has finished, or closed its control socket, and lives on."""
        self.rollout: Rollout | None = None
        """The last roll-out, which may be under way."""
        self.worker_records = WorkerRecords(services.journal, plan.name)
        self.kept_descriptors = KeptDescriptors(services.store, plan.name)
        self.executor = Executor(self, services)
        self._kept = True
        self.recovery: Recovery | None = None
        """The recovery of workers from the death of an earlier daemon, while it is under way."""
        self._watchers = Watchers(services.loop)
        self._messages = WorkerMessages(
            self,
            services,
            wiring=self.wiring,
            taps=self.taps,
            held_frames=self.held_frames,
            probes=self.probes,
            failures=self.failures,
            flow_events=self.flow_events,
        )

    @property
    def state(self) -> FlowState:
        """The state of the flow."""
        return self.machine.state

    @property
    def pids(self) -> set[int]:
        """The process ids of its workers and standbys that were not reaped."""
        standing = self.rollout.pids if self.rollout is not None else set()
        return {worker.pid for worker in self.workers.values() if worker.alive} | standing

    def launch(self) -> None:
        """Start the flow, which was validated before."""
        self.dispatch(core.Validated())
        self.dispatch(core.Launch())

    def refuse(self, why: str) -> None:
        """Fail the flow, which cannot be launched; nothing of it was started."""
        self.dispatch(core.Refused(why))

    def list_ended(self, state: FlowState, reason: str, changed_unix_ns: int) -> None:
        """Enter ``state``, in which the flow ended under an earlier daemon; it is only listed."""
        self.dispatch(core.Remembered(state))
        self.reason, self.changed_unix_ns = reason, changed_unix_ns
        self.wiring.close()

    def resume(self, lives: Sequence[StoredWorker], kept: Mapping[Key, int], *, whole: bool) -> None:
        """Continue with workers that an earlier daemon has started, as they reattach; ``lives`` are their last records.
        ``kept`` are the descriptors that the service manager has stored for them, all of them if ``whole``; this flow
        owns them now."""
        self.remember(lives)
        self.kept_descriptors = KeptDescriptors(self._services.store, self.name, kept)
        self.recovery = Recovery(
            self._services.loop, self, self.wiring, tuple(self.plan.nodes), lives, RecoveredMemory(kept, whole=whole)
        )
        for node in self.plan.nodes.values():
            self.wiring.know(node.configure)
        self.dispatch(core.Resumed({life.node: life.incarnation for life in lives}, frozenset(self.recovery.finished)))
        self.recovery.begin()

    def remember(self, lives: Sequence[StoredWorker]) -> None:
        """Restore the last records of its workers from the journal."""
        self.worker_records = WorkerRecords(self._services.journal, self.name, lives)

    def recovered(
        self,
        told: list[ToNode],
        lost: LostMemory | None,
        held: Sequence[tuple[str, wire.WireMessage, list[int]]],
        died: Mapping[str, Exit],
        stop: core.StopRequested | None,
    ) -> None:
        """End the recovery, because all workers have reattached or died, and handle everything that was deferred."""
        self.recovery = None
        self.executor.on_bus = True
        living = [node for node, worker in self.workers.items() if worker.alive]
        for node in living:
            self.executor.start_watching(node)
        self.held_frames.start()
        self.keep_descriptors()
        self.send_wiring(told)
        self.flow_events.resumed(len(living), list(died))
        if lost is not None:
            self.dispatch(core.SuccessionFailed(lost.node, lost.what))
        for node, message, descriptors in held:
            self._messages.handle_deferred(node, message, descriptors)
        for node, ended in died.items():
            self._worker_exited(node, ended)
        if not living and not died:
            stop = core.StopRequested(StopMode.NOW)  # all workers had finished before, and only the flow had not ended
        if stop is not None:
            self.dispatch(stop)
        self._watchers.tell()

    def resubscribe(self, node: str) -> None:
        """Subscribe ``node`` to the topics that its manifest names. The worker itself repeats its other
        subscriptions."""
        self._services.bus.subscribe(self.workers[node], self.plan.nodes[node].configure.subscriptions)

    def keep_descriptors(self) -> None:
        """Store with the service manager what a later daemon needs of this flow's memory, before any worker is told of
        new memory. Nothing is stored before the flow runs, because it would be started anew then."""
        survives = self.plan.flow.on_daemon_loss == "survive"
        if survives and self.recovery is None and self.state in (FlowState.RUNNING, FlowState.DRAINING):
            pidfds = {
                Key(node, "pidfd", worker.incarnation): worker.pidfd
                for node, worker in self.workers.items()
                if worker.alive
            }
            kept = self.kept_descriptors.follow(self.wiring.memories() | pidfds)
            if self._kept and not kept:
                self.flow_events.not_kept()
            self._kept = kept

    @property
    def upgrade_blocker(self) -> str:
        """Why the flow cannot be handed over now, as the predicate of a sentence about it; an empty string when it can
        be."""
        if self.recovery is not None:
            return "waits for its workers to reattach after the death of a daemon"
        if self.rollout is not None and not self.rollout.settled:
            return f"is in the middle of roll-out {self.rollout.number}"
        ending = [node for node, worker in self.workers.items() if worker.ending]
        return f"waits for the end of processes that node {ending[0]!r} has started" if ending else ""

    def resume_after_upgrade(self, asked: Collection[str]) -> None:
        """Resume the flow after it was unpacked. ``asked`` are nodes whose process was requested and not spawned."""
        if self.state is FlowState.RUNNING:
            self.held_frames.start()
        for node, subject in self.machine.workers.items():
            if subject.state in (WorkerState.STARTED, WorkerState.DRAINING) and self.workers[node].alive:
                self.probes.start(node)
        again = tuple(node for node in asked if self.machine.workers[node].state is WorkerState.SPAWNING)
        if again:
            self.executor.spawn(again)
        waiting = {node for node in asked if self.machine.workers[node].state is WorkerState.WAITING}
        for node in waiting:
            self.workers[node].await_attach()
        for node in set(asked) - set(again) - waiting:
            self._spawn_failed(node, "the daemon was upgraded before its process was spawned")

    def stop(self, mode: StopMode, drain_ns: int | None = None) -> None:
        """End the flow; does nothing when it has ended."""
        event = core.StopRequested(mode, drain_ns)
        if not self.machine.ended and (self.recovery is None or self.recovery.stop(event)):
            self.dispatch(event)

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` after every change of the flow or of a worker, until the returned function is called."""
        return self._watchers.watch(watcher)

    def notify_watchers(self) -> None:
        """Notify watchers that the routes have changed."""
        self._watchers.tell()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until ``reached()`` is true; it is checked at once and after every change of the flow or of a worker."""
        await self._watchers.until(reached)

    def has_ended(self) -> bool:
        """Return whether the flow has stopped or failed."""
        return self.machine.ended

    def progress(self) -> dict[str, Any]:
        """Return how far the flow has come: its state, and how many of its workers have started."""
        ready = len(self.workers) - self.machine.count(*worker_core.PHASES)
        told = {"flow": self.name, "state": str(self.state), "ready": ready, "total": len(self.plan.nodes)}
        return told | ({"waits_for": self.waits_for} if self.waits_for else {})

    @property
    def waits_for(self) -> str:
        """The reason why requested workers are not spawned, or an empty string."""
        trouble = self._services.launcher.trouble
        if trouble and any(worker.asked and not worker.attached for worker in self.workers.values()):
            return trouble
        waiting = self.attachable
        return (
            f"waiting for attach: {', '.join(waiting)}; chronetixctl describe {self.name} shows how" if waiting else ""
        )

    @property
    def attachable(self) -> dict[str, str]:
        """The nodes that wait for a worker to attach, with the names that it has to give."""
        if not self.machine.count(WorkerState.WAITING):
            return {}
        waiting = [node for node, subject in self.machine.workers.items() if subject.state is WorkerState.WAITING]
        return {node: self.executor.plan_of(node)[0].attach for node in waiting}

    # -- events in, instructions out -----------------------------------------------------------------------

    def dispatch(self, event: FlowEvent) -> None:
        """Give ``event`` to the state machine and carry out the instructions that follow."""
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
                self.handle_defect(defect)

        return call

    def handle_defect(self, defect: Exception) -> None:
        """Collapse the flow, because an exception occurred outside of :meth:`dispatch` while the daemon worked on this
        flow. The exception is raised again if the flow has ended."""
        if self.machine.ended:
            raise defect
        self._collapse(defect)
        self._watchers.tell()

    def _collapse(self, defect: Exception) -> None:
        """Kill the workers and fail the flow after an unexpected exception (lack of memory, a defect), because the
        effects of the interrupted step are not known. Other flows are not affected. If this fails too, the exception
        ends the daemon."""
        self._log.critical("an internal failure: the flow's workers are killed", exc_info=defect)
        self._events.clear()
        if self.recovery is not None:
            self.recovery.abandon()
            self.recovery = None
        living = [node for node, worker in self.workers.items() if worker.exit_pending]
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
        """Handle an event that the state machine refused. A worker's message at the wrong time has broken the protocol;
        any other illegal event is a defect of the daemon."""
        if isinstance(event, WorkerChanged) and isinstance(event.event, FROM_WORKER):
            self.protocol_broken(event.node, f"sent {type(event.event).__name__!r} while {illegal.state}")
        else:
            self._log.error("an event was not legal and is ignored", event_name=str(event), why=str(illegal))

    @property
    def _callbacks(self) -> Callbacks:
        return Callbacks(
            self._contained(self._spawned),
            self._spawn_failed,
            self._messages.received,
            self._connection_ended,
            self._contained(self._worker_exited),
        )

    def new_worker(self, node: str) -> WorkerProcess:
        """Make the object for the next process of ``node``."""
        services = self._services
        plan = self.executor.plan_of(node)[0]
        worker = self.workers[node] = WorkerProcess(
            services.loop,
            self.name,
            node,
            services.logs,
            self._callbacks,
            services.sandboxes,
            plan.manifest.resource_claims,
            self.deliveries[node],
            services.max_frame,
            attached=bool(plan.attach),
        )
        return worker

    def attach(self, node: str, hello: wire.Hello, sock: socket.socket, pid: int, pidfd: int) -> None:
        """Make the process ``pid``, which has sent ``hello`` on ``sock``, the worker of ``node``, which waits for it.
        Takes over the socket and ``pidfd``."""
        worker = self.workers[node]
        worker.attach(sock, pid, pidfd)
        self.worker_records.note_spawned(node, pid, attached=True)
        self.keep_descriptors()
        self.dispatch(WorkerChanged(node, worker_core.Attached(pid)))
        self._messages.received(node, hello, [])
        worker.start_reading()

    # -- roll-outs -----------------------------------------------------------------------------------------

    def roll_out(self, rollout: Rollout) -> None:
        """Begin ``rollout``; the one before must be over."""
        self.rollout = rollout
        rollout.begin()

    def revise(self, plan: Plan, change: Change) -> None:
        """Make the flow that of ``plan``, which differs by ``change``, for workers that are spawned and for clients
        that ask from now on."""
        self.executor.revise(change.named("removed"))
        self.plan = plan
        edges = tuple((route.source, route.target) for route in plan.data_routes)
        self.machine.revise(tuple(plan.nodes), edges, plan.rules, plan.strategy)
        self.probes.revise(plan.probes)
        for node in change.named("added"):
            self.failures[node] = FrameFailures()
            self.restart_timers.add(node)
        told = {node: each.configure for node, each in plan.nodes.items()}
        untold = change.named("added") | change.named("changed") | change.named("removed")
        switched = frozenset(each.name for each in change.routes if each.kind == "changed")
        self.taps.routes_removed({each.name for each in change.routes if each.kind == "removed"})
        self.send_wiring(self.wiring.revise(plan.data_routes, told, untold, switched))

    def take_over(self, node: str, worker: WorkerProcess | None) -> None:
        """Give ``node``, which has no worker, its next one: ``worker``, which has stood by, or a new one if that is
        None."""
        self.restart_timers.restart_planned(node, (), 0, "was replaced by a roll-out")
        if worker is None:
            self.dispatch(core.SuccessorGiven(node))
            return
        worker.incarnation = self.machine.workers[node].incarnation + 1
        self.workers[node] = worker
        worker.set_callbacks(self._callbacks)
        self.worker_records.note_intended({node: worker.incarnation})
        self.worker_records.note_spawned(node, worker.pid)
        self.keep_descriptors()
        self.flow_events.spawned(node, worker.pid)
        self.dispatch(core.SuccessorGiven(node, worker.pid))

    def announce_relinked(self) -> None:
        """Report Relinked for each successor that all of its producers are linked to, so that it may start."""
        if not self.machine.restarts or not self.machine.count(WorkerState.READY):
            return
        for node, subject in tuple(self.machine.workers.items()):
            if subject.state is WorkerState.READY and self.wiring.relinked(node):
                self.dispatch(WorkerChanged(node, worker_core.Relinked()))

    def _announce(self, event: WorkerChanged, before: WorkerState) -> None:
        """Emit the event for a start, a fault or an exit of a worker."""
        node = event.node
        match event.event:
            case worker_core.ProcessSpawned(pid):
                self.flow_events.spawned(node, pid)
            case worker_core.AttachAwaited():
                self.flow_events.waiting(node, self.executor.plan_of(node)[0].attach)
            case worker_core.Attached(pid):
                self.flow_events.attached(node, pid)
            case worker_core.ProcessNotSpawned(message) if before is not WorkerState.TERMINATING:
                self.flow_events.not_spawned(node, message)
            case worker_core.Faulted() as fault:
                self.flow_events.faulted(node, fault)
            case worker_core.ProcessExited(ended):
                self.flow_events.exited(node, ended, self.last_exits[node], before, self.workers[node].pid)
            case _:
                pass

    # -- the processes -------------------------------------------------------------------------------------

    def _spawned(self, node: str, pid: int) -> None:
        self.worker_records.note_spawned(node, pid)
        self.keep_descriptors()
        self.dispatch(WorkerChanged(node, worker_core.ProcessSpawned(pid)))

    def _spawn_failed(self, node: str, message: str) -> None:
        self.dispatch(WorkerChanged(node, worker_core.ProcessNotSpawned(message)))

    def _worker_exited(self, node: str, ended: Exit) -> None:
        if self.recovery is not None:
            self.recovery.ended(node, ended)
            return
        self._expect_nothing(node)
        self._services.bus.drop(self.workers[node])
        self.probes.stop(node)
        death = self.workers[node].exit_record(ended, self.wiring.held_by(node))
        self.last_exits[node] = death
        self.taps.worker_exited(node)
        self._services.exit_records.add(death)
        incarnation = self.workers[node].incarnation
        self._check_finished(node, ended)
        self.dispatch(WorkerChanged(node, worker_core.ProcessExited(ended)))
        subject = self.machine.workers.get(node)
        self.worker_records.note_exited(node, incarnation, well=subject is None or subject.state is WorkerState.EXITED)

    def _check_finished(self, node: str, ended: Exit) -> None:
        """Fault the worker of ``node``, which is gone, if it has said that it had finished and its memory shows that it
        had not. A worker that hands its node over, or whose node was removed, leaves its routes as they are; after a
        failure of the flow, the first cause counts."""
        machine = self.machine
        subject = machine.workers.get(node)
        if subject is None or subject.state is not WorkerState.FINISHED or ended != Exit(code=0):
            return
        if machine.failure is not None or node in machine.leaving | machine.retiring:
            return
        reason = self.wiring.unfinished(node)
        if reason:
            lie = error("claim-refuted", node=node, claim="that it has finished", reason=reason)
            self.dispatch(WorkerChanged(node, worker_core.Faulted(worker_core.CLAIM, lie.message)))

    def peer_accused(self, node: str, message: wire.Accuse) -> None:
        """Fail the flow because ``node`` has given up a route whose peer broke its rules. The peer is charged if the
        memory of the route shows a broken rule, otherwise ``node`` is: no worker can have another one killed by its
        word alone. Nothing is restarted, because the frames of the route are given up. Raises ProtocolError."""
        accused, reason = self.wiring.accused_by(node, message)
        rule = message.rule[:MAX_RULE]
        if reason:
            liar, lie = accused, error("peer-lied", node=accused, route=message.route, finder=node, reason=reason)
        else:
            what = {"node": node, "accused": accused, "route": message.route, "reason": rule}
            liar, lie = node, error("accusation-unproven", **what)
        if self.machine.workers[liar].state in UNFAULTABLE:
            if self.machine.restarts:
                self.dispatch(core.SuccessionFailed(liar, lie.message))
            return
        self.dispatch(WorkerChanged(liar, worker_core.Faulted("protocol", lie.message, final=True)))
        self.workers[liar].signal(kill=True)

    async def exits(self) -> dict[str, list[ExitRecord]]:
        """Return the last exits of each node, including those of earlier runs of this flow."""
        nodes = tuple(self.plan.nodes)
        return await self._services.disk.ask(lambda: self._services.exit_records.of_all(self.name, nodes))

    def _connection_ended(self, node: str, fault: ChronetixError | None) -> None:
        """Handle the end of a worker's control socket. Without one it cannot be told to exit, so it has to exit by
        itself."""
        if isinstance(fault, LocalError):
            self._not_served(node, fault)
        elif fault is not None:
            self.protocol_broken(node, str(fault))
        elif self.workers[node].attached and self.machine.workers[node].finished:
            self.workers[node].release()
        elif self.workers[node].alive:
            self.watch_silent(node)

    def watch_silent(self, node: str) -> None:
        """Arm the time in which the worker of ``node`` has to exit by itself, after it has closed its control
        socket. An attached worker has ended then, and has the time to tell its exit."""
        self._expect_nothing(node)
        within_s = ATTACHED_EXIT_S if self.workers[node].attached else SILENT_EXIT_S
        self.silent[node] = self._services.loop.call_later(within_s, self._went_silent, node)

    def watch_end(self, node: str) -> None:
        """Arm the time in which the process of ``node``, which has finished, has to end. A process that hangs says so
        itself, much earlier."""
        self._expect_nothing(node)
        within_s = SILENT_EXIT_S + self.machine.limits.last_ns / 1e9
        self.silent[node] = self._services.loop.call_later(within_s, self._went_silent, node)

    def _expect_nothing(self, node: str) -> None:
        silent = self.silent.pop(node, None)
        if silent is not None:
            silent.cancel()

    def _went_silent(self, node: str) -> None:
        del self.silent[node]
        if self.workers[node].attached:
            self.workers[node].release()
            return
        finished = self.machine.workers[node].finished
        self.protocol_broken(node, "finished and lives on" if finished else "closed its control socket and lives on")

    def protocol_broken(self, node: str, what: str) -> None:
        """Fault and kill the worker of ``node``: it broke the protocol, so that no further message of it can be
        trusted."""
        self.dispatch(WorkerChanged(node, worker_core.Faulted("protocol", f"the worker broke the protocol: {what}")))
        self.workers[node].signal(kill=True)

    def _not_served(self, node: str, why: LocalError) -> None:
        """Fault and kill the worker of ``node``, of which a message is lost. The cause is the daemon, which for example
        had no descriptor left."""
        self.dispatch(WorkerChanged(node, worker_core.Faulted("daemon", f"could not be served: {why}. {why.hint}")))
        self.workers[node].signal(kill=True)

    def _ping(self, node: str, ping: wire.Ping) -> None:
        self.workers[node].send(ping)

    def _hear(self, node: str) -> None:
        self.workers[node].read_arrived()

    def _probe_failed(self, node: str, why: str) -> None:
        """Fault and kill the worker of ``node``, which failed its liveness probe."""
        self.dispatch(WorkerChanged(node, worker_core.Faulted("liveness", why)))
        self.workers[node].signal(kill=True)

    # -- for its parts: recovery, roll-out, messages, taps -------------------------------------------------

    def state_of(self, node: str) -> WorkerState:
        """Return the state of the worker of ``node``."""
        return self.machine.workers[node].state

    def worker(self, node: str) -> WorkerProcess:
        """Return the process of ``node``."""
        return self.workers[node]

    def defers(self, node: str, message: wire.WireMessage, descriptors: list[int]) -> bool:
        """Defer ``message`` of ``node`` if it can only be handled after the recovery. Raises ProtocolError."""
        return self.recovery is not None and self.recovery.defers(node, message, descriptors)

    def standby_worker(self, node: str) -> WorkerProcess | None:
        """Return the worker that stands by for ``node``, or None."""
        return self.rollout.standby_worker(node) if self.rollout is not None else None

    def node_views(self) -> dict[str, NodeView]:
        """Return the present state of all nodes, for a roll-out."""
        return {node: self._seen(node, subject) for node, subject in self.machine.workers.items()}

    def node_view(self, node: str) -> NodeView | None:
        """Return the present state of ``node``; None when the flow has no such node."""
        subject = self.machine.workers.get(node)
        return None if subject is None else self._seen(node, subject)

    def _seen(self, node: str, subject: worker_core.WorkerMachine) -> NodeView:
        return NodeView(subject.state, subject.incarnation, self.machine.restart_state.group_of(node) is not None)

    def source(self, node: str) -> Mapping[int, int] | None:
        """Return the segments of ``node``, for a tap on one of its outputs; None when it has no memory."""
        return self.wiring.segments_of(node)

    def _send_to(self, node: str, message: wire.WireMessage, descriptors: Sequence[int]) -> None:
        self.workers[node].send(message, descriptors, give=True)

    def send_wiring(self, messages: Sequence[ToNode]) -> None:
        """Send workers messages about their routes, with copies of the descriptors: the daemon may close its own before
        a worker has read the message. A worker for which no copies can be made would wait for ever, and is killed."""
        for node, message, descriptors in messages:
            if isinstance(message, wire.Link) and self.machine.workers[node].state is WorkerState.OFFERED:
                self.dispatch(WorkerChanged(node, worker_core.LinkSent()))
            try:
                copies = self.wiring.sendable(descriptors)
            except OSError as reason:
                self.dispatch(
                    WorkerChanged(node, worker_core.Faulted("wiring", f"no memory could be sent to it: {reason}"))
                )
                self.workers[node].signal(kill=True)
            else:
                self.workers[node].send(message, copies, give=True)


def _now() -> core.ClockAndChance:
    return core.ClockAndChance(time.monotonic_ns(), random.random())


MAX_RULE = 1024
"""Characters that are kept of what a worker says about a peer."""

UNFAULTABLE = worker_core.GONE | {WorkerState.SPAWNING, WorkerState.RESTARTING, WorkerState.TERMINATING}
"""States of a worker that cannot be faulted: it is gone, is not there yet, or is being ended."""

FROM_WORKER = (
    worker_core.Greeted,
    worker_core.Offered,
    worker_core.BecameReady,
    worker_core.HasStarted,
    worker_core.HasFinished,
)
"""Events that stem from messages of a worker, which it can send at the wrong time."""
