"""Runs one roll-out: shows the present state of the flow to the core's machine and carries out its instructions.

The flow is observed after every change, but never within one: the instructions of the flow's own machine are carried
out first.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from chronetixd.core import flow_messages, rollout_messages
from chronetixd.core import rollout as core
from chronetixd.core.change import Change
from chronetixd.core.deliveries import Deliveries
from chronetixd.core.flow_messages import FlowState
from chronetixd.core.worker import WorkerState
from chronetixd.dataplane.wiring import ToNode
from chronetixd.flows.context import Services
from chronetixd.flows.flow_events import FlowEvents
from chronetixd.flows.plan import Plan
from chronetixd.flows.standby import Standby
from chronetixd.loop.watchers import Watchers
from chronetixd.workers.process import WorkerProcess


class Routes(Protocol):
    """What a roll-out needs of a flow's routes."""

    @property
    def under_way(self) -> Collection[str]:
        """Nodes whose change of routes has begun and not ended."""

    @property
    def clean(self) -> bool:
        """Whether all removed routes are drained."""

    def keep_leaving_workers(self) -> list[ToNode]:
        """Keep the workers that were to leave. Returns the messages that tell them about their inputs."""

    def take_lost(self) -> Mapping[str, int]:
        """Return lost frames by route; each is returned once only."""


