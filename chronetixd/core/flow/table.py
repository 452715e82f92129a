"""The table that names the handler of a flow for each state and event, and the function that events come in by."""

from __future__ import annotations

from collections.abc import Callable

from chronetixd.core.flow import draining, running, starting
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow_messages import EVENTS, ClockAndChance, FlowEvent, FlowState, Instruction

Handler = Callable[[FlowMachine, FlowEvent, ClockAndChance], list[Instruction]]

_S = FlowState

NEXT: dict[FlowState, tuple[FlowState, ...]] = {
    _S.SUBMITTED: (_S.VALIDATED, _S.FAILED, _S.STOPPED, _S.RUNNING),
    _S.VALIDATED: (_S.STARTING, _S.STOPPED),
    _S.STARTING: (_S.RUNNING, _S.DRAINING),
    _S.RUNNING: (_S.DRAINING, _S.STOPPED),
    _S.DRAINING: (_S.STOPPED, _S.FAILED),
    _S.STOPPED: (),
    _S.FAILED: (),
}
"""The states that a flow can enter from each state. The event Collapsed is left out: it leads from every state to
draining, and on to failed.
"""

_: None = None
# fmt: off
TABLE: dict[FlowState, tuple[Handler | None, ...]] = {
    # Columns: Validated, Refused, Launch, Remembered, Resumed, WorkerChanged, StopRequested, DeadlinePassed,
    # NodeDeadline, SuccessionFailed, LeaveRequested, SuccessorGiven, RetireRequested, Collapsed
    _S.SUBMITTED: (
        starting.accept, starting.refuse, _, starting.remember, starting.resume, _, starting.stop_unlaunched, _, _,
        _, _, _, _, draining.collapse,
    ),
    _S.VALIDATED: (
        _, _, starting.launch, _, _, _, starting.stop_unlaunched, _, _,
        _, _, _, _, draining.collapse,
    ),
    _S.STARTING: (
        _, _, _, _, _, starting.on_node, starting.stop, starting.deadline_passed, running.node_deadline,
        _, _, _, _, draining.collapse,
    ),
    _S.RUNNING: (
        _, _, _, _, _, running.on_node, running.stop, running.deadline_passed, running.node_deadline,
        running.no_succession, running.leave_requested, running.take_over, running.retire, draining.collapse,
    ),
    _S.DRAINING: (
        _, _, _, _, _, draining.on_node, draining.stop, draining.deadline_passed, running.node_deadline,
        running.no_succession, _, _, _, draining.collapse,
    ),
    _S.STOPPED: (_, _, _, _, _, _, _, _, _, _, _, _, _, draining.collapse),
    _S.FAILED: (_, _, _, _, _, _, _, _, _, _, _, _, _, draining.collapse),
}
# fmt: on


def handle(flow: FlowMachine, event: FlowEvent, at: ClockAndChance) -> list[Instruction]:
    """Apply ``event`` to ``flow`` and return the instructions that follow. Raises IllegalEvent, and then nothing has
    changed."""
    handler = TABLE[flow.state][EVENTS.index(type(event))]
    if handler is None:
        raise flow.illegal(event)
    return handler(flow, event, at)
