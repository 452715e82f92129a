"""What the machine of a roll-out (:mod:`chronetixd.core.rollout`) is told, and what it answers.

Views are the present state of the flow, as the calling code sees it. Events go into the machine; instructions come out
of it, and the calling code carries them out in their order.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from chronetixd.core.worker import WorkerState


class NodeView(Struct, frozen=True):
    """The present state of a node. ``grouped``: it waits to be restarted together with others."""

    state: WorkerState
    incarnation: int
    grouped: bool = False


class FlowView(Struct, frozen=True):
    """The present state of a flow: every node that has a worker or will have one; whether it runs; the obstacle to
    becoming the new flow, if there is one; nodes that have not switched their outputs yet; whether all removed routes
    are drained."""

    nodes: Mapping[str, NodeView]
    runs: bool = True
    obstacle: str = ""
    rerouting: tuple[str, ...] = ()
    clean: bool = True


# -- events ------------------------------------------------------------------------------------------------


class BeginRequested(Struct, frozen=True):
    """The roll-out is to begin."""


class SuccessorReady(Struct, frozen=True):
    """The successor of ``node`` stands by and is ready."""

    node: str


class SuccessorLost(Struct, frozen=True):
    """The successor of ``node`` is gone; ``why`` is the predicate of a sentence about it."""

    node: str
    why: str


class CommitWritten(Struct, frozen=True):
    """The commit is in the journal."""


class FlowObserved(Struct, frozen=True):
    """The flow may have changed; ``view`` is its present state."""

    view: FlowView


class ReadyDeadlinePassed(Struct, frozen=True):
    """The deadline that the roll-out armed has passed."""


class RollbackRequested(Struct, frozen=True):
    """The roll-out is to be rolled back; ``why`` is the reason in words."""

    why: str


RolloutEvent = (
    BeginRequested
    | SuccessorReady
    | SuccessorLost
    | FlowObserved
    | ReadyDeadlinePassed
    | RollbackRequested
    | CommitWritten
)
EVENTS: tuple[type, ...] = (
    BeginRequested,
    SuccessorReady,
    SuccessorLost,
    FlowObserved,
    ReadyDeadlinePassed,
    RollbackRequested,
    CommitWritten,
)

# -- instructions ------------------------------------------------------------------------------------------


class StandBy(Struct, frozen=True):
    """Spawn successors for these nodes, and let them stand by."""

    nodes: tuple[str, ...]


class ArmReadyDeadline(Struct, frozen=True):
    """Report ReadyDeadlinePassed after this time."""

    after_ns: int


class DisarmReadyDeadline(Struct, frozen=True):
    """Cancel the deadline."""


class WriteCommit(Struct, frozen=True):
    """Record in the journal that the flow is the new one, and report CommitWritten."""


class RevokeCommit(Struct, frozen=True):
    """Record in the journal that the flow is the old one after all."""


class ReviseFlow(Struct, frozen=True):
    """Make the flow the new one."""


class ReplaceWorker(Struct, frozen=True):
    """Tell this node's worker to leave."""

    node: str


class RetireNode(Struct, frozen=True):
    """Tell the worker of this removed node to end."""

    node: str


class StartSuccessor(Struct, frozen=True):
    """Let the successor of this node, which has no worker, take over. ``fresh``: no successor stands by, and one has to
    be spawned."""

    node: str
    fresh: bool = False


class DismissSuccessor(Struct, frozen=True):
    """End the successor of this node, which is not needed."""

    node: str


class FinishRollout(Struct, frozen=True):
    """Report that the roll-out is over; ``why`` it is not done, or an empty string."""

    why: str = ""


RolloutInstruction = (
    StandBy
    | ArmReadyDeadline
    | DisarmReadyDeadline
    | WriteCommit
    | RevokeCommit
    | ReviseFlow
    | ReplaceWorker
    | RetireNode
    | StartSuccessor
    | DismissSuccessor
    | FinishRollout
)
