"""Segments of arenas on their way to consumers and back. A producer may use a segment when all consumers that have to
map it have done so, and may reuse its index when no consumer maps it any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Segment, SegmentDropped, SegmentMapped
from chronetixd.core.wiring.route_table import NodeMessage, RouteTable
from chronetixd.core.wiring.stages import Handle, Memory, Stage


class Segments:
    """The segments of all arenas of one flow."""

    def __init__(self, table: RouteTable) -> None:
        self._table = table

    @property
    def held(self) -> int:
        """The number of segments in all arenas, including arenas of dead workers that are being drained."""
        stages = self._table.stages(self._table.routes)
        memories = {id(stage.producer): stage.producer for stage in stages if stage.producer is not None}
        memories |= {
            id(node_ends.memory): node_ends.memory
            for node_ends in self._table.nodes.values()
            if node_ends.memory is not None
        }
        return sum(len(memory.segments) for memory in memories.values())

    def grow(self, node: str, message: Segment, segment: Handle) -> list[NodeMessage]:
        """Keep a further segment of the arena of ``node``. Returns the messages that send it to consumers, or the
        confirmation to ``node`` when no consumer has to map it.

        A consumer that is not linked yet gets the segment with its link. A segment that was reported at the reattach
        already is not kept again. Raises ProtocolError, and then nothing is kept.
        """
        memory = self._table.nodes[node].memory
        if memory is None:
            raise error("unexpected-message", type="segment", when="before the offer")
        if message.index in memory.segments and message.index in memory.reported_segments:
            memory.reported_segments.discard(message.index)
            return []
        check_new(memory, node, message.index)
        memory.segments[message.index] = segment
        return self.spread(node, memory, message.index)

    def spread(self, node: str, memory: Memory, index: int, *, confirmed: bool = False) -> list[NodeMessage]:
        """Send a segment to every consumer that lacks it. Unless ``confirmed``, ``node`` may not use it before they
        have mapped it."""
        stages = [stage for stage in self._table.present(self._table.nodes[node].outputs) if stage.producer is memory]
        lacking = [s for s in stages if not self._table.nodes[s.route.target].gone and index not in s.sent]
        waited_for = {stage for stage in lacking if stage.route.policy == "block"}
        forwarded = []
        for stage in lacking:
            if stage.told_consumer:
                stage.sent.add(index)
                part = Segment(index=index, route=stage.route.id, epoch=stage.epoch)
                forwarded.append(NodeMessage(stage.route.target, part, (memory.segments[index],)))
        if confirmed:
            return forwarded
        if waited_for:
            memory.unmapped[index] = waited_for
            return forwarded
        return [*forwarded, NodeMessage(node, SegmentMapped(index=index))]

    def mapped(self, node: str, message: SegmentMapped) -> list[NodeMessage]:
        """Note that ``node`` has mapped a segment of one of its inputs. Raises ProtocolError."""
        chain = [stage for stage in self._table.chains.get(message.route, ()) if stage.route.target == node]
        stage = next((each for each in chain if each.epoch == message.epoch), None)
        if stage is None and (message.route not in self._table.chains or (chain and message.epoch < chain[0].epoch)):
            return []  # the stage was drained meanwhile
        if stage is None or message.index not in stage.sent:
            reason = f"segment {message.index} of route {message.route!r} was not sent to node {node!r}"
            raise error("malformed-message", type="segment-mapped", reason=reason)
        return self.settle_segment(stage, message.index)

    def settle(self, stages: Iterable[Stage]) -> list[NodeMessage]:
        """Note that consumers have mapped the segments that came with their links."""
        told = []
        for stage in stages:
            for index in sorted(stage.by_link):
                told += self.settle_segment(stage, index)
            stage.by_link.clear()
        return told

    def settle_segment(self, stage: Stage, index: int) -> list[NodeMessage]:
        """Note that the consumer of ``stage`` has mapped this segment, or never has to."""
        if stage.producer is None or not stage.producer.settle(stage, index):
            return []
        return [NodeMessage(stage.route.source, SegmentMapped(index=index))]

    # -- shrinking -----------------------------------------------------------------------------------------

    def drop(self, node: str, message: SegmentDropped, *, reuse: bool = True) -> list[NodeMessage]:
        """Close a segment that ``node`` has given back. Returns the messages that tell consumers to unmap it, or tell
        ``node`` that its index is free when no consumer maps it. Without ``reuse`` the index is never freed. Raises
        ProtocolError for a segment that is not in use."""
        memory, index = self._table.nodes[node].memory, message.index
        if memory is not None and index not in memory.segments and index in memory.reported_segments:
            memory.reported_segments.discard(index)
            return []
        if memory is None or index not in memory.segments or index in memory.unmapped:
            reason = f"segment {index} of node {node!r} is not in use"
            raise error("malformed-message", type="segment-dropped", reason=reason)
        self._table.close(memory.segments.pop(index))
        return self._take_back(node, memory, index, reuse=reuse)

    def _take_back(self, node: str, memory: Memory, index: int, *, reuse: bool) -> list[NodeMessage]:
        """Tell every consumer that maps it to unmap a segment that was given back."""
        stages = [
            s for s in self._table.present(self._table.nodes[node].outputs) if s.producer is memory and index in s.sent
        ]
        stages = [stage for stage in stages if not self._table.nodes[stage.route.target].gone]
        forwarded = []
        for stage in stages:
            stage.note_drop_sent(index)
            part = SegmentDropped(index=index, route=stage.route.id, epoch=stage.epoch)
            forwarded.append(NodeMessage(stage.route.target, part))
        if reuse:
            memory.undropped[index] = set(stages)
        return forwarded + self._forget_if_dropped(node, memory, index)

    def dropped(self, node: str, message: SegmentDropped) -> list[NodeMessage]:
        """Note that ``node`` has unmapped a segment of an input, or had left that stage already. Raises
        ProtocolError."""
        chain = [stage for stage in self._table.chains.get(message.route, ()) if stage.route.target == node]
        if not chain:
            reason = f"route {message.route!r} is no input of node {node!r}"
            raise error("malformed-message", type="segment-dropped", reason=reason)
        stage = next((each for each in chain if each.epoch == message.epoch), None)
        return [] if stage is None else self.settle_drops(stage, message.index)

    def settle_drops(self, stage: Stage, *indices: int) -> list[NodeMessage]:
        """Note that the consumer of ``stage`` does not map these segments any more."""
        told = []
        for index in indices:
            stage.dropping.discard(index)
            memory = stage.producer
            if memory is not None and stage in memory.undropped.get(index, ()):
                memory.undropped[index].discard(stage)
                told += self._forget_if_dropped(stage.route.source, memory, index)
        return told

    def _forget_if_dropped(self, node: str, memory: Memory, index: int) -> list[NodeMessage]:
        if memory.undropped.get(index) != set():
            return []
        del memory.undropped[index]
        return [NodeMessage(node, SegmentDropped(index=index))]

    # -- workers of an earlier daemon ----------------------------------------------------------------------

    def resume_segments(
        self, node: str, memory: Memory, unconfirmed: Collection[int], dropped: Collection[int]
    ) -> list[NodeMessage]:
        """Repeat the exchange of messages about the segments of ``node`` that was under way when an earlier daemon
        died."""
        told = []
        for index in memory.segments:
            told += self.spread(node, memory, index, confirmed=index not in unconfirmed)
        for index in {*dropped, *self._mapped_but_given_back(node, memory)}:
            told += self._take_back(node, memory, index, reuse=index in dropped)
        return told

    def _mapped_but_given_back(self, node: str, memory: Memory) -> set[int]:
        """Return the segments that consumers map and that ``node`` has given back."""
        stages = [stage for stage in self._table.present(self._table.nodes[node].outputs) if stage.producer is memory]
        return {index for stage in stages for index in stage.sent} - memory.segments.keys()


def check_new(memory: Memory, node: str, index: int) -> None:
    """Raise ProtocolError if ``node`` has a segment with this index already."""
    if index in memory.segments:
        reason = f"segment {index} of node {node!r} is there already"
        raise error("malformed-message", type="segment", reason=reason)
