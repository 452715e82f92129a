"""What is known of the workers' shared memory: who made it, which stage of which route it belongs to.

A route is a chain of stages, one for each RING that it has had; the last one is the present. A memory is closed when
the last stage that needs it is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NewType, Protocol

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Port
from chronetixd.core.machine import IllegalEvent
from chronetixd.core.wiring.states import (
    CONSUMER,
    NODE,
    PRODUCER,
    ConsumerEnd,
    NodeEvent,
    NodeState,
    ProducerEnd,
    StageEvent,
    following,
)

Handle = NewType("Handle", int)
"""A memory that was checked and is kept."""

End = Literal["producer", "consumer"]

Snapshot = dict[str, Any]
"""Counters of one stage, as RING and CREDIT have them."""


class Reader(Protocol):
    """Reads what is in a memory, whatever becomes of those who write it."""

    def remains(self, ring: Handle) -> tuple[int, int]:
        """Where a RING ends, as a position, and the highest input_seq committed to it. Raises PeerFault."""

    def snapshot(self, ring: Handle, credit: Handle) -> Snapshot | None:
        """The counters of both; None when one has spoilt its header, or for want of memory."""


class DataRoute(NamedTuple):
    """A data route: its id, the nodes at its ends, and whether one waits for the other."""

    id: str
    source: str
    target: str
    policy: str = "block"


MAX_SEGMENTS = 64
"""Of one arena. It doubles by segments, so that one that is as large as can be has fewer than twenty; each is a
descriptor of the daemon's, and of every consumer's."""


@dataclass(slots=True, eq=False)
class Memory:
    """What one process offered beside its ends of routes: the arena that its RINGs point into."""

    segments: dict[int, int] = field(default_factory=dict)
    unmapped: dict[int, set[Stage]] = field(default_factory=dict)
    """Segments that it may not use yet, and the stages whose consumer cannot follow descriptors into them."""
    undropped: dict[int, set[Stage]] = field(default_factory=dict)
    """Segments that it has given back, and the stages whose consumer maps them still."""
    stages: int = 0
    """Stages whose RING points into the arena."""
    incarnation: int = 0
    """Of its node, when it made this."""
    shown_so: set[int] = field(default_factory=set)
    """Segments that were new or given back when a worker came back: what it said of them may come still."""
    dead: bool = False
    closed: bool = False

    def settle(self, stage: Stage, index: int) -> bool:
        """The stage's consumer has mapped it, or never has to; True when that was the last one."""
        waiting = self.unmapped.get(index)
        if waiting is None or stage not in waiting:
            return False
        waiting.discard(stage)
        if waiting:
            return False
        del self.unmapped[index]
        return True

    def close_if_unused(self) -> list[Hashable]:
        """What is to be closed: all of it, once its process is dead and nothing points into it. Said once."""
        if not self.dead or self.stages or self.closed:
            return []
        self.closed = True
        left: list[Hashable] = list(self.segments.values())
        self.segments.clear()
        return left


@dataclass(slots=True, eq=False)
class Stage:
    """A route's time with one RING. Either end's memory is None as long as it was not offered."""

    route: DataRoute
    epoch: int = 0
    base_seq: int = 0
    resume: int = 0
    ring: Handle | None = None
    producer: Memory | None = None
    """Of the RING's maker, which may be dead."""
    producer_end: ProducerEnd = ProducerEnd.AWAITED
    credit: Handle | None = None
    consumer: Memory | None = None
    consumer_end: ConsumerEnd = ConsumerEnd.AWAITED
    consumer_incarnation: int = 0
    """Of its node, when the CREDIT was made: the name under which a supervisor keeps it."""
    predecessor: Handle | None = None
    """CREDIT of the last consumer that ran on this stage and died."""
    predecessor_incarnation: int = 0
    by_link: set[int] = field(default_factory=set)
    """Segments that came with the present consumer's link; mapped when it answers."""
    sent: set[int] = field(default_factory=set)
    """All segments that the present consumer was sent."""
    dropping: set[int] = field(default_factory=set)
    """Of those, what it was told to unmap and has not said to have unmapped."""
    ended: bool = False
    """Its producer is dead or has done with it: nothing more comes."""
    port: Port | None = None
    """As its consumer was told of it, where the route is another one by now."""
    passed: int = 0
    """Positions below it a consumer before the present one has passed; what was overwritten there is counted."""
    returned: int = 0
    """Frames that consumers before the present one have returned (policy ``latest``: that position)."""
    lines: int = 0
    """Lines between its ends that are over, as one of the two was."""
    held: bool = False
    """Its consumer is linked when what it loses is drained, so that order is kept."""

    def happens(self, event: StageEvent) -> None:
        """Both ends are now where that leads. Raises IllegalEvent, and then nothing has changed."""
        what = f"stage {self.epoch} of route {self.route.id!r}"
        ends = following(PRODUCER, what, self.producer_end, event), following(CONSUMER, what, self.consumer_end, event)
        self.producer_end, self.consumer_end = ends

    @property
    def told_producer(self) -> bool:
        """The producer was linked, perhaps to a consumer before the present one."""
        return self.producer_end in (ProducerEnd.LINKED, ProducerEnd.STALE)

    @property
    def relink(self) -> bool:
        """The producer was linked, but to a consumer before the present one."""
        return self.producer_end is ProducerEnd.STALE

    @property
    def told_consumer(self) -> bool:
        """The present consumer was linked."""
        return self.consumer_end is ConsumerEnd.LINKED

    @property
    def complete(self) -> bool:
        """Both ends were offered."""
        return self.ring is not None and self.credit is not None

    @property
    def lived(self) -> bool:
        """An end was linked: it may hold frames."""
        return self.told_producer or self.told_consumer or self.predecessor is not None

    @property
    def seen(self) -> tuple[Handle, Handle] | None:
        """RING, and CREDIT of the last consumer that may have done something; None before both were there."""
        credit = self.credit if self._has_consumer else self.predecessor
        return None if self.ring is None or credit is None else (self.ring, credit)

    def snapshot(self, reader: Reader) -> Snapshot | None:
        """Its counters, the consuming end's since its predecessor's were kept; None before both ends were there, when
        one has spoilt its header, or for want of memory. Where only the present consumer cannot be looked at, what the
        producer has counted is told, as if there were no consumer now."""
        pair = self.seen
        found = reader.snapshot(*pair) if pair is not None else None
        if found is not None:
            return self._of_present(found, self._has_consumer)
        if self.ring is None or self.predecessor is None:
            return None
        found = reader.snapshot(self.ring, self.predecessor)
        return None if found is None else self._of_present(found, has_consumer=False)

    def _of_present(self, seen: Snapshot, has_consumer: bool) -> Snapshot:
        drops = seen["drops"]
        found = drops["overwritten"] - seen["unseen"]
        if not has_consumer:
            seen["taken"] = seen["again"] = seen["consumer_sleeps"] = seen["consumer_wakes"] = found = 0
        unseen = max(0, seen["unseen"] - max(0, self.passed - seen["next"]))
        seen["dropped"] += found + unseen - drops["overwritten"]
        drops["overwritten"], seen["unseen"] = found + unseen, unseen
        if has_consumer:  # a producer that has ended never notes what came back before this consumer
            seen["returned"] += max(0, self.returned - seen["returned_before"])
            seen["outstanding"] = max(0, seen["committed"] - seen["returned"])
        return seen

    @property
    def _has_consumer(self) -> bool:
        """Its present consumer was told of it, or there was none before."""
        return self.told_consumer or self.predecessor is None

    @property
    def line(self) -> tuple[LineEnd, LineEnd]:
        """Both ends of what its producer and its consumer wake each other by."""
        return LineEnd(self, "producer", self.lines), LineEnd(self, "consumer", self.lines)

    def told_to_drop(self, index: int) -> None:
        """Its consumer is told that a segment is gone."""
        self.sent.discard(index)
        self.by_link.discard(index)
        self.dropping.add(index)


