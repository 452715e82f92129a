"""What is known of the workers' shared memory: which worker made it, and which stage of which route it belongs to.

A route is a chain of stages, one for each RING that it has had; the last one is the present stage. A memory is closed
when the last stage that needs it is given up.
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
    MemoryEvent,
    MemoryState,
    ProducerEnd,
    StageEvent,
    following,
)

Handle = NewType("Handle", int)
"""Names an open memory whose contents were checked."""

End = Literal["producer", "consumer"]

Snapshot = dict[str, Any]
"""The counters of one stage, as read from its RING and CREDIT."""


class MemoryReader(Protocol):
    """Reads the contents of a memory, whatever the processes that write to it do."""

    def remains(self, ring: Handle) -> tuple[int, int]:
        """Return the position at which a RING ends, and the highest input_seq committed to it. Raises PeerFault."""

    def snapshot(self, ring: Handle, credit: Handle) -> Snapshot | None:
        """Return the counters of RING and CREDIT; None when the header of one is corrupt, or for lack of memory."""


class DataRoute(NamedTuple):
    """A data route: its id, the nodes at its ends, and its policy, which determines whether the producer waits for the
    consumer."""

    id: str
    source: str
    target: str
    policy: str = "block"


MAX_SEGMENTS = 64
"""Segments of one arena. An arena grows by doubling, so that even the largest one has fewer than twenty. Each segment
costs a descriptor in the daemon and in every consumer.
"""


@dataclass(slots=True, eq=False)
class Memory:
    """What one process has offered besides its ends of routes: the arena that its RINGs point into."""

    segments: dict[int, int] = field(default_factory=dict)
    unmapped: dict[int, set[Stage]] = field(default_factory=dict)
    """Segments that the process may not use yet, and the stages whose consumer has not mapped them."""
    undropped: dict[int, set[Stage]] = field(default_factory=dict)
    """Segments that the process has given back, and the stages whose consumer still maps them."""
    stages: int = 0
    """The number of stages whose RING points into the arena."""
    incarnation: int = 0
    """The incarnation of the node that made this memory."""
    reported_segments: set[int] = field(default_factory=set)
    """Segments that the worker reported as new or given back when it reattached. Its earlier message about such a
    segment may still arrive."""
    dead: bool = False
    closed: bool = False

    def settle(self, stage: Stage, index: int) -> bool:
        """Note that the consumer of ``stage`` has mapped segment ``index``, or never has to. Returns True when that was
        the last one."""
        waiting = self.unmapped.get(index)
        if waiting is None or stage not in waiting:
            return False
        waiting.discard(stage)
        if waiting:
            return False
        del self.unmapped[index]
        return True

    def close_if_unused(self) -> list[Hashable]:
        """Return the segments to close, once the process is dead and no stage points into the arena. They are returned
        once only."""
        if not self.dead or self.stages or self.closed:
            return []
        self.closed = True
        left: list[Hashable] = list(self.segments.values())
        self.segments.clear()
        return left


@dataclass(slots=True, eq=False)
class Stage:
    """The part of a route's life that uses one RING. The memory of either end is None until it is offered."""

    route: DataRoute
    epoch: int = 0
    base_seq: int = 0
    resume: int = 0
    ring: Handle | None = None
    producer: Memory | None = None
    """The memory of the worker that made the RING; this worker may be dead."""
    producer_end: ProducerEnd = ProducerEnd.AWAITED
    credit: Handle | None = None
    consumer: Memory | None = None
    consumer_end: ConsumerEnd = ConsumerEnd.AWAITED
    consumer_incarnation: int = 0
    """The incarnation of the consumer that made the CREDIT. The service manager stores the CREDIT under it."""
    predecessor: Handle | None = None
    """The CREDIT of the last consumer that ran on this stage and died."""
    predecessor_incarnation: int = 0
    by_link: set[int] = field(default_factory=set)
    """Segments that came with the present consumer's link; it has mapped them when it answers the link."""
    sent: set[int] = field(default_factory=set)
    """All segments that the present consumer was sent."""
    dropping: set[int] = field(default_factory=set)
    """Segments that the present consumer was told to unmap and has not reported as unmapped."""
    ended: bool = False
    """Whether the producer is dead or has left this stage: no more frames come."""
    port: Port | None = None
    """The port that the consumer was told, kept when the route has changed since then."""
    passed: int = 0
    """The position that the consumers before the present one have passed. Frames overwritten below it are counted
    already."""
    returned: int = 0
    """Frames that the consumers before the present one have returned (policy ``latest``: that position)."""
    lines: int = 0
    """The number of wake-up lines of this stage that are over because one of the two ends died."""
    held: bool = False
    """Whether the consumer is linked only after the removed routes to it are drained, so that order is kept."""

    def apply(self, event: StageEvent) -> None:
        """Set the states of both ends after ``event``. Raises IllegalEvent, and then nothing has changed."""
        what = f"stage {self.epoch} of route {self.route.id!r}"
        ends = following(PRODUCER, what, self.producer_end, event), following(CONSUMER, what, self.consumer_end, event)
        self.producer_end, self.consumer_end = ends

    @property
    def told_producer(self) -> bool:
        """Whether the producer was linked, perhaps to a consumer before the present one."""
        return self.producer_end in (ProducerEnd.LINKED, ProducerEnd.STALE)

    @property
    def relink(self) -> bool:
        """Whether the producer was linked to a consumer before the present one, and has to be linked again."""
        return self.producer_end is ProducerEnd.STALE

    @property
    def told_consumer(self) -> bool:
        """Whether the present consumer was linked."""
        return self.consumer_end is ConsumerEnd.LINKED

    @property
    def complete(self) -> bool:
        """Whether both ends were offered."""
        return self.ring is not None and self.credit is not None

    @property
    def lived(self) -> bool:
        """Whether either end was ever linked, so that the stage may hold frames."""
        return self.told_producer or self.told_consumer or self.predecessor is not None

    @property
    def seen(self) -> tuple[Handle, Handle] | None:
        """The RING, and the CREDIT of the last consumer that may have taken frames; None before both exist."""
        credit = self.credit if self._has_consumer else self.predecessor
        return None if self.ring is None or credit is None else (self.ring, credit)

    def snapshot(self, reader: MemoryReader) -> Snapshot | None:
        """Return the counters of the stage; those of the consuming end count from when its predecessor's were kept.
        None before both ends exist, when a header is corrupt, or for lack of memory. If only the present consumer's end
        cannot be read, the producer's counters are returned as if there were no present consumer."""
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
            untold = max(0, self.returned - seen["returned_before"])
            seen["returned"] += untold
            unread = max(0, drops["unread"] - untold)
            seen["dropped"] += unread - drops["unread"]
            drops["unread"] = unread
            seen["outstanding"] = max(0, seen["committed"] - seen["returned"])
        return seen

    @property
    def _has_consumer(self) -> bool:
        """Whether the present consumer was linked, or no consumer was linked before it."""
        return self.told_consumer or self.predecessor is None

    @property
    def line(self) -> tuple[LineEnd, LineEnd]:
        """Both ends of the line by which producer and consumer wake each other."""
        return LineEnd(self, "producer", self.lines), LineEnd(self, "consumer", self.lines)

    def note_drop_sent(self, index: int) -> None:
        """Note that the consumer is told that a segment was given back."""
        self.sent.discard(index)
        self.by_link.discard(index)
        self.dropping.add(index)


