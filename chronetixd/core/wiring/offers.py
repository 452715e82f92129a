"""What an offer means: which of the things that a node was asked for it answers, in whatever order it names them."""

from __future__ import annotations

from collections.abc import Iterable

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Offer
from chronetixd.core.wiring.stages import Ends, Handle, Memory, NodeEnds, Stage
from chronetixd.core.wiring.states import StageEvent


def _meant(place: NodeEnds, message: Offer) -> Ends:
    """What was asked for that this answers: inputs are offered at once, outputs between two frames."""
    names = sorted(message.rings), sorted(message.credits)
    fits = (due for due in place.due if (_names(due.rings), _names(due.credits)) == names)
    return next(fits, place.due[0])


def _names(stages: Iterable[Stage]) -> list[str]:
    return sorted(stage.route.id for stage in stages)


def in_order(place: NodeEnds, message: Offer) -> tuple[Ends, Ends]:
    """What was asked for, and the stages that the names of an offer mean. Raises ProtocolError when they are not those
    that were asked for."""
    due = _meant(place, message)
    for what, offered, stages in (("rings", message.rings, due.rings), ("credits", message.credits, due.credits)):
        wanted = sorted(stage.route.id for stage in stages)
        if sorted(offered) != wanted:
            reason = f"{what} are {sorted(offered)}, but the routes of node {place.node!r} are {wanted}"
            raise error("malformed-message", type="offer", reason=reason)
    if len(set(message.segments)) != len(message.segments):
        raise error("malformed-message", type="offer", reason=f"segments {message.segments} repeat an index")
    return due, Ends(_named(message.rings, due.rings), _named(message.credits, due.credits))


def _named(names: Iterable[str], stages: Iterable[Stage]) -> list[Stage]:
    """The stages by name; those of one route in the order of their epochs."""
    left: dict[str, list[Stage]] = {}
    for stage in sorted(stages, key=lambda stage: -stage.epoch):
        left.setdefault(stage.route.id, []).append(stage)
    return [left[name].pop() for name in names]


def keep(memory: Memory, ends: Ends, rings: Iterable[Handle], credits: Iterable[Handle]) -> None:
    """These memories are now what the stages of ``ends`` have."""
    for stage, ring in zip(ends.rings, rings, strict=True):
        stage.happens(StageEvent.RING)
        stage.ring, stage.producer = ring, memory
        memory.stages += 1
    for stage, credit in zip(ends.credits, credits, strict=True):
        stage.happens(StageEvent.CREDIT)
        stage.credit, stage.consumer, stage.consumer_incarnation = credit, memory, memory.incarnation
