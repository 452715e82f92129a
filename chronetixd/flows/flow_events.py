"""The events that one flow emits: the text and data of each kind of event are defined here."""

from __future__ import annotations

from collections.abc import Sequence

from chronetix.protocol import messages as wire
from chronetixd.core import worker as worker_core
from chronetixd.core.death import ExitRecord
from chronetixd.core.flow_messages import FlowState, Restarting
from chronetixd.core.held import OldestHeldFrame
from chronetixd.core.reason import explain
from chronetixd.core.restart import Rule
from chronetixd.records.events import Events


class FlowEvents:
    """Emits the events of ``flow``."""

    def __init__(self, events: Events, flow: str) -> None:
        self._events = events
        self._flow = flow

    def entered(self, state: FlowState, why: str, nodes: int) -> None:
        """Report that the flow has entered ``state``, and ``why``."""
        self._events.emit(f"flow-{state}", flow=self._flow, message=why, nodes=nodes)

    def resumed(self, living: int, died: Sequence[str]) -> None:
        """Report that the flow continues under this daemon with ``living`` workers of an earlier one; the workers of
        the nodes in ``died`` have died."""
        message = f"{living} workers have outlived the daemon, {len(died)} have died meanwhile"
        self._events.emit("flow-resumed", flow=self._flow, message=message, died=sorted(died))

    def not_kept(self) -> None:
        """Report that the service manager has no room for all memory of the flow: a worker that dies while no daemon
        runs ends the flow."""
        message = (
            "the service manager's descriptor store has no room for its memory; FileDescriptorStoreMax= is too low"
        )
        self._events.emit("flow-not-kept", flow=self._flow, message=message)

    # -- workers -------------------------------------------------------------------------------------------

    def spawned(self, node: str, pid: int) -> None:
        """Report that the worker of ``node`` has a process."""
        self._events.emit("worker-spawned", flow=self._flow, node=node, worker=pid)

    def waiting(self, node: str, name: str) -> None:
        """Report that the worker of ``node`` is awaited, which starts by itself and attaches as ``name``."""
        told = f"waiting for attach://{name}"
        self._events.emit("worker-waiting", flow=self._flow, node=node, message=told, name=name)

    def attached(self, node: str, pid: int) -> None:
        """Report that process ``pid`` has attached and is the worker of ``node``."""
        self._events.emit("worker-attached", flow=self._flow, node=node, worker=pid)

    def not_spawned(self, node: str, why: str) -> None:
        """Report that no process could be started for the worker of ``node``."""
        self._events.emit("worker-failed", flow=self._flow, node=node, message=why)

    def faulted(self, node: str, fault: worker_core.Faulted) -> None:
        """Report that the worker of ``node`` has reported a fault or has broken the protocol."""
        self._events.emit("worker-faulted", flow=self._flow, node=node, message=fault.message, phase=fault.phase)

    def exited(
        self, node: str, ended: worker_core.Exit, death: ExitRecord, before: worker_core.WorkerState, pid: int
    ) -> None:
        """Report the exit of a worker. The exit is in order if the worker was told to end, or had finished,
        ``before``."""
        wanted = before is worker_core.WorkerState.TERMINATING or (
            before is worker_core.WorkerState.FINISHED and ended.well
        )
        kind = "worker-exited" if wanted else "worker-failed"
        late = " after it had finished" if before is worker_core.WorkerState.FINISHED and not wanted else ""
        message = f"{explain(ended, death)}{late}"
        self._events.emit(kind, flow=self._flow, node=node, message=message, worker=pid, **death.essence())

    def restarting(self, plan: Restarting, rule: Rule) -> None:
        """Report that a node is restarted, and why."""
        message = f"it {plan.reason}; restart {plan.attempt} of at most {rule.max} within {rule.window_ns / 1e9:g} s"
        self._events.emit(
            "node-restarting",
            flow=self._flow,
            node=plan.node,
            message=message,
            reason=plan.reason,
            attempt=plan.attempt,
            after_ms=plan.after_ns / 1e6,
            restart_group=list(plan.restart_group),
        )

    def restarted(self, node: str, reason: str, incarnation: int, pid: int) -> None:
        """Report that the successor of a worker has started."""
        self._events.emit(
            "node-restarted",
            flow=self._flow,
            node=node,
            message=f"it runs again, in incarnation {incarnation}",
            reason=reason,
            incarnation=incarnation,
            worker=pid,
        )

    def rollout(self, what: str, number: int, message: str = "") -> None:
        """Report a step of a roll-out: started, committed, or its outcome."""
        self._events.emit(f"rollout-{what}", flow=self._flow, message=message, number=number)

    # -- frames --------------------------------------------------------------------------------------------

    def frame_failed(self, node: str, failed: wire.FrameFailed, message: str, set_aside: int) -> None:
        """Report that a plugin raised over a frame in every attempt."""
        self._events.emit(
            "frame-failed",
            flow=self._flow,
            node=node,
            message=message,
            route=failed.route,
            seq=failed.seq,
            attempts=failed.attempts,
            outcome=failed.outcome,
            set_aside=set_aside,
        )

    def held(self, held: OldestHeldFrame) -> None:
        """Report that a consumer holds a frame for a long time."""
        frames = f"and {held.kept - 1} more " if held.kept > 1 else ""
        self._events.emit(
            "frame-held",
            flow=self._flow,
            node=held.node,
            message=f"it holds frame {held.seq} {frames}of route {held.route}; sent {held.age_ns / 1e9:.0f} s ago",
            route=held.route,
            seq=held.seq,
            kept=held.kept,
            age_ns=held.age_ns,
        )

    def given_up(self, node: str, route: str, waited_ns: int) -> None:
        """Report that the producer has closed a route, because its consumer was slower than the route's limit
        allows."""
        text = f"route {route}: no credit came back for {waited_ns // 1_000_000} ms, nothing more is sent there"
        self._events.emit("route-given-up", flow=self._flow, node=node, message=text, route=route, waited_ns=waited_ns)