class RolloutRun(Protocol):
    """What a roll-out needs of a flow."""

    name: str
    plan: Plan
    flow_events: FlowEvents
    deliveries: defaultdict[str, Deliveries]

    @property
    def state(self) -> FlowState:
        """The state of the flow."""

    @property
    def wiring(self) -> Routes:
        """The routes of the flow."""

    def node_views(self) -> dict[str, rollout_messages.NodeView]:
        """Return the present state of all nodes."""

    def node_view(self, node: str) -> rollout_messages.NodeView | None:
        """Return the present state of ``node``; None when the flow has no such node."""

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` after every change, until the returned function is called."""

    def dispatch(self, event: flow_messages.FlowEvent) -> None:
        """Give ``event`` to the state machine."""

    def handle_defect(self, defect: Exception) -> None:
        """Handle an exception that occurred while the daemon worked on this flow."""

    def revise(self, plan: Plan, change: Change) -> None:
        """Make the flow that of ``plan``."""

    def take_over(self, node: str, worker: WorkerProcess | None) -> None:
        """Give ``node``, which has no worker, its next one: ``worker``, or a new one if that is None."""

    def send_wiring(self, messages: Sequence[ToNode]) -> None:
        """Send workers messages about their routes."""


class Rollout:
    """Makes ``run`` the flow of ``plan``, which differs by ``change``. ``on_commit`` records the commit and
    ``on_revoke`` revokes it; ``on_end`` is called with the final step, and why the roll-out is not done."""

    def __init__(
        self,
        run: RolloutRun,
        services: Services,
        plan: Plan,
        change: Change,
        number: int,
        ready_ns: int,
        on_commit: Callable[[], None],
        on_revoke: Callable[[], None],
        on_end: Callable[[core.RolloutStep, str], None],
    ) -> None:
        self.number = number
        self.change = change
        self._run = run
        self._services = services
        self._plan = plan
        self._on_commit = on_commit
        self._on_revoke = on_revoke
        self._on_end = on_end
        gone, added = change.named("removed"), change.named("added")
        leaving = change.named("changed") | gone
        nodes = tuple(node for node in downstream(run.plan) if node in leaving)
        begin = tuple(node for node in downstream(plan) if node in added)
        self.machine = core.RolloutMachine(nodes, ready_ns, senders(run.plan), begin, gone)
        self._standing: dict[str, Standby] = {}
        self._instructions: deque[rollout_messages.RolloutInstruction] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._observing = False
        self._unwatch: Callable[[], None] = lambda: None
        self._watchers = Watchers(services.loop)
        self._since: dict[str, int] = {}
        """When each step began (CLOCK_MONOTONIC, ns)."""

    @property
    def over(self) -> bool:
        """Whether the roll-out has reached a final step."""
        return self.machine.over

    @property
    def settled(self) -> bool:
        """Whether the roll-out is over and no standby has a process any more."""
        return self.over and not any(each.worker.exit_pending for each in self._standing.values())

    @property
    def pids(self) -> set[int]:
        """The process ids of all standbys."""
        return {each.worker.pid for each in self._standing.values() if each.worker.alive}

    def standby_worker(self, node: str) -> WorkerProcess | None:
        """Return the worker that stands by for ``node``, or None."""
        found = self._standing.get(node)
        return found.worker if found is not None and found.alive else None

    def begin(self) -> None:
        """Begin the roll-out."""
        self._unwatch = self._run.watch(self._changed)
        differs = [f"{each.kind} {each.name}" for each in (*self.change.nodes, *self.change.routes)]
        self._run.flow_events.rollout("started", self.number, ", ".join(differs) or "nothing that runs")
        self._handle(rollout_messages.BeginRequested())
        self._changed()

    def roll_back(self, why: str) -> bool:
        """Roll back, if the roll-out is not committed. Returns whether it was rolled back."""
        if self.machine.step not in (
            core.RolloutStep.PREPARING,
            core.RolloutStep.SETTLING,
            core.RolloutStep.COMMITTING,
        ):
            return False
        self._handle(rollout_messages.RollbackRequested(why))
        return True

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until ``reached()`` is true; it is checked at once and after every step."""
        await self._watchers.until(reached)

    def progress(self) -> dict[str, Any]:
        """Return how far the roll-out has come."""
        return {
            "flow": self._run.name,
            "number": self.number,
            "step": str(self.machine.step),
            "waits_for": self.machine.waits_for,
            "standing": {node: each.worker.pid for node, each in self._standing.items() if each.alive},
            "why": self.machine.why,
        }

    @property
    def cut_ns(self) -> int | None:
        """The time in ns from the first worker told to leave to the last successor started; None before that."""
        begun, done = self._since.get(core.RolloutStep.LEAVING), self._since.get(core.RolloutStep.DONE)
        return None if begun is None or done is None else done - begun

    # -- observing the flow --------------------------------------------------------------------------------

    def _changed(self) -> None:
        if not self._observing and not self.over:
            self._observing = True
            self._services.loop.call_soon(self._observe)

    def _observe(self) -> None:
        self._observing = False
        if not self.over:
            self._handle(rollout_messages.FlowObserved(self._view()))

    def _view(self) -> rollout_messages.FlowView:
        wiring, nodes = self._run.wiring, self._run.node_views()
        runs = self._run.state is FlowState.RUNNING
        return rollout_messages.FlowView(nodes, runs, self._obstacle(nodes), tuple(wiring.under_way), wiring.clean)

    def _obstacle(self, nodes: Mapping[str, rollout_messages.NodeView]) -> str:
        """Return why routes cannot be changed now, or an empty string: the nodes at their ends must have started."""
        for node in self.change.ends:
            if node in nodes and nodes[node].state is not WorkerState.STARTED:
                return f"node {node!r}, whose routes change, is {nodes[node].state}"
        return ""

    # -- events in, instructions out -----------------------------------------------------------------------

    def _handle(self, event: rollout_messages.RolloutEvent) -> None:
        before = self.machine.step
        try:
            self._instructions += self.machine.handle(event)
            self._carry_on()
        except Exception as defect:
            self._run.handle_defect(defect)
        if self.machine.step is not before:
            self._since[self.machine.step] = time.monotonic_ns()
            self._watchers.tell()
            self._changed()

    def _carry_on(self) -> None:
        while self._instructions:
            self._carry_out(self._instructions.popleft())

    def _carry_out(self, instruction: rollout_messages.RolloutInstruction) -> None:
        match instruction:
            case rollout_messages.StandBy(nodes):
                for node in nodes:
                    self._stand_by(node)
            case rollout_messages.ArmReadyDeadline(after_ns):
                self._timer = self._services.loop.call_later(after_ns / 1e9, self._ready_deadline_passed)
            case rollout_messages.DisarmReadyDeadline():
                self._disarm()
            case rollout_messages.WriteCommit():
                self._on_commit()
                self._services.journal.when_written(self._written)
            case rollout_messages.RevokeCommit():
                self._on_revoke()
            case rollout_messages.ReviseFlow():
                self._run.revise(self._plan, self.change)
                self._run.flow_events.rollout("committed", self.number)
            case rollout_messages.ReplaceWorker(node):
                self._run.dispatch(flow_messages.LeaveRequested(node))
            case rollout_messages.RetireNode(node):
                self._run.dispatch(flow_messages.RetireRequested(node))
            case rollout_messages.StartSuccessor(node, fresh):
                self._take_over(node, fresh)
            case rollout_messages.DismissSuccessor(node):
                if node in self._standing:
                    self._standing[node].dismiss()
            case rollout_messages.FinishRollout(why):
                self._finish(why)

    def _stand_by(self, node: str) -> None:
        seen = self._run.node_view(node)
        incarnation = seen.incarnation + 1 if seen is not None else 0
        plan = self._plan
        if plan.nodes[node].attach:  # its successor attaches when the worker has left: nothing can stand by
            self._services.loop.call_soon(self._successor_ready, node)
            return
        made = self._standing[node] = Standby(
            self._services,
            self._run.name,
            plan.nodes[node],
            plan.base_dir,
            incarnation,
            self._run.deliveries[node],
            self._successor_ready,
            self._successor_lost,
        )
        made.begin()

    def _successor_ready(self, node: str) -> None:
        if self.machine.step is core.RolloutStep.PREPARING:
            self._handle(rollout_messages.SuccessorReady(node))

    def _successor_lost(self, node: str, why: str) -> None:
        structlog.get_logger("chronetixd.flows.rollout").warning("a standby worker is gone", node=node, why=why)
        self._handle(rollout_messages.SuccessorLost(node, why))

    def _ready_deadline_passed(self) -> None:
        self._timer = None
        self._handle(rollout_messages.ReadyDeadlinePassed())

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _written(self) -> None:
        self._handle(rollout_messages.CommitWritten())
        self._changed()

    def _take_over(self, node: str, fresh: bool) -> None:
        if self._run.state is not FlowState.RUNNING:
            return
        seen = self._run.node_view(node)
        if seen is None or seen.state is not WorkerState.RESTARTING or seen.grouped:
            return
        standby = self._standing.pop(node, None)
        if standby is not None and (fresh or not standby.alive):
            standby.dismiss()
            standby = None
        self._run.take_over(node, standby.worker if standby is not None else None)

    def _finish(self, why: str) -> None:
        self._disarm()
        self._unwatch()
        for standby in self._standing.values():
            standby.dismiss()
        if self.machine.step is core.RolloutStep.ENDED:
            self._run.send_wiring(self._run.wiring.keep_leaving_workers())
        for route, frames in self._run.wiring.take_lost().items():
            text = f"{frames} frames of route {route} are lost: the worker that had to process them was killed"
            self._run.flow_events.rollout("lost-frames", self.number, text)
        self._run.flow_events.rollout(str(self.machine.step), self.number, why)
        self._on_end(self.machine.step, why)


def senders(plan: Plan) -> dict[str, set[str]]:
    """Return the nodes that send to each node of ``plan``."""
    return {node: {route.source for route in plan.data_routes if route.target == node} for node in plan.nodes}


def downstream(plan: Plan) -> Iterable[str]:
    """Yield the nodes of ``plan``, each after the nodes that send to it."""
    left = senders(plan)
    while left:
        ready = [node for node, before in left.items() if not before & left.keys()]
        yield from ready
        for node in ready:
            del left[node]
