"""What happens to one flow, as events for everyone who follows them: each kind of news is worded here."""

from __future__ import annotations

from collections.abc import Sequence

from chronetix.protocol import messages as wire
from chronetixd.core import worker as life
from chronetixd.core.death import ExitRecord
from chronetixd.core.flow_messages import FlowState, Restarting
from chronetixd.core.held import OldestHeldFrame
from chronetixd.core.reason import explain
from chronetixd.core.restart import Rule
from chronetixd.records.events import Events


class News:
    """Of the flow ``flow``."""

    def __init__(self, events: Events, flow: str) -> None:
        self._events = events
        self._flow = flow

    def entered(self, state: FlowState, why: str, nodes: int) -> None:
        """The flow is in ``state`` now."""
        self._events.emit(f"flow-{state}", flow=self._flow, message=why, nodes=nodes)

    def resumed(self, living: int, died: Sequence[str]) -> None:
        """It goes on under this daemon, with the workers of an earlier one."""
        message = f"{living} workers have outlived the daemon, {len(died)} have died meanwhile"
        self._events.emit("flow-resumed", flow=self._flow, message=message, died=sorted(died))

    def not_kept(self) -> None:
        """The supervisor has no room for all of its memory: a worker that dies while no daemon is there ends it."""
        message = "the supervisor's store has no room for its memory; FileDescriptorStoreMax= is too low"
        self._events.emit("flow-not-kept", flow=self._flow, message=message)

    # -- workers -------------------------------------------------------------------------------------------

    def spawned(self, node: str, pid: int) -> None:
        """A process is there."""
        self._events.emit("worker-spawned", flow=self._flow, node=node, worker=pid)

    def not_spawned(self, node: str, why: str) -> None:
        """None could be made."""
        self._events.emit("worker-failed", flow=self._flow, node=node, message=why)

    def faulted(self, node: str, fault: life.Faulted) -> None:
        """It said so, or did what it may not."""
        self._events.emit("worker-faulted", flow=self._flow, node=node, message=fault.message, phase=fault.phase)

    def exited(self, node: str, ended: life.Exit, death: ExitRecord, before: life.WorkerState, pid: int) -> None:
        """It is gone; well, if it was told to go or had come to its end ``before``."""
        wanted = before is life.WorkerState.TERMINATING or (before is life.WorkerState.FINISHED and ended.code == 0)
        kind = "worker-exited" if wanted else "worker-failed"
        self._events.emit(
            kind, flow=self._flow, node=node, message=explain(ended, death), worker=pid, **death.essence()
        )

    def restarting(self, plan: Restarting, rule: Rule) -> None:
        """It is to have a successor."""
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
        """Its successor runs."""
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
        """How far a roll-out is: started, committed, or its outcome."""
        self._events.emit(f"rollout-{what}", flow=self._flow, message=message, number=number)

    # -- frames --------------------------------------------------------------------------------------------

    def frame_failed(self, node: str, failed: wire.FrameFailed, message: str, set_aside: int) -> None:
        """A plugin raised over a frame, for the last time."""
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
        """A consumer has kept a frame for long."""
        frames = f"and {held.kept - 1} more " if held.kept > 1 else ""
        self._events.emit(
            "frame-held",
            flow=self._flow,
            node=held.node,
            message=f"it keeps frame {held.seq} {frames}of route {held.route}; sent {held.age_ns / 1e9:.0f} s ago",
            route=held.route,
            seq=held.seq,
            kept=held.kept,
            age_ns=held.age_ns,
        )

    def given_up(self, node: str, route: str, waited_ns: int) -> None:
        """A consumer was too slow for its route's limit, and the producer has closed it."""
        text = f"route {route}: no credit came back for {waited_ns // 1_000_000} ms, nothing more is sent there"
        self._events.emit("route-given-up", flow=self._flow, node=node, message=text, route=route, waited_ns=waited_ns)
