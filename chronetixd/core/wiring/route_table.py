"""The data routes of one flow as plain state: nodes, chains of stages, counters. Who changes it is told apart by what
for: ``lives``, ``segments``, ``links``, ``rerouting``; ``machine`` puts them together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from chronetix.protocol.messages import (
    Conclude,
    Detach,
    Drained,
    Extend,
    Link,
    Port,
    Retract,
    Segment,
    SegmentDropped,
    SegmentMapped,
)
from chronetixd.core.counters import Counters
from chronetixd.core.wiring.stages import DataRoute, NodeEnds, Reader, Stage
from chronetixd.core.wiring.states import NodeEvent, StageEvent


class Told(NamedTuple):
    """A message for ``node``, with handles of memories, which stay kept, and ends of lines, which do not."""

    node: str
    message: Conclude | Detach | Drained | Extend | Link | Retract | Segment | SegmentDropped | SegmentMapped
    handles: tuple[Hashable, ...] = ()


class Close(NamedTuple):
    """A memory, or what is left of a line, is not needed any more."""

    handle: Hashable


@dataclass(slots=True)
class RouteTable:
    """All data routes, each with its stages and what the past ones have counted."""

    routes: tuple[DataRoute, ...]
    places: dict[str, NodeEnds]
    reader: Reader
    chains: dict[str, list[Stage]] = field(default_factory=dict)
    counters: dict[str, Counters] = field(default_factory=dict)
    ports: dict[tuple[str, str], Port] = field(default_factory=dict)
    """What consumers were told of their inputs, by node and route."""
    removed: dict[str, DataRoute] = field(default_factory=dict)
    """Routes that the flow has no more, until they are drained."""
    effects: list[Close] = field(default_factory=list)
    """What is to be done beside what is said."""

    def stages(self, routes: Iterable[DataRoute]) -> Iterator[Stage]:
        """All stages of ``routes``, of each the oldest first."""
        for route in routes:
            yield from self.chains[route.id]

    def present(self, routes: Iterable[DataRoute]) -> list[Stage]:
        """The present stage of each."""
        return [self.chains[route.id][-1] for route in routes]

    def reachable(self, node: str) -> bool:
        """``node`` has offered its memory, and is not gone."""
        place = self.places.get(node)
        return place is not None and place.memory is not None and not place.gone

    def close(self, *handles: Hashable | None) -> None:
        """These are not needed any more."""
        self.effects += [Close(handle) for handle in handles if handle is not None]

    # -- ends of stages that are over ----------------------------------------------------------------------

    def consumer_died(self, stage: Stage, *, ran: bool) -> None:
        """What a successor may need of the end that ``ran`` is kept; one that never did changes nothing."""
        if ran and stage.told_consumer:
            seen = stage.snapshot(self.reader)
            self.counters[stage.route.id].keep_consumer(seen)
            if seen is not None:
                stage.passed = max(stage.passed, seen["next"])
                stage.returned = max(stage.returned, seen["returned"])
            self.close(stage.predecessor)
            stage.predecessor, stage.credit = stage.credit, None
            stage.predecessor_incarnation = stage.consumer_incarnation
        self.close(stage.credit, *stage.line)
        stage.lines += 1
        stage.credit = stage.consumer = None
        stage.happens(StageEvent.CONSUMER_DIED)
        stage.by_link.clear()
        stage.sent.clear()

    def forget_ring(self, stage: Stage) -> None:
        """Its maker died before anybody was linked to it: the next one makes this stage's ring."""
        stage.happens(StageEvent.RING_LOST)
        self.close(stage.ring, *stage.line)
        stage.lines += 1
        stage.ring = stage.port = None
        self._leave_producer(stage)

    def give_up(self, stage: Stage) -> None:
        """It is over: add up what it counted and give its memory back."""
        self.counters[stage.route.id].keep(stage.snapshot(self.reader))
        self.drop(stage)

    def drop(self, stage: Stage) -> None:
        """Nobody asks what it has counted: give its memory back."""
        self.close(stage.ring, stage.credit, stage.predecessor, *stage.line)
        stage.ring = stage.credit = stage.predecessor = None
        self._leave_producer(stage)

    def _leave_producer(self, stage: Stage) -> None:
        if stage.producer is not None:
            stage.producer.stages -= 1
            self.close(*stage.producer.close_if_unused())
            stage.producer = None

    def reset(self, place: NodeEnds) -> None:
        """Its worker is dead; its successor is told everything anew."""
        place.asked_relink = place.came_back = False
        place.due.clear()
        place.later.clear()
        place.answers.clear()
        place.relinking.clear()
        if place.memory is not None:
            place.memory.dead = True
            place.memory.unmapped.clear()
            self.close(*place.memory.close_if_unused())
            place.memory = None
        place.incarnation += 1
        if not place.gone:
            place.happens(NodeEvent.DIES)
