"""The machine of one flow's routes: puts its parts together, and says what may happen to whom in which state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Drained, Linked, Segment, SegmentDropped, SegmentMapped
from chronetixd.core.counters import Counters
from chronetixd.core.wiring.links import Links
from chronetixd.core.wiring.lives import Lives
from chronetixd.core.wiring.reroute import Rerouting
from chronetixd.core.wiring.route_table import Close, RouteTable, Told
from chronetixd.core.wiring.segments import Segments
from chronetixd.core.wiring.stages import DataRoute, Handle, NodeEnds, Reader, Stage
from chronetixd.core.wiring.states import NodeEvent


class Machine:
    """All data routes of one flow. What is to be done beside what is said is in :meth:`take_effects`."""

    def __init__(self, nodes: Iterable[str], routes: tuple[DataRoute, ...], reader: Reader) -> None:
        self.net = net = RouteTable(routes, {node: NodeEnds(node) for node in nodes}, reader)
        self.segments = Segments(net)
        self.links = Links(net, self.segments)
        self.rerouting = Rerouting(net, self.segments, self.links)
        self.lives = Lives(net, self.segments, self.links, self.rerouting)
        for route in routes:
            net.places[route.source].outputs.append(route)
            net.places[route.target].inputs.append(route)
            net.chains[route.id] = [Stage(route)]
            net.counters[route.id] = Counters()

    def take_effects(self) -> list[Close]:
        """What is to be closed and rung since this was last asked, in this order."""
        effects, self.net.effects = self.net.effects, []
        return effects

    # -- what workers say: each only where the table of a node's states has a cell for it -------------------

    def ready(self, node: str) -> list[Told]:
        """``node`` has mapped all that came with its first link. Raises ProtocolError."""
        self._heard(node, NodeEvent.SAYS_READY, "ready")
        return self.lives.ready(node)

    def linked(self, node: str, message: Linked) -> list[Told]:
        """``node`` has mapped what a link after its first brought. Raises ProtocolError."""
        self._heard(node, NodeEvent.SAYS_LINKED, "linked")
        return self.links.linked(node, message)

    def grow(self, node: str, message: Segment, segment: Handle) -> list[Told]:
        """``node``'s arena has a further segment, which is kept. Raises ProtocolError."""
        self._heard(node, NodeEvent.GROWS, "segment")
        return self.segments.grow(node, message, segment)

    def mapped(self, node: str, message: SegmentMapped) -> list[Told]:
        """``node`` can follow descriptors into a segment of one of its inputs. Raises ProtocolError."""
        self._heard(node, NodeEvent.MAPS, "segment-mapped")
        return self.segments.mapped(node, message)

    def drop(self, node: str, message: SegmentDropped, *, reuse: bool = True) -> list[Told]:
        """``node`` has given a segment of its arena back. Raises ProtocolError."""
        self._heard(node, NodeEvent.SHRINKS, "segment-dropped")
        return self.segments.drop(node, message, reuse=reuse)

    def dropped(self, node: str, message: SegmentDropped) -> list[Told]:
        """``node`` has unmapped a segment of an input. Raises ProtocolError."""
        self._heard(node, NodeEvent.UNMAPS, "segment-dropped")
        return self.segments.dropped(node, message)

    def drained(self, node: str, message: Drained) -> list[Told]:
        """``node`` has emptied and returned a stage with which its producer has done. Raises ProtocolError."""
        self._heard(node, NodeEvent.DRAINS, "drained")
        return self.rerouting.drained(node, message)

    def _heard(self, node: str, event: NodeEvent, what: str) -> None:
        place = self.net.places[node]
        if not place.may(event):
            when = f"while its worker is {place.state.name.lower()}"
            raise error("unexpected-message", type=what, when=when)

    # -- what we do ----------------------------------------------------------------------------------------

    def relink(self, node: str) -> list[Told]:
        """The successor ``node`` is ready: links for the producers that had been linked to its predecessor."""
        self.net.places[node].check(NodeEvent.RELINKS)
        return self.links.relink(node)

    def started(self, node: str) -> None:
        """``node`` is told to start: from now on it may take and return frames."""
        self.net.places[node].happens(NodeEvent.START_SENT)

    def close(self) -> None:
        """Nothing of any route is needed any more, what it has counted neither. Idempotent."""
        net = self.net
        for chain in net.chains.values():
            for stage in chain:
                net.drop(stage)
            chain.clear()
        for place in net.places.values():
            net.reset(place)
        for name in net.removed:
            del net.chains[name], net.counters[name]
        net.removed.clear()
        net.places = {node: place for node, place in net.places.items() if node in self.rerouting.nodes}

    def take_over(self, places: Mapping[str, NodeEnds], chains: Mapping[str, list[Stage]]) -> None:
        """These are the nodes and their routes, as they were found."""
        self.net.places.update(places)
        self.net.chains.update(chains)
