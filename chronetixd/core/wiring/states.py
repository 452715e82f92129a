"""The states of a node's memory and of the two ends of a stage, and their transition tables.

The tables are total: every state has a cell for every event. An empty cell is illegal; it raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import TypeVar

from chronetixd.core.machine import IllegalEvent


class MemoryState(IntEnum):
    """How far the present worker of a node has come in offering and mapping memory."""

    ABSENT = 0
    """There is no worker, or it was told nothing yet."""
    TOLD = 1
    """The worker was told its routes; its memory is awaited."""
    OFFERED = 2
    """The worker has offered its memory; that of its peers is awaited."""
    LINKED = 3
    """The worker got the other ends of its routes."""
    READY = 4
    STARTED = 5
    GONE = 6
    """The worker is gone for good."""


class MemoryEvent(StrEnum):
    """An event of a node's worker that concerns its memory."""

    CONFIGURED = "configured"
    OFFERS = "offers"
    LINK_SENT = "link-sent"
    SAYS_READY = "ready"
    """The worker has mapped everything that its first link brought."""
    RELINKS = "relinks"
    """Producers that were linked to its predecessor are to be linked to the worker."""
    START_SENT = "start-sent"
    SAYS_LINKED = "linked"
    """The worker has mapped what a later link brought. A worker that takes long to become ready may do so before it is
    ready."""
    GROWS = "segment"
    MAPS = "segment-mapped"
    SHRINKS = "segment-dropped"
    UNMAPS = "segment-unmapped"
    DRAINS = "drained"
    DIES = "dies"
    """The worker is gone and is to have a successor."""
    ENDS = "ends"
    """The worker is gone for good."""


class ProducerEnd(StrEnum):
    """The state of the RING of a stage."""

    AWAITED = "awaited"
    OFFERED = "offered"
    LINKED = "linked"
    """The producer has, or is being sent, the CREDIT of the present consumer: it may have sent frames."""
    STALE = "stale"
    """The producer has the CREDIT of a dead consumer."""


class ConsumerEnd(StrEnum):
    """The state of the CREDIT of a stage."""

    AWAITED = "awaited"
    OFFERED = "offered"
    LINKED = "linked"
    """The consumer has, or is being sent, the RING: it may have taken frames."""


class StageEvent(StrEnum):
    """An event that concerns the ends of a stage."""

    RING = "ring"
    """The RING was offered."""
    CREDIT = "credit"
    """The CREDIT was offered."""
    PRODUCER_TOLD = "producer-told"
    CONSUMER_TOLD = "consumer-told"
    CONSUMER_DIED = "consumer-died"
    RING_LOST = "ring-lost"
    """The producer died before a consumer was told of the RING."""


_N, _E = MemoryState, MemoryEvent
_: None = None
_ABS, _TLD, _OFR, _LNK, _RDY, _STD, _GON = MemoryState
# fmt: off
NODE: dict[MemoryState, dict[MemoryEvent, MemoryState | None]] = {
    state: dict(zip(MemoryEvent, row, strict=True)) for state, row in {
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

S = TypeVar("S", MemoryState, ProducerEnd, ConsumerEnd)
E = TypeVar("E", MemoryEvent, StageEvent)


def following(table: Mapping[S, Mapping[E, S | None]], what: str, state: S, event: E) -> S:
    """Return the state after ``event``. Raises IllegalEvent, and then nothing has changed."""
    target = table[state][event]
    if target is None:
        raise IllegalEvent(what, str(state.name).lower(), event, ())
    return target
