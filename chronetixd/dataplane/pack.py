"""The wiring of a flow as plain data, and back. Stages and memories refer to each other: each is packed once and
referred to by number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import msgspec

from chronetix.protocol.messages import Port
from chronetixd.core.packed import PackedCounters
from chronetixd.core.wiring.stages import DataRoute, Ends, Handle, Memory, NodeEnds, Stage
from chronetixd.core.wiring.states import ConsumerEnd, MemoryState, ProducerEnd
from chronetixd.dataplane.lines import Lines
from chronetixd.packing import Bag, Packed, Unbag

Pairs = list[tuple[list[int], list[int]]]
_T = TypeVar("_T")


class PackedMemory(Packed, frozen=True):
    """The arena of a worker. Stages are referred to by their index in :class:`PackedWiring`."""

    segments: dict[int, int] = {}
    unmapped: dict[int, list[int]] = {}
    undropped: dict[int, list[int]] = {}
    stages: int = 0
    incarnation: int = 0
    reported_segments: list[int] = msgspec.field(default_factory=list, name="shown_so")
    dead: bool = False


class PackedStage(Packed, frozen=True):
    """A stage. Memories are referred to by their index in :class:`PackedWiring`."""

    route: str
    epoch: int
    base_seq: int
    resume: int
    ring: int | None = None
    producer: int | None = None
    credit: int | None = None
    consumer: int | None = None
    consumer_incarnation: int | None = None
    """None if an older release has packed it: then it is the incarnation of ``consumer``."""
    predecessor: int | None = None
    predecessor_incarnation: int = 0
    told_producer: bool = False
    relink: bool = False
    told_consumer: bool = False
    by_link: list[int] = []
    sent: list[int] = []
    dropping: list[int] = []
    ended: bool = False
    port: Port | None = None
    passed: int = 0
    returned: int = 0
    line: dict[Literal["producer", "consumer"], int] = {}
    """The ends of the present wake-up line that were not sent."""
    lines: int = 0


class PackedNodeEnds(Packed, frozen=True):
    """A node. ``due`` and ``answers`` are pairs of lists: stages whose RING, and stages whose CREDIT, is meant."""

    memory: int | None = None
    incarnation: int = 0
    configured: bool = False
    linked: bool = False
    ready: bool = False
    started: bool = False
    gone: bool = False
    due: list[tuple[list[int], list[int]]] = []
    later: list[int] = []
    answers: list[tuple[list[int], list[int]]] = []
    relinking: list[int] = []
    asked_relink: bool = False
    reattached: bool = msgspec.field(default=False, name="came_back")
    source: bool | None = None
    sent: int = 0


class PackedWiring(Packed, frozen=True):
    """The shared memory of one flow. ``last`` are the counters of routes that are over."""

    memories: list[PackedMemory]
    stages: list[PackedStage]
    chains: dict[str, list[int]]
    places: dict[str, PackedNodeEnds]
    counters: dict[str, PackedCounters]
    ports: list[tuple[str, str, Port]] = []
    last: dict[str, dict[str, Any] | None] = {}


class Packer:
    """Packs stages and memories, and numbers them in the order in which they are first referred to."""

    def __init__(self, bag: Bag, lines: Lines) -> None:
        self._bag = bag
        self._lines = lines
        self._stages: dict[Stage, int] = {}
        self._memories: dict[Memory, int] = {}

    def stages(self, stages: Iterable[Stage]) -> list[int]:
        """Return the numbers of ``stages``."""
        return [self._stages.setdefault(stage, len(self._stages)) for stage in stages]

    def _memory(self, memory: Memory | None) -> int | None:
        return None if memory is None else self._memories.setdefault(memory, len(self._memories))

    def node_ends(self, node_ends: NodeEnds) -> PackedNodeEnds:
        """Return a packed node."""
        return PackedNodeEnds(
            memory=self._memory(node_ends.memory),
            incarnation=node_ends.incarnation,
            configured=node_ends.configured,
            linked=node_ends.linked,
            ready=node_ends.ready,
            started=node_ends.started,
            gone=node_ends.gone,
            due=self._pairs(node_ends.due),
            later=self.stages(node_ends.later),
            answers=self._pairs(node_ends.answers),
            relinking=sorted(self.stages(node_ends.relinking)),
            asked_relink=node_ends.asked_relink,
            reattached=node_ends.reattached,
            source=node_ends.source,
            sent=node_ends.sent,
        )

    def _pairs(self, ends: Iterable[Ends]) -> Pairs:
        return [(self.stages(each.rings), self.stages(each.credits)) for each in ends]

    def all(self) -> tuple[list[PackedStage], list[PackedMemory]]:
        """Return every stage and memory that was referred to, including those that are only reachable from others."""
        packed_stages: list[PackedStage] = []
        packed_memories: list[PackedMemory] = []
        while len(packed_stages) < len(self._stages) or len(packed_memories) < len(self._memories):
            for stage in list(self._stages)[len(packed_stages) :]:
                packed_stages.append(self._stage(stage))
            for memory in list(self._memories)[len(packed_memories) :]:
                packed_memories.append(self._packed(memory))
        return packed_stages, packed_memories

    def _stage(self, stage: Stage) -> PackedStage:
        put = self._bag.put_if
        return PackedStage(
            route=stage.route.id,
            epoch=stage.epoch,
            base_seq=stage.base_seq,
            resume=stage.resume,
            ring=put(stage.ring),
            producer=self._memory(stage.producer),
            credit=put(stage.credit),
            consumer=self._memory(stage.consumer),
            consumer_incarnation=stage.consumer_incarnation,
            predecessor=put(stage.predecessor),
            predecessor_incarnation=stage.predecessor_incarnation,
            told_producer=stage.told_producer,
            relink=stage.relink,
            told_consumer=stage.told_consumer,
            by_link=sorted(stage.by_link),
            sent=sorted(stage.sent),
            dropping=sorted(stage.dropping),
            ended=stage.ended,
            port=stage.port,
            passed=stage.passed,
            returned=stage.returned,
            lines=stage.lines,
            line={end: self._bag.put(fd) for end, fd in self._lines.left(stage).items()},
        )

    def _packed(self, memory: Memory) -> PackedMemory:
        return PackedMemory(
            segments={index: self._bag.put(fd) for index, fd in memory.segments.items()},
            unmapped={index: sorted(self.stages(waiting)) for index, waiting in memory.unmapped.items()},
            undropped={index: sorted(self.stages(waiting)) for index, waiting in memory.undropped.items()},
            stages=memory.stages,
            incarnation=memory.incarnation,
            reported_segments=sorted(memory.reported_segments),
            dead=memory.dead,
        )


class Unpacker:
    """Restores stages and memories by number. Raises ValueError for a route or number that the flow does not have,
    OSError for a missing descriptor."""

    def __init__(
        self,
        stages: list[PackedStage],
        memories: list[PackedMemory],
        routes: Iterable[DataRoute],
        bag: Unbag,
        lines: Lines,
    ) -> None:
        self._bag = bag
        self._lines = lines
        known = {route.id: route for route in routes}
        self._memories = [self._memory(each) for each in memories]
        self._stages = [self._stage(known, each) for each in stages]
        for memory, packed in zip(self._memories, memories, strict=True):
            memory.unmapped = {index: set(self.stages(waiting)) for index, waiting in packed.unmapped.items()}
            memory.undropped = {index: set(self.stages(waiting)) for index, waiting in packed.undropped.items()}

    def stages(self, numbers: Iterable[int]) -> list[Stage]:
        """Return the stages that ``numbers`` refer to."""
        return [_at(self._stages, number, "stage") for number in numbers]

    def node_ends(self, node_ends: NodeEnds, packed: PackedNodeEnds) -> None:
        """Restore ``node_ends``, which must be new, from ``packed``."""
        node_ends.memory = self._of(packed.memory)
        node_ends.incarnation = packed.incarnation
        node_ends.state = _state(packed)
        node_ends.due.extend(self._ends(packed.due))
        node_ends.later = self.stages(packed.later)
        node_ends.answers.extend(self._ends(packed.answers))
        node_ends.relinking = set(self.stages(packed.relinking))
        node_ends.asked_relink = packed.asked_relink
        node_ends.reattached = packed.reattached
        node_ends.source = not node_ends.inputs if packed.source is None else packed.source
        node_ends.sent = packed.sent

    def _ends(self, pairs: Pairs) -> list[Ends]:
        return [Ends(self.stages(rings), self.stages(credits)) for rings, credits in pairs]

    def _of(self, number: int | None) -> Memory | None:
        return None if number is None else _at(self._memories, number, "memory")

    def _memory(self, packed: PackedMemory) -> Memory:
        segments = {index: self._bag.take(fd) for index, fd in packed.segments.items()}
        return Memory(
            segments,
            stages=packed.stages,
            incarnation=packed.incarnation,
            reported_segments=set(packed.reported_segments),
            dead=packed.dead,
        )

    def _stage(self, routes: dict[str, DataRoute], packed: PackedStage) -> Stage:
        if packed.route not in routes:
            raise ValueError(f"there is no data route {packed.route!r}")
        take = self._bag.take_if
        consumer, incarnation = self._of(packed.consumer), packed.consumer_incarnation
        if incarnation is None:
            incarnation = consumer.incarnation if consumer is not None else 0
        stage = Stage(
            routes[packed.route],
            packed.epoch,
            packed.base_seq,
            packed.resume,
            ring=_handle(take(packed.ring)),
            producer=self._of(packed.producer),
            credit=_handle(take(packed.credit)),
            consumer=consumer,
            consumer_incarnation=incarnation,
            predecessor=_handle(take(packed.predecessor)),
            predecessor_incarnation=packed.predecessor_incarnation,
            producer_end=producer_end(packed),
            consumer_end=consumer_end(packed),
            by_link=set(packed.by_link),
            sent=set(packed.sent),
            dropping=set(packed.dropping),
            ended=packed.ended,
            port=packed.port,
            passed=packed.passed,
            returned=packed.returned,
            lines=packed.lines,
        )
        self._lines.put(stage, {end: self._bag.take(fd) for end, fd in packed.line.items()})
        return stage


def _handle(fd: int | None) -> Handle | None:
    return None if fd is None else Handle(fd)


def _state(packed: PackedNodeEnds) -> MemoryState:
    """Return the furthest state that the flags of ``packed`` stand for: a snapshot has one flag for each state."""
    steps = (packed.gone, packed.started, packed.ready, packed.linked, packed.memory is not None, packed.configured)
    return next(
        (state for state, there in zip(reversed(MemoryState), steps, strict=False) if there), MemoryState.ABSENT
    )


def producer_end(packed: PackedStage) -> ProducerEnd:
    """Return the producer's state that the flags of ``packed`` stand for."""
    if packed.told_producer:
        return ProducerEnd.STALE if packed.relink else ProducerEnd.LINKED
    return ProducerEnd.AWAITED if packed.ring is None else ProducerEnd.OFFERED


def consumer_end(packed: PackedStage) -> ConsumerEnd:
    """Return the consumer's state that the flags of ``packed`` stand for."""
    if packed.told_consumer:
        return ConsumerEnd.LINKED
    return ConsumerEnd.AWAITED if packed.credit is None else ConsumerEnd.OFFERED


def _at(found: list[_T], number: int, what: str) -> _T:
    if not 0 <= number < len(found):
        raise ValueError(f"there is no {what} {number} among {len(found)}")
    return found[number]
