"""Both ends of a stage are told of each other once each has offered its own: links, the first and the later ones."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Extend, InputLink, Link, Linked, Port
from chronetixd.core.wiring.route_table import RouteTable, Told
from chronetixd.core.wiring.segments import Segments
from chronetixd.core.wiring.stages import Ends, NodeEnds, Stage
from chronetixd.core.wiring.states import NodeEvent, StageEvent


class Links:
    """Of all nodes of one flow."""

    def __init__(self, net: RouteTable, segments: Segments) -> None:
        self._net = net
        self._segments = segments

    def due(self, node: str) -> list[Told]:
        """The links that are due now that ``node`` has offered: its own, and those of its peers."""
        place = self._net.places[node]
        after, before = [route.target for route in place.outputs], [route.source for route in place.inputs]
        found = [self.link(self._net.places[each]) for each in dict.fromkeys((*after, node, *before))]
        return [link for link in found if link is not None]

    def link(self, place: NodeEnds) -> Told | None:
        """What ``place`` can be linked to now and was not told of."""
        if place.gone or place.memory is None:
            return None
        if not place.linked:
            return self._first_link(place)
        outputs = [s for s in self._net.present(place.outputs) if s.producer is place.memory and s.complete]
        outputs = [stage for stage in outputs if not stage.told_producer or self._cut(stage)]
        inputs = [s for s in self._net.stages(place.inputs) if s.consumer is place.memory and s.complete]
        inputs = [stage for stage in inputs if not stage.told_consumer and not stage.held]
        if not outputs and not inputs:
            return None
        place.happens(NodeEvent.LINK_SENT)
        place.answers.append(Ends(outputs, inputs))
        return _linked(place, outputs, inputs)

    def _cut(self, stage: Stage) -> bool:
        """Its producer has an end of a line whose other one has gone with an earlier daemon: its consumer, which was to
        be told, lives and knows a new one."""
        return stage.relink and stage.told_consumer and self._net.places[stage.route.target].started

    def _first_link(self, place: NodeEnds) -> Told | None:
        """All ends at once, when the last peer has offered; but for inputs that wait until others are drained, and
        those that nobody will ever make."""
        outputs = [stage for stage in self._net.present(place.outputs) if stage.producer is place.memory]
        inputs = [stage for stage in self._net.stages(place.inputs) if stage.consumer is place.memory]
        inputs = [stage for stage in inputs if not stage.held and not (stage.ended and stage.ring is None)]
        if not all(stage.complete for stage in (*outputs, *inputs)):
            return None
        place.happens(NodeEvent.LINK_SENT)
        return _linked(place, outputs, inputs)

    def ready(self, node: str) -> list[Told]:
        """``node`` is ready: it has mapped all that came with its link, and can be told of stages begun meanwhile."""
        place = self._net.places[node]
        place.happens(NodeEvent.SAYS_READY)
        told = self._segments.settle(stage for stage in self._net.stages(place.inputs) if stage.told_consumer)
        later = [stage for stage in place.later if stage in self._net.chains.get(stage.route.id, ())]
        if later:
            told.append(self.extend(place, later))
        place.later = []
        return told

    def relink(self, node: str) -> list[Told]:
        """The successor ``node`` is ready: links for the producers that had been linked to its predecessor."""
        place = self._net.places[node]
        mine = [stage for stage in self._net.stages(place.inputs) if stage.consumer is place.memory]
        stages = [s for s in mine if s.relink and not s.ended and not self._net.places[s.route.source].gone]
        place.relinking = set(stages)
        place.asked_relink = True
        told = []
        for source in dict.fromkeys(stage.route.source for stage in stages):
            producer = self._net.places[source]
            outputs = [stage for stage in stages if stage.route.source == source]
            producer.answers.append(Ends(outputs, []))
            told.append(_linked(producer, outputs, []))
        return told

    def relinked(self, node: str) -> bool:
        """No producer has to be linked to the successor ``node`` any more: it may start. Said once."""
        place = self._net.places[node]
        done = place.asked_relink and not place.relinking
        place.asked_relink = place.asked_relink and not done
        return done

    def linked(self, node: str, message: Linked) -> list[Told]:
        """``node`` has mapped what a link after its first brought. Raises ProtocolError when none is unanswered."""
        place = self._net.places[node]
        if not place.answers:
            raise error("unexpected-message", type="linked", when="where no link is to be answered")
        ends = place.answers.popleft()
        wanted = [stage.route.id for stage in (*ends.rings, *ends.credits)]
        if message.routes != wanted:
            reason = f"routes are {message.routes}, but the link was of {wanted}"
            raise error("malformed-message", type="linked", reason=reason)
        for stage in ends.rings:
            if all(stage not in later.rings for later in place.answers):
                self._net.places[stage.route.target].relinking.discard(stage)
        return self._segments.settle(stage for stage in ends.credits if stage.told_consumer)

    def tell_begun(self, node: str, stages: list[Stage]) -> list[Told]:
        """Next stages of inputs of ``node``: now, or when it is ready; one that is yet to be born is told at birth."""
        consumer = self._net.places[node]
        if consumer.ready and not consumer.gone:
            return [self.extend(consumer, stages)]
        if consumer.configured:
            consumer.later += stages
        return []

    def extend(self, place: NodeEnds, stages: list[Stage], *, changes: bool = False) -> Told:
        """``place`` has these as further stages of its inputs; ``changes``: see Ends."""
        place.due.append(Ends([], list(stages), changes=changes))
        inputs = [at(self._net.ports[place.node, stage.route.id], stage) for stage in stages]
        return Told(place.node, Extend(inputs=inputs))


def at(port: Port, stage: Stage) -> Port:
    """``port`` as it is told of ``stage``."""
    return msgspec.structs.replace(stage.port or port, epoch=stage.epoch, base_seq=stage.base_seq, resume=stage.resume)


def _linked(place: NodeEnds, outputs: list[Stage], inputs: list[Stage]) -> Told:
    """The link that brings these ends; they count as told."""
    handles: list[Hashable] = []
    for stage in outputs:
        assert stage.credit is not None
        handles += (stage.credit, stage.line[0])
        stage.happens(StageEvent.PRODUCER_TOLD)
    links = []
    for stage in inputs:
        assert stage.ring is not None
        assert stage.producer is not None
        segments = stage.producer.segments
        handles += (stage.ring, stage.line[1], *segments.values())
        succeeds = stage.predecessor is not None
        if stage.predecessor is not None:
            handles.append(stage.predecessor)
        links.append(InputLink(route=stage.route.id, segments=list(segments), epoch=stage.epoch, predecessor=succeeds))
        stage.happens(StageEvent.CONSUMER_TOLD)
        stage.by_link, stage.sent = set(segments), set(segments)
    epochs = [stage.epoch for stage in outputs] if place.ready else []
    message = Link(outputs=[stage.route.id for stage in outputs], inputs=links, epochs=epochs)
    return Told(place.node, message, tuple(handles))
