"""The data routes of one flow as plain state: nodes, chains of stages, counters. Who changes it is told apart by what
for: ``segments``, ``links``, ``rerouting``; ``wiring`` puts them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import shm
from chronetixd.counters import Counters
from chronetixd.stages import DataRoute, Place, Stage
from protocol.messages import (
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

Remains = Callable[[int], tuple[int, int]]
"""Where a dead producer's RING ends, as a position, and the highest input_seq committed to it. Raises PeerFault."""


class ToNode(NamedTuple):
    """A message for ``node``, with descriptors that stay ours."""

    node: str
    message: Conclude | Detach | Drained | Extend | Link | Retract | Segment | SegmentDropped | SegmentMapped
    descriptors: tuple[int, ...] = ()


@dataclass(slots=True)
class Net:
    """All data routes, each with its stages and what the past ones have counted."""

    routes: tuple[DataRoute, ...]
    places: dict[str, Place]
    chains: dict[str, list[Stage]] = field(default_factory=dict)
    counters: dict[str, Counters] = field(default_factory=dict)
    ports: dict[tuple[str, str], Port] = field(default_factory=dict)
    """What consumers were told of their inputs, by node and route."""
    removed: dict[str, DataRoute] = field(default_factory=dict)
    """Routes that the flow has no more, until they are drained."""
    remains: Remains = shm.remains

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
