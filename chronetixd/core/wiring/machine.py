"""The state machine of one flow's routes: assembles its parts, and checks which message is allowed in which state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Drained, Linked, Segment, SegmentDropped, SegmentMapped
from chronetixd.core.counters import Counters
from chronetixd.core.wiring.incarnations import Incarnations
from chronetixd.core.wiring.links import Links
from chronetixd.core.wiring.reroute import Rerouting
from chronetixd.core.wiring.route_table import Close, NodeMessage, RouteTable
from chronetixd.core.wiring.segments import Segments
from chronetixd.core.wiring.stages import DataRoute, Handle, MemoryReader, NodeEnds, Stage
from chronetixd.core.wiring.states import MemoryEvent


class WiringMachine:
    """All data routes of one flow. Methods return messages to send; the memories to close meanwhile are in
    :meth:`take_closes`."""

    def __init__(self, nodes: Iterable[str], routes: tuple[DataRoute, ...], reader: MemoryReader) -> None:
        self.table = table = RouteTable(routes, {node: NodeEnds(node) for node in nodes}, reader)
        self.segments = Segments(table)
        self.links = Links(table, self.segments)
        self.rerouting = Rerouting(table, self.segments, self.links)
        self.incarnations = Incarnations(table, self.segments, self.links, self.rerouting)
        for route in routes:
            table.nodes[route.source].outputs.append(route)
            table.nodes[route.target].inputs.append(route)
            table.chains[route.id] = [Stage(route)]
            table.counters[route.id] = Counters()

    def take_closes(self) -> list[Close]:
        """Return what is to be closed since the last call, in order."""
        effects, self.table.effects = self.table.effects, []
        return effects

    # -- messages of workers: each is allowed only in states whose table has a cell for it ------------------

    def ready(self, node: str) -> list[NodeMessage]:
        """Note that ``node`` has mapped everything that its first link brought. Raises ProtocolError."""
        self._check_allowed(node, MemoryEvent.SAYS_READY, "ready")
        return self.incarnations.ready(node)

    def linked(self, node: str, message: Linked) -> list[NodeMessage]:
        """Note that ``node`` has mapped what a later link brought. Raises ProtocolError."""
        self._check_allowed(node, MemoryEvent.SAYS_LINKED, "linked")
        return self.links.linked(node, message)

    def grow(self, node: str, message: Segment, segment: Handle) -> list[NodeMessage]:
        """Keep a further segment of the arena of ``node``. Raises ProtocolError."""
        self._check_allowed(node, MemoryEvent.GROWS, "segment")
        return self.segments.grow(node, message, segment)

    def mapped(self, node: str, message: SegmentMapped) -> list[NodeMessage]:
        """Note that ``node`` has mapped a segment of one of its inputs. Raises ProtocolError."""
        self._check_allowed(node, MemoryEvent.MAPS, "segment-mapped")
        return self.segments.mapped(node, message)

    def drop(self, node: str, message: SegmentDropped, *, reuse: bool = True) -> list[NodeMessage]:
        """Note that ``node`` has given back a segment of its arena. Raises ProtocolError."""
        self._check_allowed(node, MemoryEvent.SHRINKS, "segment-dropped")
        return self.segments.drop(node, message, reuse=reuse)

    def dropped(self, node: str, message: SegmentDropped) -> list[NodeMessage]:
        """Note that ``node`` has unmapped a segment of an input. Raises ProtocolError."""
        self._check_allowed(node, MemoryEvent.UNMAPS, "segment-dropped")
        return self.segments.dropped(node, message)

    def drained(self, node: str, message: Drained) -> list[NodeMessage]:
        """Note that ``node`` has drained a stage that its producer has ended. Raises ProtocolError."""
        self._check_allowed(node, MemoryEvent.DRAINS, "drained")
        return self.rerouting.drained(node, message)

    def _check_allowed(self, node: str, event: MemoryEvent, what: str) -> None:
        node_ends = self.table.nodes[node]
        if not node_ends.allows(event):
            when = f"while its worker is {node_ends.state.name.lower()}"
            raise error("unexpected-message", type=what, when=when)

    # -- steps of the daemon -------------------------------------------------------------------------------

    def relink(self, node: str) -> list[NodeMessage]:
        """Return the links for the producers that were linked to the predecessor of ``node``, which is ready."""
        self.table.nodes[node].check(MemoryEvent.RELINKS)
        return self.links.relink(node)

    def started(self, node: str) -> None:
        """Note that ``node`` is told to start: from now on it may take and return frames."""
        self.table.nodes[node].apply(MemoryEvent.START_SENT)

    def close(self) -> None:
        """Close all memories of all routes; their counters are not kept. Idempotent."""
        table = self.table
        for chain in table.chains.values():
            for stage in chain:
                table.drop(stage)
            chain.clear()
        for node_ends in table.nodes.values():
            table.reset(node_ends)
        for name in table.removed:
            del table.chains[name], table.counters[name]
        table.removed.clear()
        table.nodes = {node: node_ends for node, node_ends in table.nodes.items() if node in self.rerouting.nodes}

    def take_over(self, places: Mapping[str, NodeEnds], chains: Mapping[str, list[Stage]]) -> None:
        """Replace nodes and chains by what was recovered from an earlier daemon's workers."""
        self.table.nodes.update(places)
        self.table.chains.update(chains)
