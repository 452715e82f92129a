"""Which handler a flow has for which event, in each of its states, and where events come in."""

from __future__ import annotations

from collections.abc import Callable

from chronetixd.core.flow import draining, running, starting
from chronetixd.core.flow.state import Flow
from chronetixd.core.flow_messages import EVENTS, FlowEvent, FlowState, Instruction, Moment

Handler = Callable[[Flow, FlowEvent, Moment], list[Instruction]]

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
"""Where a flow can go from each state; but for Collapsed, which leads to draining, and on to failed, from all."""

_: None = None
# fmt: off
TABLE: dict[FlowState, tuple[Handler | None, ...]] = {
    # Columns: Validated, Refused, Launch, Remembered, Resumed, NodeEvent, StopRequested, DeadlinePassed, NodeDeadline,
    # NoSuccession, LeaveRequested, TakeOver, Retire, Collapsed
    _S.SUBMITTED: (
        starting.accept, starting.refuse, _, starting.remember, starting.resume, _, starting.stop_unlaunched, _, _,
        _, _, _, _, draining.collapse,
    ),
    _S.VALIDATED: (
        _, _, starting.launch, _, _, _, starting.stop_unlaunched, _, _,
        _, _, _, _, draining.collapse,
    ),
    _S.STARTING: (
        _, _, _, _, _, starting.on_node, starting.stop, starting.late, running.node_deadline,
        _, _, _, _, draining.collapse,
    ),
    _S.RUNNING: (
        _, _, _, _, _, running.on_node, running.stop, running.late, running.node_deadline,
        running.no_succession, running.leave_requested, running.take_over, running.retire, draining.collapse,
    ),
    _S.DRAINING: (
        _, _, _, _, _, draining.on_node, draining.stop, draining.late, running.node_deadline,
        running.no_succession, _, _, _, draining.collapse,
    ),
    _S.STOPPED: (_, _, _, _, _, _, _, _, _, _, _, _, _, draining.collapse),
    _S.FAILED: (_, _, _, _, _, _, _, _, _, _, _, _, _, draining.collapse),
}
# fmt: on


def handle(flow: Flow, event: FlowEvent, at: Moment) -> list[Instruction]:
    """What to do about ``event``. Raises IllegalEvent, and then nothing has changed."""
    handler = TABLE[flow.state][EVENTS.index(type(event))]
    if handler is None:
        raise flow.illegal(event)
    return handler(flow, event, at)
