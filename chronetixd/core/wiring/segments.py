"""Segments of arenas on their way to the consumers and back: a producer uses one when all who have to map it have, and
its number again when nobody does any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Segment, SegmentDropped, SegmentMapped
from chronetixd.core.wiring.route_table import RouteTable, Told
from chronetixd.core.wiring.stages import Handle, Memory, Stage


class Segments:
    """Of all arenas of one flow."""

    def __init__(self, net: RouteTable) -> None:
        self._net = net

    @property
    def held(self) -> int:
        """Segments of all arenas, those of the dead that are drained included."""
        stages = self._net.stages(self._net.routes)
        memories = {id(stage.producer): stage.producer for stage in stages if stage.producer is not None}
        memories |= {id(place.memory): place.memory for place in self._net.places.values() if place.memory is not None}
        return sum(len(memory.segments) for memory in memories.values())

    def grow(self, node: str, message: Segment, segment: Handle) -> list[Told]:
        """``node``'s arena has a further segment: what its consumers have to get, or, if nobody has to, its own go.

        A consumer that is not linked yet gets the segment with its link. A segment that was shown already is not kept
        again. Raises ProtocolError, and then nothing is kept.
        """
        memory = self._net.places[node].memory
        if memory is None:
            raise error("unexpected-message", type="segment", when="before the offer")
        if message.index in memory.segments and message.index in memory.shown_so:
            memory.shown_so.discard(message.index)
            return []
        check_new(memory, node, message.index)
        memory.segments[message.index] = segment
        return self.spread(node, memory, message.index)

    def spread(self, node: str, memory: Memory, index: int, *, confirmed: bool = False) -> list[Told]:
        """A segment to every consumer that lacks it; unless ``confirmed``, ``node`` may not use it yet."""
        stages = [stage for stage in self._net.present(self._net.places[node].outputs) if stage.producer is memory]
        lacking = [s for s in stages if not self._net.places[s.route.target].gone and index not in s.sent]
        waited_for = {stage for stage in lacking if stage.route.policy == "block"}
        forwarded = []
        for stage in lacking:
            if stage.told_consumer:
                stage.sent.add(index)
                part = Segment(index=index, route=stage.route.id, epoch=stage.epoch)
                forwarded.append(Told(stage.route.target, part, (memory.segments[index],)))
        if confirmed:
            return forwarded
        if waited_for:
            memory.unmapped[index] = waited_for
            return forwarded
        return [*forwarded, Told(node, SegmentMapped(index=index))]

    def mapped(self, node: str, message: SegmentMapped) -> list[Told]:
        """``node`` can follow descriptors into a segment of one of its inputs. Raises ProtocolError."""
        chain = [stage for stage in self._net.chains.get(message.route, ()) if stage.route.target == node]
        stage = next((each for each in chain if each.epoch == message.epoch), None)
        if stage is None and (message.route not in self._net.chains or (chain and message.epoch < chain[0].epoch)):
            return []  # it was drained meanwhile
        if stage is None or message.index not in stage.sent:
            reason = f"segment {message.index} of route {message.route!r} was not sent to node {node!r}"
            raise error("malformed-message", type="segment-mapped", reason=reason)
        return self.settle_segment(stage, message.index)

    def settle(self, stages: Iterable[Stage]) -> list[Told]:
        """Consumers have mapped what came with their links."""
        told = []
        for stage in stages:
            for index in sorted(stage.by_link):
                told += self.settle_segment(stage, index)
            stage.by_link.clear()
        return told

    def settle_segment(self, stage: Stage, index: int) -> list[Told]:
        """Its consumer has mapped this one, or never has to."""
        if stage.producer is None or not stage.producer.settle(stage, index):
            return []
        return [Told(stage.route.source, SegmentMapped(index=index))]

    # -- shrinking -----------------------------------------------------------------------------------------

    def drop(self, node: str, message: SegmentDropped, *, reuse: bool = True) -> list[Told]:
        """``node`` has given a segment of its arena back: who has to unmap it, or, if nobody has to, that its index is
        free, which it never is without ``reuse``. Raises ProtocolError for a segment that it may not use."""
        memory, index = self._net.places[node].memory, message.index
        if memory is not None and index not in memory.segments and index in memory.shown_so:
            memory.shown_so.discard(index)
            return []
        if memory is None or index not in memory.segments or index in memory.unmapped:
            reason = f"segment {index} of node {node!r} is not in use"
            raise error("malformed-message", type="segment-dropped", reason=reason)
        self._net.close(memory.segments.pop(index))
        return self._take_back(node, memory, index, reuse=reuse)

    def _take_back(self, node: str, memory: Memory, index: int, *, reuse: bool) -> list[Told]:
        """A segment that is there no more, from every consumer that maps it."""
        stages = [
            s for s in self._net.present(self._net.places[node].outputs) if s.producer is memory and index in s.sent
        ]
        stages = [stage for stage in stages if not self._net.places[stage.route.target].gone]
        forwarded = []
        for stage in stages:
            stage.told_to_drop(index)
            part = SegmentDropped(index=index, route=stage.route.id, epoch=stage.epoch)
            forwarded.append(Told(stage.route.target, part))
        if reuse:
            memory.undropped[index] = set(stages)
        return forwarded + self._forget_if_dropped(node, memory, index)

    def dropped(self, node: str, message: SegmentDropped) -> list[Told]:
        """``node`` has unmapped a segment of an input, or had left that stage already. Raises ProtocolError."""
        chain = [stage for stage in self._net.chains.get(message.route, ()) if stage.route.target == node]
        if not chain:
            reason = f"route {message.route!r} is no input of node {node!r}"
            raise error("malformed-message", type="segment-dropped", reason=reason)
        stage = next((each for each in chain if each.epoch == message.epoch), None)
        return [] if stage is None else self.settle_drops(stage, message.index)

    def settle_drops(self, stage: Stage, *indices: int) -> list[Told]:
        """Its consumer maps these no more."""
        told = []
        for index in indices:
            stage.dropping.discard(index)
            memory = stage.producer
            if memory is not None and stage in memory.undropped.get(index, ()):
                memory.undropped[index].discard(stage)
                told += self._forget_if_dropped(stage.route.source, memory, index)
        return told

    def _forget_if_dropped(self, node: str, memory: Memory, index: int) -> list[Told]:
        if memory.undropped.get(index) != set():
            return []
        del memory.undropped[index]
        return [Told(node, SegmentDropped(index=index))]

    # -- workers of an earlier daemon ----------------------------------------------------------------------

    def even_out(self, node: str, memory: Memory, unconfirmed: Collection[int], dropped: Collection[int]) -> list[Told]:
        """What was under way about the segments of ``node`` when the daemon died is begun again."""
        told = []
        for index in memory.segments:
            told += self.spread(node, memory, index, confirmed=index not in unconfirmed)
        for index in {*dropped, *self._mapped_in_vain(node, memory)}:
            told += self._take_back(node, memory, index, reuse=index in dropped)
        return told

    def _mapped_in_vain(self, node: str, memory: Memory) -> set[int]:
        """Segments that consumers map, and that ``node`` has given back."""
        stages = [stage for stage in self._net.present(self._net.places[node].outputs) if stage.producer is memory]
        return {index for stage in stages for index in stage.sent} - memory.segments.keys()


def check_new(memory: Memory, node: str, index: int) -> None:
    """Is this a segment that ``node`` has not had yet? Raises ProtocolError."""
    if index in memory.segments:
        reason = f"segment {index} of node {node!r} is there already"
        raise error("malformed-message", type="segment", reason=reason)
