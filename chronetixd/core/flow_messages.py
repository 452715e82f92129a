"""States, events and instructions of a flow's state machine.

Plain data. The state machine is ``chronetixd.core.flow``. The code that feeds events to it and carries out its
instructions needs only this module.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from chronetixd.core.worker import WorkerEvent


class FlowState(StrEnum):
    """The state of a flow."""

    SUBMITTED = "submitted"
    VALIDATED = "validated"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


ENDED = frozenset({FlowState.STOPPED, FlowState.FAILED})


class StopMode(StrEnum):
    """How to end a flow: let it drain, send SIGTERM at once, or send SIGKILL at once."""

    DRAIN = "drain"
    NOW = "now"
    KILL = "kill"


class Deadline(StrEnum):
    """What the armed deadline of a flow limits."""

    START = "start"
    DRAIN = "drain"
    TERMINATE = "terminate"
    END = "end"


class Limits(Struct, frozen=True):
    """How long each step of a flow may take, in ns."""

    start_ns: int = 30_000_000_000
    drain_ns: int = 10_000_000_000
    failure_drain_ns: int = 3_000_000_000
    terminate_ns: int = 2_000_000_000
    end_ns: int = 5_000_000_000
    attach_ns: int = 600_000_000_000

    @property
    def last_ns(self) -> int:
        """When a worker that has finished or failed, and does not say itself what keeps it from ending, is killed."""
        return self.end_ns + self.terminate_ns


class FlowFailure(Struct, frozen=True):
    """Why a flow failed. ``kind`` is one of refused, spawn, start-timeout, fault, exit, drain-timeout, restarts,
    internal.

    ``consequence``: the worker only reported that a peer was gone. A later cause that is no consequence replaces this
    one.
    """

    kind: str
    node: str
    phase: str
    message: str
    consequence: bool = False

    @property
    def told(self) -> str:
        """What the node did, as the predicate of a sentence about it."""
        if self.kind == "fault" and self.phase in ("liveness", "daemon"):
            return self.message
        if self.kind == "fault":
            return f"failed in phase {self.phase!r}: {self.message}"
        return f"could not be spawned: {self.message}" if self.kind == "spawn" else self.message


class ClockAndChance(NamedTuple):
    """The inputs that the state machine cannot produce itself: the monotonic time, and a random number, uniform in 0 …
    1."""

    now_ns: int
    chance: float


# -- events ------------------------------------------------------------------------------------------------


class Validated(Struct, frozen=True):
    """The contract and the artifacts are valid."""


class Refused(Struct, frozen=True):
    """The flow is refused as ``message`` says; nothing was started."""

    message: str


class Launch(Struct, frozen=True):
    """The workers of the flow are to be started."""


class Remembered(Struct, frozen=True):
    """The flow ended under an earlier daemon, in ``state``, and is only listed."""

    state: FlowState


class Resumed(Struct, frozen=True):
    """The flow runs already, under workers that an earlier daemon has started, in these ``incarnations``. The workers
    of the nodes in ``over`` had finished."""

    incarnations: dict[str, int]
    over: frozenset[str]


class WorkerChanged(Struct, frozen=True):
    """An event of the worker of ``node``."""

    node: str
    event: WorkerEvent


class StopRequested(Struct, frozen=True):
    """The flow is asked to end. A drain may take ``drain_ns``; None means the flow's limit."""

    mode: StopMode = StopMode.DRAIN
    drain_ns: int | None = None


class DeadlinePassed(Struct, frozen=True):
    """The armed deadline of the flow has passed."""


class NodeDeadline(Struct, frozen=True):
    """The timer of ``node`` has passed."""

    node: str


class SuccessionFailed(Struct, frozen=True):
    """No successor can continue what the worker of ``node`` has left; ``message`` is the predicate of a sentence about
    the node."""

    node: str
    message: str


class Collapsed(Struct, frozen=True):
    """An exception (``message``) stopped the execution of an instruction half-way. All that is known is which workers
    are ``living``."""

    message: str
    living: tuple[str, ...]


class LeaveRequested(Struct, frozen=True):
    """The worker of ``node`` is to leave, because its successor stands by."""

    node: str


