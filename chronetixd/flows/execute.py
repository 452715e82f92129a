"""Carries out what a flow's machine orders: workers are born, configured, started, told, signalled and let go.

What takes a thousand workers is done one after another, with turns for everybody else. Nothing is decided here; what
comes of an order is told to the flow as an event, and waits until the orders that there are have been carried out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from chronetix import shm
from chronetix.protocol import messages as wire
from chronetixd.core import flow_messages as core
from chronetixd.core import worker as life
from chronetixd.core.death import ExitRecord
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow_messages import FlowEvent, FlowState, Instruction, WorkerChanged
from chronetixd.core.reason import reason
from chronetixd.core.wiring.incarnations import LostMemory
from chronetixd.core.worker import WorkerState
from chronetixd.dataplane import shm_support
from chronetixd.dataplane.held_frames import HeldFrameWatch
from chronetixd.dataplane.taps import Taps
from chronetixd.dataplane.wiring import ToNode, Wiring
from chronetixd.flows.context import Services
from chronetixd.flows.flow_events import News
from chronetixd.flows.frame_failures import FrameFailures
from chronetixd.flows.liveness import Probes
from chronetixd.flows.plan import NodePlan, Plan
from chronetixd.flows.restart_timers import RestartTimers
from chronetixd.flows.worker_records import WorkerRecords
from chronetixd.loop import closing
from chronetixd.loop.alarm import due_ns, left_s
from chronetixd.store.descriptor_names import KeptDescriptors
from chronetixd.workers.process import WorkerProcess


class Run(Protocol):
    """The flow whose orders are carried out."""

    name: str
    plan: Plan
    machine: FlowMachine
    """Looked at; events go to :meth:`dispatch`."""
    wiring: Wiring
    workers: dict[str, WorkerProcess]
    taps: Taps
    news: News
    held_frames: HeldFrameWatch
    failures: dict[str, FrameFailures]
    probes: Probes
    revivals: RestartTimers
    lives: WorkerRecords
    keeping: KeptDescriptors
    last_deaths: dict[str, ExitRecord]
    reason: str
    changed_unix_ns: int

    @property
    def waits_for(self) -> str:
        """What keeps workers from being born that were asked for."""

    def dispatch(self, event: FlowEvent) -> None:
        """Something has happened."""

    def keep(self) -> None:
        """Have the supervisor keep what is new."""

    def send_wiring(self, messages: Sequence[ToNode]) -> None:
        """Tell workers about their routes."""

    def announce_relinked(self) -> None:
        """Successors that no producer has to be linked to any more may start."""

    def new_worker(self, node: str) -> WorkerProcess:
        """What is to be the process of ``node`` from now on."""

    def standing(self, node: str) -> WorkerProcess | None:
        """The worker that stands by for ``node``."""


class Executor:
    """For ``run``."""

    def __init__(self, run: Run, services: Services) -> None:
        self._run = run
        self._services = services
        self._deadline: asyncio.TimerHandle | None = None
        self._delayed_by = ""
        """What its workers waited for when a deadline passed."""
        self._former: dict[str, tuple[NodePlan, str]] = {}
        """Nodes that the flow has no more, until their worker is gone: how they were to be run, and where."""
        self._handovers: dict[str, Any] = {}
        """Results of workers that have left, for those that take over."""
        self.on_bus = False
        """Its workers were put on the bus, all that there were."""

    @property
    def deadline_ns(self) -> int | None:
        """When the armed deadline is due."""
        return None if self._deadline is None else due_ns(self._services.loop, self._deadline)

    def arm(self, due_ns: int) -> None:
        """The deadline that an earlier image of the daemon has armed."""
        self._deadline = self._services.loop.call_later(left_s(due_ns), self._deadline_passed)

    def revise(self, removed: Iterable[str]) -> None:
        """The flow is about to have these nodes no more."""
        plan = self._run.plan
        self._former |= {node: (plan.nodes[node], plan.base_dir) for node in removed}

    def carry_out(self, instruction: Instruction) -> None:
        """Do it, as far as that goes at once."""
        match instruction:
            case core.RequestSpawn(nodes):
                self.spawn(nodes)
            case core.SendConfigure(node):
                self._configure(node)
            case core.LinkSuccessor(node):
                self._run.send_wiring(self._run.wiring.relink(node))
                self._run.announce_relinked()
            case core.SendStart(nodes):
                self._start(nodes)
            case core.SendDrain(nodes):
                self._each(nodes, self._drain)
            case core.SendLeave(node):
                self._leave(node)
            case core.WorkerLeft(node):
                self._handovers[node] = self._run.machine.workers[node].result
            case core.NodeRemoved(node):
                self._removed(node)
            case core.Signal(nodes, kill):
                self._each(nodes, lambda worker: worker.signal(kill=kill))
            case core.WakePeers(node):
                self._after_death(node, self._run.wiring.gone)
            case core.PrepareSuccessor(node):
                self._after_death(node, self._run.wiring.succeeded)
            case core.Restarting(node):
                self._run.revivals.planned(node, instruction.restart_group, instruction.after_ns, instruction.reason)
                self._run.news.restarting(instruction, self._run.machine.restart_state.rule(node))
            case core.Restarted(node):
                self._run.revivals.back(node)
                self.begin_watching(node)
                subject = self._run.machine.workers[node]
                reason = self._run.revivals[node].last_reason
                self._run.news.restarted(node, reason, subject.incarnation, self._run.workers[node].pid)
            case core.ArmNodeDeadline(node, after_ns):
                self._run.revivals.arm(node, after_ns)
            case core.ArmDeadline(_, after_ns):
                self._disarm()
                self._deadline = self._services.loop.call_later(after_ns / 1e9, self._deadline_passed)
            case core.DisarmDeadline():
                self._disarm()
            case core.EnterState(state):
                self._entered(state)

    def _each(self, nodes: Iterable[str], act: Callable[[WorkerProcess], None]) -> None:
        """Have all of these workers told: one now, and a thousand with turns for everybody else."""
        for worker in [self._run.workers[node] for node in nodes]:
            self._services.sandboxes.turns.add(partial(act, worker))

    def _drain(self, worker: WorkerProcess) -> None:
        self._services.bus.stop_timers(worker)
        worker.send(wire.Drain())

    def spawn(self, nodes: tuple[str, ...]) -> None:
        """Ask for the next process of each of these."""
        services = self._services
        self._run.lives.intend({node: self._run.machine.workers[node].incarnation for node in nodes})
        for node in nodes:
            worker = self._run.new_worker(node)
            worker.incarnation = self._run.machine.workers[node].incarnation
            worker.to_come = True
            services.sandboxes.turns.add(partial(self._spawn_one, worker))

    def _spawn_one(self, worker: WorkerProcess) -> None:
        """It is its turn; it may have been told to end before."""
        node = worker.node
        if self._run.workers.get(node) is not worker or not worker.to_come:
            return
        if self._run.machine.workers[node].state is not WorkerState.SPAWNING:
            self._not_spawned(worker, "it was to end before it was asked for")
            return
        plan, base_dir = self.planned(node)
        try:
            self._services.start(worker, plan.argv, base_dir)
        except OSError as refused:
            self._not_spawned(worker, str(refused))

    def _not_spawned(self, worker: WorkerProcess, why: str) -> None:
        worker.to_come = False
        self._run.dispatch(WorkerChanged(worker.node, life.ProcessNotSpawned(why)))

    def _configure(self, node: str) -> None:
        message = self._run.wiring.configure(node, self.planned(node)[0].configure)
        if message.on_daemon_loss == "survive":
            message = msgspec.structs.replace(
                message, socket=self._services.socket(), token=self._run.lives.token(node)
            )
        self._run.workers[node].send(message)

    def _start(self, nodes: tuple[str, ...]) -> None:
        """All are ready: first put everyone on the bus, so that nothing published from now on is missed."""
        for node in nodes if self.on_bus else self._run.workers:
            self._services.bus.subscribe(self._run.workers[node], self.planned(node)[0].configure.subscriptions)
        self.on_bus = True
        starting = {node: self._run.workers[node] for node in nodes}
        if self._run.plan.flow.on_daemon_loss == "survive":
            # From then on they may outlive us: that they were born has to be known.
            self._services.journal.when_written(lambda: self._send_start(starting))
        else:
            self._send_start(starting)

    def _send_start(self, starting: Mapping[str, WorkerProcess]) -> None:
        """To those that are to start still: the disk may have taken long."""
        workers = self._run.machine.workers
        left = [
            node
            for node, worker in starting.items()
            if self._run.workers.get(node) is worker and node in workers and workers[node].state is WorkerState.STARTING
        ]
        for node in left:
            self._run.wiring.started(node)
        self._run.keep()
        self._each(left, self._tell_start)

    def _tell_start(self, worker: WorkerProcess) -> None:
        worker.send(wire.Start(handover=self._handovers.pop(worker.node, None)))

    def planned(self, node: str) -> tuple[NodePlan, str]:
        """How ``node`` is run, and where; also one that the flow has no more."""
        found = self._run.plan.nodes.get(node)
        return (found, self._run.plan.base_dir) if found is not None else self._former[node]

    def _leave(self, node: str) -> None:
        """What comes for it on the bus from now on is for its successor."""
        self._services.bus.hand_over(
            self._run.workers[node], self._run.standing(node), self._run.plan.nodes[node].configure.subscriptions
        )
        self._run.probes.stop(node)
        self._run.workers[node].send(wire.Leave())

    def _removed(self, node: str) -> None:
        del self._run.workers[node]
        self._run.failures.pop(node, None)
        self._former.pop(node, None)
        self._run.revivals.forget(node)

    def _after_death(self, node: str, settle: Callable[[str], list[ToNode]]) -> None:
        """Its routes go on without it, or wait for its successor, unless it left something that none can go on from."""
        try:
            self._run.send_wiring(settle(node))
            self._run.keep()
        except LostMemory as lost:
            self._run.dispatch(core.SuccessionFailed(lost.node, lost.what))
        except (shm.PeerFault, OSError, MemoryError) as fault:
            self._run.dispatch(core.SuccessionFailed(node, f"left a ring that nobody can go on from: {fault}"))
        self._run.announce_relinked()

    def _entered(self, state: FlowState) -> None:
        self._run.changed_unix_ns = time.time_ns()
        if state is FlowState.RUNNING:
            self._run.keep()
            self._run.held_frames.start()
            for node, worker in self._run.workers.items():
                if worker.alive:
                    self.begin_watching(node)
        if self._run.machine.ended:
            self._release()
        failure = self._run.machine.failure
        why = self._run.reason or (f"node {failure.node!r} {failure.message}" if failure else "")
        self._run.news.entered(state, why, len(self._run.plan.nodes))

    def begin_watching(self, node: str) -> None:
        """Its worker runs: timers tick, and it is asked whether it lives."""
        timers = self.planned(node)[0].configure.timers
        if timers:
            self._services.bus.start_timers(self._run.workers[node], timers)
        self._run.probes.start(node)

    def _release(self) -> None:
        """The last worker is gone: say why it ended, and give everything back."""
        failure = self._run.machine.failure
        if failure is not None:
            worker = self._run.workers.get(failure.node)
            subject = self._run.machine.workers.get(failure.node)
            ended, tail = subject.exit if subject else None, worker.stderr_tail if worker else []
            self._run.reason = reason(failure, ended, tail, self._run.last_deaths.get(failure.node))
            self._run.reason += f"; {self._delayed_by}" if self._delayed_by else ""
        elif self._run.machine.killed:
            self._run.reason = f"killed: {', '.join(self._run.machine.killed)}"
        for node in tuple(self._run.workers):
            if node not in self._run.plan.nodes:
                self._removed(node)
        self._run.revivals.close()
        self._run.taps.end()
        self._run.held_frames.stop()
        self._run.keeping.close()
        self._run.wiring.close(closing.beside)
        shm_support.flow_ended()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _deadline_passed(self) -> None:
        self._deadline = None
        self._delayed_by = self._run.waits_for
        self._run.dispatch(core.DeadlinePassed())