class LineEnd(NamedTuple):
    """The end of a stage's line that one of its two ends is given, and nobody keeps. Who is told of a consumer, or of a
    producer, that was not there before gets an end of a new one."""

    stage: Stage
    end: End
    number: int
    """Of the line: what is told of an earlier one is not mistaken for this one's."""

    @property
    def other(self) -> LineEnd:
        """The one that the other end of the stage is given."""
        return self._replace(end="consumer" if self.end == "producer" else "producer")


class Ends(NamedTuple):
    """What a node has to offer: RINGs of these stages, CREDITs of those. ``leave``: outputs that it closes by then."""

    rings: list[Stage]
    credits: list[Stage]
    leave: tuple[str, ...] = ()
    changes: bool = False
    """Its routes become others: outputs only when all inputs have, or one that loses its last input would end."""


@dataclass(slots=True, eq=False)
class NodeEnds:
    """One node, with what its present incarnation was told and has said."""

    node: str
    outputs: list[DataRoute] = field(default_factory=list)
    inputs: list[DataRoute] = field(default_factory=list)
    memory: Memory | None = None
    incarnation: int = 0
    state: NodeState = NodeState.ABSENT
    came_back: bool = False
    """It was started by an earlier daemon: what it said to that one may come still."""
    due: deque[Ends] = field(default_factory=deque)
    """What it was asked for and has not offered yet."""
    later: list[Stage] = field(default_factory=list)
    """Stages of inputs that it is told of as soon as it is ready."""
    answers: deque[Ends] = field(default_factory=deque)
    """Links that it has not answered yet."""
    relinking: set[Stage] = field(default_factory=set)
    """Stages of its inputs whose producer has to be linked to it before it may start."""
    asked_relink: bool = False
    """It is ready, and nobody was told yet that they all are."""
    source: bool = False
    """Its present incarnation has no inputs: its frames carry the numbers of their items."""
    sent: int = 0
    """The last item of a source that is known to have gone out on any of its outputs."""

    def happens(self, event: NodeEvent) -> None:
        """It is now where that leads. Raises IllegalEvent, and then nothing has changed."""
        self.state = following(NODE, f"node {self.node!r}", self.state, event)

    def may(self, event: NodeEvent) -> bool:
        """Its state has a cell for that."""
        return NODE[self.state][event] is not None

    @property
    def configured(self) -> bool:
        """It was told its routes."""
        return NodeState.TOLD <= self.state <= NodeState.STARTED

    @property
    def linked(self) -> bool:
        """It got the other ends of its routes."""
        return NodeState.LINKED <= self.state <= NodeState.STARTED

    @property
    def ready(self) -> bool:
        """It has mapped what it got at first, and can be told of more."""
        return NodeState.READY <= self.state <= NodeState.STARTED

    @property
    def started(self) -> bool:
        """It may take and return frames."""
        return self.state is NodeState.STARTED

    @property
    def gone(self) -> bool:
        """For good."""
        return self.state is NodeState.GONE

    def check(self, event: NodeEvent) -> None:
        """Raises IllegalEvent unless its state has a cell for that."""
        if not self.may(event):
            raise IllegalEvent(f"node {self.node!r}", self.state.name.lower(), event, ())


def check_count(node: str, count: int) -> None:
    """Raises ProtocolError ``quota-exceeded`` when an arena of ``node`` may not have ``count`` segments."""
    if count > MAX_SEGMENTS:
        raise error("quota-exceeded", what=f"another segment of node {node!r}", limit=MAX_SEGMENTS)
