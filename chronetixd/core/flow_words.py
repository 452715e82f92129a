"""The words of a flow's machine: its states, what it can be told (events) and what it orders (instructions).

Plain data. ``flow.py`` is the machine; whoever feeds it and carries out its orders needs only these.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a flow may take over its steps, in ns."""

    start_ns: int = 30_000_000_000
    drain_ns: int = 10_000_000_000
    failure_drain_ns: int = 3_000_000_000
    terminate_ns: int = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a flow failed. ``kind`` is one of refused, spawn, start-timeout, fault, exit, drain-timeout.

    ``consequence``: a worker only saw its peer go away; a later cause that is none replaces it.
    """

    kind: str
    node: str
    phase: str
    message: str
    consequence: bool = False


# -- events ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Validated:
    """The contract and the artifacts are sound."""


@dataclass(frozen=True, slots=True)
class Refused:
    """They are not; nothing was started."""

    message: str


@dataclass(frozen=True, slots=True)
class Launch:
    """Start it."""


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """Something happened to the worker of ``node``."""

    node: str
    event: WorkerEvent


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Someone wants it to end. A drain may take ``drain_ns``, by default the flow's limit."""

    mode: StopMode = StopMode.DRAIN
    drain_ns: int | None = None


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The armed deadline has passed."""


FlowEvent = Validated | Refused | Launch | NodeEvent | StopRequested | DeadlinePassed

EVENTS: tuple[type, ...] = (Validated, Refused, Launch, NodeEvent, StopRequested, DeadlinePassed)

# -- instructions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Ask the launcher for these workers."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Configure:
    """Tell this worker which node it is."""

    node: str


@dataclass(frozen=True, slots=True)
class Link:
    """Send each of these workers its peers' memory."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Tell these workers to start."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell these workers to drain."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Signal:
    """Signal the process groups of these workers, SIGKILL if ``kill``, else SIGTERM."""

    nodes: tuple[str, ...]
    kill: bool


@dataclass(frozen=True, slots=True)
class WakePeers:
    """This worker is gone: ring the doorbells of everyone it shares a route with."""

    node: str


@dataclass(frozen=True, slots=True)
class Arm:
    """Send DeadlinePassed after this time; replaces the deadline that was armed."""

    deadline: Deadline
    after_ns: int


@dataclass(frozen=True, slots=True)
class Disarm:
    """No deadline any more."""


@dataclass(frozen=True, slots=True)
class Enter:
    """The flow is in a new state."""

    state: FlowState


Instruction = Spawn | Configure | Link | Start | Drain | Signal | WakePeers | Arm | Disarm | Enter