class RetireRequested(Struct, frozen=True):
    """The worker of ``node``, a removed node, is to end: no frames will come for it except those that are there."""

    node: str


class SuccessorGiven(Struct, frozen=True):
    """``node``, whose worker has left, gets its next worker: process ``pid``, which stands by; 0 for one that has to be
    spawned."""

    node: str
    pid: int = 0


FlowEvent = (
    Validated
    | Refused
    | Launch
    | Remembered
    | Resumed
    | WorkerChanged
    | StopRequested
    | DeadlinePassed
    | NodeDeadline
    | SuccessionFailed
    | LeaveRequested
    | SuccessorGiven
    | RetireRequested
    | Collapsed
)

EVENTS: tuple[type, ...] = (
    Validated,
    Refused,
    Launch,
    Remembered,
    Resumed,
    WorkerChanged,
    StopRequested,
    DeadlinePassed,
    NodeDeadline,
    SuccessionFailed,
    LeaveRequested,
    SuccessorGiven,
    RetireRequested,
    Collapsed,
)

# -- instructions ------------------------------------------------------------------------------------------


class RequestSpawn(Struct, frozen=True):
    """Ask the launcher for the workers of these nodes."""

    nodes: tuple[str, ...]


class SendConfigure(Struct, frozen=True):
    """Tell this worker which node it is."""

    node: str


class LinkSuccessor(Struct, frozen=True):
    """Link the producers that were linked to the predecessor of this ready worker to this worker, and report Relinked
    when all are linked."""

    node: str


class SendStart(Struct, frozen=True):
    """Tell these workers to start."""

    nodes: tuple[str, ...]


class SendDrain(Struct, frozen=True):
    """Tell these workers to drain."""

    nodes: tuple[str, ...]


class SendLeave(Struct, frozen=True):
    """Tell this worker to leave and make room for its successor."""

    node: str


class WorkerLeft(Struct, frozen=True):
    """The worker of ``node`` has left, and the routes of the node are ready for its successor, which a SuccessorGiven
    event names."""

    node: str


class NodeRemoved(Struct, frozen=True):
    """The worker of a removed node is gone."""

    node: str


class Signal(Struct, frozen=True):
    """Signal the process groups of these workers: SIGKILL if ``kill``, else SIGTERM."""

    nodes: tuple[str, ...]
    kill: bool


class WakePeers(Struct, frozen=True):
    """Detach the producers of this node, whose worker is gone for good."""

    node: str


class PrepareSuccessor(Struct, frozen=True):
    """Prepare the routes of this node for a successor of its worker, which is gone. No peer is detached."""

    node: str


class Restarting(Struct, frozen=True):
    """Report that ``node`` has failed (``reason`` is the predicate of a sentence about it) and is restarted. Its
    ``restart_group`` is restarted with it, ``after_ns`` after the last of these workers is gone. It is the
    ``attempt``-th restart within its window."""

    node: str
    after_ns: int
    attempt: int
    reason: str
    restart_group: tuple[str, ...] = ()


class Restarted(Struct, frozen=True):
    """Report that the successor of this node's worker has started, and cancel the node's timer."""

    node: str


class ArmNodeDeadline(Struct, frozen=True):
    """Report NodeDeadline for ``node`` after this time. Replaces the timer of the node that was armed."""

    node: str
    after_ns: int


class ArmDeadline(Struct, frozen=True):
    """Report DeadlinePassed after this time. Replaces the deadline that was armed."""

    deadline: Deadline
    after_ns: int


class DisarmDeadline(Struct, frozen=True):
    """Cancel the armed deadline."""


class EnterState(Struct, frozen=True):
    """Note that the flow is in a new state."""

    state: FlowState


Instruction = (
    RequestSpawn
    | SendConfigure
    | LinkSuccessor
    | SendStart
    | SendDrain
    | SendLeave
    | WorkerLeft
    | NodeRemoved
    | Signal
    | WakePeers
    | PrepareSuccessor
    | Restarting
    | Restarted
    | ArmNodeDeadline
    | ArmDeadline
    | DisarmDeadline
    | EnterState
)
