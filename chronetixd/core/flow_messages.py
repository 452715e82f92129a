"""The words of a flow's machine: its states, what it can be told (events) and what it orders (instructions).

Plain data. ``chronetixd.core.flow`` is the machine; whoever feeds it and carries out its orders needs only these.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from chronetixd.core.worker import WorkerEvent


class FlowState(StrEnum):
    """Where a flow is in its life."""

    SUBMITTED = "submitted"
    VALIDATED = "validated"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


ENDED = frozenset({FlowState.STOPPED, FlowState.FAILED})


class StopMode(StrEnum):
    """How hard to stop: let it drain, SIGTERM at once, SIGKILL at once."""

    DRAIN = "drain"
    NOW = "now"
    KILL = "kill"


class Deadline(StrEnum):
    """What the armed deadline is for."""

    START = "start"
    DRAIN = "drain"
    TERMINATE = "terminate"


class Limits(Struct, frozen=True):
    """How long a flow may take over its steps, in ns."""

    start_ns: int = 30_000_000_000
    drain_ns: int = 10_000_000_000
    failure_drain_ns: int = 3_000_000_000
    terminate_ns: int = 2_000_000_000


class Failure(Struct, frozen=True):
    """Why a flow failed. ``kind`` is one of refused, spawn, start-timeout, fault, exit, drain-timeout,
    restarts, internal.

    ``consequence``: a worker only saw its peer go away; a later cause that is none replaces it.
    """

    kind: str
    node: str
    phase: str
    message: str
    consequence: bool = False

    @property
    def told(self) -> str:
        """What the node did, as the rest of a sentence about it."""
        if self.kind == "fault" and self.phase == "liveness":
            return self.message
        if self.kind == "fault":
            return f"failed in phase {self.phase!r}: {self.message}"
        return f"could not be spawned: {self.message}" if self.kind == "spawn" else self.message


class Moment(NamedTuple):
    """What the machine cannot know by itself: the monotonic time, and a random number, uniform in 0 … 1."""

    now_ns: int
    chance: float


# -- events ------------------------------------------------------------------------------------------------


class Validated(Struct, frozen=True):
    """The contract and the artifacts are sound."""


class Refused(Struct, frozen=True):
    """They are not; nothing was started."""

    message: str


class Launch(Struct, frozen=True):
    """Start it."""


class Remembered(Struct, frozen=True):
    """It has ended under an earlier daemon, in ``state``, and is only listed."""

    state: FlowState


class Resumed(Struct, frozen=True):
    """It runs already, under workers that an earlier daemon has started, in these ``incarnations``; the nodes that are
    ``over`` had come to their end."""

    incarnations: dict[str, int]
    over: frozenset[str]


class NodeEvent(Struct, frozen=True):
    """Something happened to the worker of ``node``."""

    node: str
    event: WorkerEvent


class StopRequested(Struct, frozen=True):
    """Someone wants it to end. A drain may take ``drain_ns``, by default the flow's limit."""

    mode: StopMode = StopMode.DRAIN
    drain_ns: int | None = None


class DeadlinePassed(Struct, frozen=True):
    """The armed deadline has passed."""


class NodeDeadline(Struct, frozen=True):
    """The timer of ``node`` has passed."""

    node: str


class NoSuccession(Struct, frozen=True):
    """What ``node`` has left is of no use to a successor; ``message`` is the rest of a sentence about it."""

    node: str
    message: str


class Collapsed(Struct, frozen=True):
    """Whoever carries its instructions out has failed in the middle of one (``message``): nothing is known any more but
    which workers are ``living``."""

    message: str
    living: tuple[str, ...]


class LeaveRequested(Struct, frozen=True):
    """``node`` is to leave its place to another worker, which stands by."""

    node: str


class Retire(Struct, frozen=True):
    """``node``, which the flow has no more, is to end: nothing comes for it that is not there."""

    node: str


class TakeOver(Struct, frozen=True):
    """The next worker of ``node``, which has left: process ``pid``, which stands by; 0 for one that has to be made."""

    node: str
    pid: int = 0


FlowEvent = (
    Validated
    | Refused
    | Launch
    | Remembered
    | Resumed
    | NodeEvent
    | StopRequested
    | DeadlinePassed
    | NodeDeadline
    | NoSuccession
    | LeaveRequested
    | TakeOver
    | Retire
    | Collapsed
)

EVENTS: tuple[type, ...] = (
    Validated,
    Refused,
    Launch,
    Remembered,
    Resumed,
    NodeEvent,
    StopRequested,
    DeadlinePassed,
    NodeDeadline,
    NoSuccession,
    LeaveRequested,
    TakeOver,
    Retire,
    Collapsed,
)

# -- instructions ------------------------------------------------------------------------------------------


class Spawn(Struct, frozen=True):
    """Ask the launcher for these workers."""

    nodes: tuple[str, ...]


class Configure(Struct, frozen=True):
    """Tell this worker which node it is."""

    node: str


class LinkSuccessor(Struct, frozen=True):
    """This successor is ready: link the producers that had its predecessor to it, and say Relinked when all are."""

    node: str


class Start(Struct, frozen=True):
    """Tell these workers to start."""

    nodes: tuple[str, ...]


class Drain(Struct, frozen=True):
    """Tell these workers to drain."""

    nodes: tuple[str, ...]


class Leave(Struct, frozen=True):
    """Tell this worker to leave its place to its successor."""

    node: str


class Left(Struct, frozen=True):
    """This worker has left, and its routes are ready for its successor, which is given in a TakeOver."""

    node: str


class Removed(Struct, frozen=True):
    """The worker of a node that the flow has no more is gone."""

    node: str


class Signal(Struct, frozen=True):
    """Signal the process groups of these workers, SIGKILL if ``kill``, else SIGTERM."""

    nodes: tuple[str, ...]
    kill: bool


class WakePeers(Struct, frozen=True):
    """This worker is gone for good: detach its producers."""

    node: str


class PrepareSuccessor(Struct, frozen=True):
    """This worker is gone and will have a successor: its routes get ready for it, nobody is detached."""

    node: str


class Restarting(Struct, frozen=True):
    """``node`` failed (``reason`` is the rest of a sentence about it) and is restarted with its ``kin``, ``after_ns``
    after the last of them is gone; for the ``attempt``-th time within its window."""

    node: str
    after_ns: int
    attempt: int
    reason: str
    kin: tuple[str, ...] = ()


class Restarted(Struct, frozen=True):
    """The successor of this node's worker has started. Its timer is not needed any more."""

    node: str


class ArmNode(Struct, frozen=True):
    """Send NodeDeadline of ``node`` after this time; replaces the one that was armed."""

    node: str
    after_ns: int


class Arm(Struct, frozen=True):
    """Send DeadlinePassed after this time; replaces the deadline that was armed."""

    deadline: Deadline
    after_ns: int


class Disarm(Struct, frozen=True):
    """No deadline any more."""


class Enter(Struct, frozen=True):
    """The flow is in a new state."""

    state: FlowState


Instruction = (
    Spawn
    | Configure
    | LinkSuccessor
    | Start
    | Drain
    | Leave
    | Left
    | Removed
    | Signal
    | WakePeers
    | PrepareSuccessor
    | Restarting
    | Restarted
    | ArmNode
    | Arm
    | Disarm
    | Enter
)
