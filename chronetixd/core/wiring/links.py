"""Links: each end of a stage is sent the memory of the other end once both ends are offered."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Extend, InputLink, Link, Linked, Port
from chronetixd.core.wiring.route_table import NodeMessage, RouteTable
from chronetixd.core.wiring.segments import Segments
from chronetixd.core.wiring.stages import Ends, NodeEnds, Stage
from chronetixd.core.wiring.states import MemoryEvent, StageEvent


class Links:
    """The links of all nodes of one flow."""

    def __init__(self, table: RouteTable, segments: Segments) -> None:
        self._table = table
        self._segments = segments

    def due(self, node: str) -> list[NodeMessage]:
        """Return the links that can be sent now that ``node`` has offered: to ``node`` itself and to its peers."""
        node_ends = self._table.nodes[node]
        after, before = [route.target for route in node_ends.outputs], [route.source for route in node_ends.inputs]
        found = [self.link(self._table.nodes[each]) for each in dict.fromkeys((*after, node, *before))]
        return [link for link in found if link is not None]

    def link(self, node_ends: NodeEnds) -> NodeMessage | None:
        """Return the link with everything that ``node_ends`` can be linked to now and was not told of; None when there
        is nothing."""
        if node_ends.gone or node_ends.memory is None:
            return None
        if not node_ends.linked:
            return self._first_link(node_ends)
        outputs = [s for s in self._table.present(node_ends.outputs) if s.producer is node_ends.memory and s.complete]
        outputs = [stage for stage in outputs if not stage.told_producer or self._cut(stage)]
        inputs = [s for s in self._table.stages(node_ends.inputs) if s.consumer is node_ends.memory and s.complete]
        inputs = [stage for stage in inputs if not stage.told_consumer and not stage.held]
        if not outputs and not inputs:
            return None
        node_ends.apply(MemoryEvent.LINK_SENT)
        node_ends.answers.append(Ends(outputs, inputs))
        return _linked(node_ends, outputs, inputs)

    def _cut(self, stage: Stage) -> bool:
        """Return whether the wake-up line of ``stage`` has lost its consumer's end with an earlier daemon. The
        consumer, which was told of this stage, lives and has been given an end of a new line, so that the producer has
        to be linked again."""
        return stage.relink and stage.told_consumer and self._table.nodes[stage.route.target].started

    def _first_link(self, node_ends: NodeEnds) -> NodeMessage | None:
        """Return the first link of a worker, which brings all of its ends, or None while a peer has not offered. Inputs
        that wait until others are drained, and inputs whose RING will never be made, are left out."""
        outputs = [stage for stage in self._table.present(node_ends.outputs) if stage.producer is node_ends.memory]
        inputs = [stage for stage in self._table.stages(node_ends.inputs) if stage.consumer is node_ends.memory]
        inputs = [stage for stage in inputs if not stage.held and not (stage.ended and stage.ring is None)]
        if not all(stage.complete for stage in (*outputs, *inputs)):
            return None
        node_ends.apply(MemoryEvent.LINK_SENT)
        return _linked(node_ends, outputs, inputs)

    def ready(self, node: str) -> list[NodeMessage]:
        """Note that ``node`` has mapped everything that its first link brought. Returns messages about stages that have
        begun meanwhile, and about segments that producers may use now."""
        node_ends = self._table.nodes[node]
        node_ends.apply(MemoryEvent.SAYS_READY)
        told = self._segments.settle(stage for stage in self._table.stages(node_ends.inputs) if stage.told_consumer)
        later = [stage for stage in node_ends.later if stage in self._table.chains.get(stage.route.id, ())]
        if later:
            told.append(self.extend(node_ends, later))
        node_ends.later = []
        return told

    def relink(self, node: str) -> list[NodeMessage]:
        """Return the links for the producers that were linked to the predecessor of ``node``, which is ready."""
        node_ends = self._table.nodes[node]
        mine = [stage for stage in self._table.stages(node_ends.inputs) if stage.consumer is node_ends.memory]
        stages = [s for s in mine if s.relink and not s.ended and not self._table.nodes[s.route.source].gone]
        node_ends.relinking = set(stages)
        node_ends.asked_relink = True
        told = []
        for source in dict.fromkeys(stage.route.source for stage in stages):
            producer = self._table.nodes[source]
            outputs = [stage for stage in stages if stage.route.source == source]
            producer.answers.append(Ends(outputs, []))
            told.append(_linked(producer, outputs, []))
        return told

    def relinked(self, node: str) -> bool:
        """Return True once no producer has to be linked to successor ``node`` any more, so that it may start. True is
        returned once only."""
        node_ends = self._table.nodes[node]
        done = node_ends.asked_relink and not node_ends.relinking
        node_ends.asked_relink = node_ends.asked_relink and not done
        return done

    def linked(self, node: str, message: Linked) -> list[NodeMessage]:
        """Note that ``node`` has mapped what a later link brought. Raises ProtocolError when no link is unanswered, or
        when the message names other routes."""
        node_ends = self._table.nodes[node]
        if not node_ends.answers:
            raise error("unexpected-message", type="linked", when="where no link is to be answered")
        ends = node_ends.answers.popleft()
        wanted = [stage.route.id for stage in (*ends.rings, *ends.credits)]
        if message.routes != wanted:
            reason = f"routes are {message.routes}, but the link was of {wanted}"
            raise error("malformed-message", type="linked", reason=reason)
        for stage in ends.rings:
            if all(stage not in later.rings for later in node_ends.answers):
                self._table.nodes[stage.route.target].relinking.discard(stage)
        return self._segments.settle(stage for stage in ends.credits if stage.told_consumer)

    def announce_stages(self, node: str, stages: list[Stage]) -> list[NodeMessage]:
        """Return the message that tells ``node`` of further stages of its inputs. A worker that is not ready is told
        when it is; one that is not configured yet learns of them by its configuration."""
        consumer = self._table.nodes[node]
        if consumer.ready and not consumer.gone:
            return [self.extend(consumer, stages)]
        if consumer.configured:
            consumer.later += stages
        return []

    def extend(self, node_ends: NodeEnds, stages: list[Stage], *, changes: bool = False) -> NodeMessage:
        """Return the message that gives ``node_ends`` these further stages of its inputs; for ``changes`` see Ends."""
        node_ends.due.append(Ends([], list(stages), changes=changes))
        inputs = [at(self._table.ports[node_ends.node, stage.route.id], stage) for stage in stages]
        return NodeMessage(node_ends.node, Extend(inputs=inputs))


def at(port: Port, stage: Stage) -> Port:
    """Return ``port`` with the position of ``stage``."""
    return msgspec.structs.replace(stage.port or port, epoch=stage.epoch, base_seq=stage.base_seq, resume=stage.resume)


def _linked(node_ends: NodeEnds, outputs: list[Stage], inputs: list[Stage]) -> NodeMessage:
    """Return the link that brings these ends, and note that both ends are linked."""
    handles: list[Hashable] = []
    for stage in outputs:
        assert stage.credit is not None
        handles += (stage.credit, stage.line[0])
        stage.apply(StageEvent.PRODUCER_TOLD)
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
        stage.apply(StageEvent.CONSUMER_TOLD)
        stage.by_link, stage.sent = set(segments), set(segments)
    epochs = [stage.epoch for stage in outputs] if node_ends.ready else []
    message = Link(outputs=[stage.route.id for stage in outputs], inputs=links, epochs=epochs)
    return NodeMessage(node_ends.node, message, tuple(handles))