class LineEnd(NamedTuple):
    """One end of a stage's wake-up line. It is sent to a worker and not kept. A worker that is linked to a new peer
    gets an end of a new line."""

    stage: Stage
    end: End
    number: int
    """The number of the line within its stage, so that a message about an earlier line is not mistaken for one about
    this line."""

    @property
    def other(self) -> LineEnd:
        """The opposite end of the same line."""
        return self._replace(end="consumer" if self.end == "producer" else "producer")


class Ends(NamedTuple):
    """What a node is asked to offer: RINGs of the stages in ``rings``, and CREDITs of the stages in ``credits``.
    ``leave`` names the outputs that it closes with this offer."""

    rings: list[Stage]
    credits: list[Stage]
    leave: tuple[str, ...] = ()
    changes: bool = False
    """Whether the routes of a running node change. Outputs change only after all inputs have: else a node that loses
    its last input would end."""


@dataclass(slots=True, eq=False)
class NodeEnds:
    """One node: what its present incarnation was told, and what it has reported."""

    node: str
    outputs: list[DataRoute] = field(default_factory=list)
    inputs: list[DataRoute] = field(default_factory=list)
    memory: Memory | None = None
    incarnation: int = 0
    state: MemoryState = MemoryState.ABSENT
    reattached: bool = False
    """Whether an earlier daemon has started the worker. Messages that it sent to that daemon may still arrive."""
    due: deque[Ends] = field(default_factory=deque)
    """What the worker was asked to offer and has not offered yet."""
    later: list[Stage] = field(default_factory=list)
    """Stages of inputs that the worker is told of as soon as it is ready."""
    answers: deque[Ends] = field(default_factory=deque)
    """Links that the worker has not answered yet."""
    relinking: set[Stage] = field(default_factory=set)
    """Stages of its inputs whose producer has to be linked to the worker before it may start."""
    asked_relink: bool = False
    """Whether the worker is ready and the completion of its relinks was not reported yet."""
    source: bool = False
    """Whether the present incarnation has no inputs: its frames carry the numbers of its items."""
    sent: int = 0
    """The last item that a source is known to have sent on any of its outputs."""

    def apply(self, event: MemoryEvent) -> None:
        """Enter the state that follows ``event``. Raises IllegalEvent, and then nothing has changed."""
        self.state = following(NODE, f"node {self.node!r}", self.state, event)

    def allows(self, event: MemoryEvent) -> bool:
        """Return whether the present state allows ``event``."""
        return NODE[self.state][event] is not None

    @property
    def configured(self) -> bool:
        """Whether the worker was told its routes."""
        return MemoryState.TOLD <= self.state <= MemoryState.STARTED

    @property
    def linked(self) -> bool:
        """Whether the worker got the other ends of its routes."""
        return MemoryState.LINKED <= self.state <= MemoryState.STARTED

    @property
    def ready(self) -> bool:
        """Whether the worker has mapped what its first link brought, so that it can be told of more."""
        return MemoryState.READY <= self.state <= MemoryState.STARTED

    @property
    def started(self) -> bool:
        """Whether the worker may take and return frames."""
        return self.state is MemoryState.STARTED

    @property
    def gone(self) -> bool:
        """Whether the worker is gone for good."""
        return self.state is MemoryState.GONE

    def check(self, event: MemoryEvent) -> None:
        """Raise IllegalEvent unless the present state allows ``event``."""
        if not self.allows(event):
            raise IllegalEvent(f"node {self.node!r}", self.state.name.lower(), event, ())


def check_count(node: str, count: int) -> None:
    """Raise ProtocolError ``quota-exceeded`` when an arena of ``node`` may not have ``count`` segments."""
    if count > MAX_SEGMENTS:
        raise error("quota-exceeded", what=f"another segment of node {node!r}", limit=MAX_SEGMENTS)
