"""Offers: finds the request that an offer answers, in whatever order the offer names its parts."""

from __future__ import annotations

from collections.abc import Iterable

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Offer
from chronetixd.core.wiring.stages import Ends, Handle, Memory, NodeEnds, Stage
from chronetixd.core.wiring.states import StageEvent


def _meant(node_ends: NodeEnds, message: Offer) -> Ends:
    """Return the request that this offer answers. A worker may answer requests out of order: it offers inputs at once,
    and outputs between two frames."""
    names = sorted(message.rings), sorted(message.credits)
    fits = (due for due in node_ends.due if (_names(due.rings), _names(due.credits)) == names)
    return next(fits, node_ends.due[0])


def _names(stages: Iterable[Stage]) -> list[str]:
    return sorted(stage.route.id for stage in stages)


def in_order(node_ends: NodeEnds, message: Offer) -> tuple[Ends, Ends]:
    """Return the request that an offer answers, and the stages that the names in the offer mean. Raises ProtocolError
    when the names are not those of the request."""
    due = _meant(node_ends, message)
    for what, offered, stages in (("rings", message.rings, due.rings), ("credits", message.credits, due.credits)):
        wanted = sorted(stage.route.id for stage in stages)
        if sorted(offered) != wanted:
            reason = f"{what} are {sorted(offered)}, but the routes of node {node_ends.node!r} are {wanted}"
            raise error("malformed-message", type="offer", reason=reason)
    if len(set(message.segments)) != len(message.segments):
        raise error("malformed-message", type="offer", reason=f"segments {message.segments} repeat an index")
    return due, Ends(_named(message.rings, due.rings), _named(message.credits, due.credits))


def _named(names: Iterable[str], stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages by name; stages of one route in the order of their epochs."""
    left: dict[str, list[Stage]] = {}
    for stage in sorted(stages, key=lambda stage: -stage.epoch):
        left.setdefault(stage.route.id, []).append(stage)
    return [left[name].pop() for name in names]


def keep(memory: Memory, ends: Ends, rings: Iterable[Handle], credits: Iterable[Handle]) -> None:
    """Store the offered memories in the stages of ``ends``."""
    for stage, ring in zip(ends.rings, rings, strict=True):
        stage.apply(StageEvent.RING)
        stage.ring, stage.producer = ring, memory
        memory.stages += 1
    for stage, credit in zip(ends.credits, credits, strict=True):
        stage.apply(StageEvent.CREDIT)
        stage.credit, stage.consumer, stage.consumer_incarnation = credit, memory, memory.incarnation
