"""The states of a node's memory and of the two ends of a stage, and the tables that say what leads where.

The tables are total: a cell for every state and event, an empty one is illegal, raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import TypeVar

from chronetixd.core.machine import IllegalEvent


class NodeState(IntEnum):
    """How far the present worker of a node is, as its routes see it."""

    ABSENT = 0
    """There is none, or it was told nothing yet."""
    TOLD = 1
    """It was told its routes; its memory is awaited."""
    OFFERED = 2
    """Its memory is there; that of its peers is awaited."""
    LINKED = 3
    """It got the other ends of its routes."""
    READY = 4
    STARTED = 5
    GONE = 6
    """It is gone for good."""


class NodeEvent(StrEnum):
    """What happens to the worker of a node."""

    CONFIGURED = "configured"
    OFFERS = "offers"
    LINK_SENT = "link-sent"
    SAYS_READY = "ready"
    """It has mapped all that came with its first link."""
    RELINKS = "relinks"
    """Producers that had been linked to its predecessor are to be linked to it."""
    START_SENT = "start-sent"
    SAYS_LINKED = "linked"
    """It has mapped what a later link has brought: a worker that takes long to become ready may do so before."""
    GROWS = "segment"
    MAPS = "segment-mapped"
    SHRINKS = "segment-dropped"
    UNMAPS = "segment-unmapped"
    DRAINS = "drained"
    DIES = "dies"
    """It is gone, and is to have a successor."""
    ENDS = "ends"
    """It is gone for good."""


class ProducerEnd(StrEnum):
    """What there is of the RING of a stage."""

    AWAITED = "awaited"
    OFFERED = "offered"
    LINKED = "linked"
    """Its maker has the CREDIT of the present consumer, or is about to: it may have sent."""
    STALE = "stale"
    """Its maker has the CREDIT of a consumer that is dead."""


class ConsumerEnd(StrEnum):
    """What there is of the CREDIT of a stage."""

    AWAITED = "awaited"
    OFFERED = "offered"
    LINKED = "linked"
    """Its maker has the RING, or is about to: it may have taken."""


class StageEvent(StrEnum):
    """What happens to the ends of a stage."""

    RING = "ring"
    """The RING was offered."""
    CREDIT = "credit"
    """The CREDIT was offered."""
    PRODUCER_TOLD = "producer-told"
    CONSUMER_TOLD = "consumer-told"
    CONSUMER_DIED = "consumer-died"
    RING_LOST = "ring-lost"
    """The producer died before anybody was told of the RING."""


_N, _E = NodeState, NodeEvent
_: None = None
_ABS, _TLD, _OFR, _LNK, _RDY, _STD, _GON = NodeState
# fmt: off
NODE: dict[NodeState, dict[NodeEvent, NodeState | None]] = {
    state: dict(zip(NodeEvent, row, strict=True)) for state, row in {
        #      CONFIGURED  LINK_SENT   RELINKS     SAYS_LINKED MAPS        UNMAPS      DIES
        #            OFFERS      SAYS_READY  START_SENT  GROWS       SHRINKS     DRAINS      ENDS
        _ABS: (_TLD, _,    _,    _,    _,    _,    _,    _,    _,    _,    _,    _,    _ABS, _GON),
        _TLD: (_,    _OFR, _,    _,    _,    _,    _,    _,    _,    _,    _,    _,    _ABS, _GON),
        _OFR: (_,    _OFR, _LNK, _,    _,    _,    _,    _OFR, _,    _OFR, _,    _,    _ABS, _GON),
        _LNK: (_,    _LNK, _LNK, _RDY, _,    _,    _LNK, _LNK, _LNK, _LNK, _LNK, _,    _ABS, _GON),
        _RDY: (_,    _RDY, _RDY, _,    _RDY, _STD, _RDY, _RDY, _RDY, _RDY, _RDY, _RDY, _ABS, _GON),
        _STD: (_,    _STD, _STD, _,    _STD, _STD, _STD, _STD, _STD, _STD, _STD, _STD, _ABS, _GON),
        _GON: (_,    _,    _,    _,    _,    _,    _,    _,    _,    _,    _,    _,    _,    _GON),
    }.items()
}

_P, _C = ProducerEnd, ConsumerEnd
_AWT, _OFD, _LKD, _STL = ProducerEnd
PRODUCER: dict[ProducerEnd, dict[StageEvent, ProducerEnd | None]] = {
    state: dict(zip(StageEvent, row, strict=True)) for state, row in {
        #      RING  CREDIT PRODUCER_TOLD CONSUMER_TOLD CONSUMER_DIED RING_LOST
        _AWT: (_OFD, _AWT,  _,            _,            _AWT,         _AWT),
        _OFD: (_,    _OFD,  _LKD,         _OFD,         _OFD,         _AWT),
        _LKD: (_,    _LKD,  _,            _LKD,         _STL,         _),
        _STL: (_,    _STL,  _LKD,         _STL,         _STL,         _),
    }.items()
}
_NOT, _THERE, _TOLD = ConsumerEnd
CONSUMER: dict[ConsumerEnd, dict[StageEvent, ConsumerEnd | None]] = {
    state: dict(zip(StageEvent, row, strict=True)) for state, row in {
        #        RING    CREDIT  PRODUCER_TOLD CONSUMER_TOLD CONSUMER_DIED RING_LOST
        _NOT:   (_NOT,   _THERE, _,            _,            _NOT,         _NOT),
        _THERE: (_THERE, _,      _THERE,       _TOLD,        _NOT,         _THERE),
        _TOLD:  (_,      _,      _TOLD,        _,            _NOT,         _),
    }.items()
}
# fmt: on

S = TypeVar("S", NodeState, ProducerEnd, ConsumerEnd)
E = TypeVar("E", NodeEvent, StageEvent)


def following(table: Mapping[S, Mapping[E, S | None]], what: str, state: S, event: E) -> S:
    """The state after ``event``. Raises IllegalEvent, and then nothing has changed."""
    target = table[state][event]
    if target is None:
        raise IllegalEvent(what, str(state.name).lower(), event, ())
    return target
