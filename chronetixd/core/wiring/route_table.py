"""The data routes of one flow as plain state: nodes, chains of stages, counters. Modules change it by purpose:
``incarnations``, ``segments``, ``links`` and ``reroute``; ``machine`` assembles them.
"""

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
from chronetixd.core.wiring.stages import DataRoute, MemoryReader, NodeEnds, Stage
from chronetixd.core.wiring.states import MemoryEvent, StageEvent


class NodeMessage(NamedTuple):
    """A message for ``node``, with handles of memories, which stay open here, and ends of wake-up lines, which do
    not."""

    node: str
    message: Conclude | Detach | Drained | Extend | Link | Retract | Segment | SegmentDropped | SegmentMapped
    handles: tuple[Hashable, ...] = ()


class Close(NamedTuple):
    """Close a memory, or what is left of a wake-up line."""

    handle: Hashable


@dataclass(slots=True)
class RouteTable:
    """All data routes, each with its stages and the counts of its past stages."""

    routes: tuple[DataRoute, ...]
    nodes: dict[str, NodeEnds]
    reader: MemoryReader
    chains: dict[str, list[Stage]] = field(default_factory=dict)
    counters: dict[str, Counters] = field(default_factory=dict)
    ports: dict[tuple[str, str], Port] = field(default_factory=dict)
    """By node and route: the port that the worker of the node was told. An earlier image of the daemon hands over only
    those of inputs."""
    removed: dict[str, DataRoute] = field(default_factory=dict)
    """Removed routes that are not drained yet."""
    effects: list[Close] = field(default_factory=list)
    """Memories and lines to close."""

    def stages(self, routes: Iterable[DataRoute]) -> Iterator[Stage]:
        """Yield all stages of ``routes``, oldest first for each route."""
        for route in routes:
            yield from self.chains[route.id]

    def present(self, routes: Iterable[DataRoute]) -> list[Stage]:
        """Return the present stage of each route."""
        return [self.chains[route.id][-1] for route in routes]

    def reachable(self, node: str) -> bool:
        """Return whether ``node`` has offered its memory and is not gone."""
        node_ends = self.nodes.get(node)
        return node_ends is not None and node_ends.memory is not None and not node_ends.gone

    def close(self, *handles: Hashable | None) -> None:
        """Note that these handles are to be closed."""
        self.effects += [Close(handle) for handle in handles if handle is not None]

    # -- ends of stages that are over ----------------------------------------------------------------------

    def consumer_died(self, stage: Stage, *, ran: bool) -> None:
        """Detach the dead consumer from ``stage``. If it ``ran``, what a successor may need of its end is kept."""
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
        stage.apply(StageEvent.CONSUMER_DIED)
        stage.by_link.clear()
        stage.sent.clear()

    def forget_ring(self, stage: Stage) -> None:
        """Detach the dead producer from a stage that no consumer was linked to. The next worker makes a new RING for
        this stage."""
        stage.apply(StageEvent.RING_LOST)
        self.close(stage.ring, *stage.line)
        stage.lines += 1
        stage.ring = stage.port = None
        self._leave_producer(stage)

    def give_up(self, stage: Stage) -> None:
        """End ``stage``: add its counts to the route's and release its memory."""
        self.counters[stage.route.id].keep(stage.snapshot(self.reader))
        self.drop(stage)

    def drop(self, stage: Stage) -> None:
        """Release the memory of ``stage`` without keeping its counts."""
        self.close(stage.ring, stage.credit, stage.predecessor, *stage.line)
        stage.ring = stage.credit = stage.predecessor = None
        self._leave_producer(stage)

    def _leave_producer(self, stage: Stage) -> None:
        if stage.producer is not None:
            stage.producer.stages -= 1
            self.close(*stage.producer.close_if_unused())
            stage.producer = None

    def reset(self, node_ends: NodeEnds) -> None:
        """Forget what the dead worker of ``node_ends`` was told and has offered; its successor is told everything
        anew."""
        node_ends.asked_relink = node_ends.reattached = False
        node_ends.due.clear()
        node_ends.later.clear()
        node_ends.answers.clear()
        node_ends.relinking.clear()
        if node_ends.memory is not None:
            node_ends.memory.dead = True
            node_ends.memory.unmapped.clear()
            self.close(*node_ends.memory.close_if_unused())
            node_ends.memory = None
        node_ends.incarnation += 1
        if not node_ends.gone:
            node_ends.apply(MemoryEvent.DIES)
