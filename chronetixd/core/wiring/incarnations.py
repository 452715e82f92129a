"""Incarnations: a node's worker is configured, offers its memory, and ends, for good or to be succeeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Configure, Detach, Offer, Port, Retract
from chronetixd.core.wiring.links import Links, at
from chronetixd.core.wiring.offers import in_order, keep
from chronetixd.core.wiring.reroute import Rerouting
from chronetixd.core.wiring.route_table import NodeMessage, RouteTable
from chronetixd.core.wiring.segments import Segments, check_new
from chronetixd.core.wiring.stages import Ends, Handle, Memory, NodeEnds, Stage
from chronetixd.core.wiring.states import MemoryEvent


class LostMemory(Exception):
    """``node`` cannot be continued by a successor; ``what`` is the predicate of a sentence about it."""

    def __init__(self, node: str, what: str) -> None:
        super().__init__(node, what)
        self.node = node
        self.what = what


class Incarnations:
    """The incarnations of all nodes of one flow."""

    def __init__(self, table: RouteTable, segments: Segments, links: Links, rerouting: Rerouting) -> None:
        self._table = table
        self._segments = segments
        self._links = links
        self._rerouting = rerouting

    # -- configured ----------------------------------------------------------------------------------------

    def configure(self, node: str, message: Configure) -> Configure:
        """Return ``message`` with the ports of the incarnation of ``node`` that is configured: every stage of each
        input, including removed routes that are not drained, and the present stage of each output whose consumer is not
        gone."""
        node_ends = self._table.nodes[node]
        node_ends.apply(MemoryEvent.CONFIGURED)
        self._rerouting.know(message)
        self._rerouting.release(node_ends)
        credits = list(self._table.stages(node_ends.inputs))
        outputs = {port.route: port for port in message.outputs}
        rings = [stage for stage in self._table.present(node_ends.outputs) if stage.route.id in outputs]
        rings = [stage for stage in rings if not self._table.nodes[stage.route.target].gone]
        node_ends.source = not credits
        node_ends.due.append(Ends(rings, credits))
        return msgspec.structs.replace(
            message,
            inputs=[at(self._table.ports[node, stage.route.id], stage) for stage in credits],
            outputs=[_begun(outputs[stage.route.id], stage) for stage in rings],
            incarnation=node_ends.incarnation,
        )

    # -- offered -------------------------------------------------------------------------------------------

    def expected(self, node: str, message: Offer) -> tuple[Ends, Ends]:
        """Return the request that this offer answers, and the stages that the names in the offer mean. Raises
        ProtocolError when it answers no request."""
        node_ends = self._table.nodes[node]
        if not node_ends.due or not node_ends.allows(MemoryEvent.OFFERS):
            raise error("unexpected-message", type="offer", when="without having been asked")
        return in_order(node_ends, message)

    def offer(
        self,
        node: str,
        message: Offer,
        rings: Sequence[tuple[Handle, int]],
        credits: Sequence[Handle],
        segments: Mapping[int, Handle],
    ) -> list[NodeMessage]:
        """Keep what ``node`` offers; each RING comes with the sequence number at which it begins. Returns messages to
        consumers about stages that ``node`` has left; links are due after that. Raises ProtocolError, or PeerFault when
        a RING of ``node`` is corrupt, and then nothing has changed."""
        due, ends = self.expected(node, message)
        node_ends = self._table.nodes[node]
        memory = node_ends.memory or Memory(incarnation=node_ends.incarnation)
        for index in segments:
            check_new(memory, node, index)
        made = [
            self._rerouting.check_continues(stage, base) for stage, (_, base) in zip(ends.rings, rings, strict=True)
        ]
        self._rerouting.check_ends(due.leave)
        if due.changes:
            node_ends.sent = self._rerouting.sent(node_ends)
        node_ends.apply(MemoryEvent.OFFERS)
        node_ends.memory = memory
        memory.segments |= segments
        keep(memory, Ends(made, ends.credits), [ring for ring, _ in rings], credits)
        node_ends.due.remove(due)
        if due.changes:
            self._rerouting.begin_after_sent(made, node_ends)
        begun = [stage for stage in made if stage not in self._table.chains[stage.route.id]]
        told = [each for stage in begun for each in self._rerouting.next(stage)]
        for name in due.leave:
            told += self._rerouting.conclude(name) if name in self._table.removed else []
        return told + self._rerouting.change_outputs()

    def ready(self, node: str) -> list[NodeMessage]:
        """Note that ``node`` is ready. Returns the messages that had to wait for that."""
        node_ends = self._table.nodes[node]
        told = self._links.ready(node)
        return told + self._rerouting.tell_ended_inputs(node_ends)

    # -- ended ---------------------------------------------------------------------------------------------

    def gone(self, node: str) -> list[NodeMessage]:
        """Note that ``node`` has exited for good. Returns the messages that detach its producers and let arenas grow
        without it. Raises PeerFault when it left a corrupt RING whose end a consumer has to be told."""
        node_ends = self._table.nodes[node]
        node_ends.apply(MemoryEvent.ENDS)
        self._cancel_relinks(node)
        told = [
            NodeMessage(route.source, (Retract if route.id in self._table.removed else Detach)(route=route.id))
            for route in node_ends.inputs
        ]
        for stage in self._table.stages(node_ends.inputs):
            for index in sorted(stage.producer.unmapped) if stage.producer is not None else ():
                told += self._segments.settle_segment(stage, index)
            told += self._segments.settle_drops(stage, *sorted(stage.dropping))
        told += [*self._rerouting.leave_outputs(node_ends), *self._rerouting.conclude_unmade_outputs(node_ends)]
        told += self._rerouting.forget_inputs(node)
        node_ends.due.clear()
        told += self._rerouting.change_outputs()
        self._rerouting.discard(node)
        return [message for message in told if self._table.reachable(message.node)]

    def succeeded(self, node: str) -> list[NodeMessage]:
        """Note that ``node`` has exited and will have a successor: its inputs wait for the successor, and its outputs
        begin their next stage.

        Raises PeerFault when it left a corrupt RING. Raises LostMemory when it had to drain a RING that no process has
        any more, so that its successor cannot go on.
        """
        node_ends = self._table.nodes[node]
        node_ends.check(MemoryEvent.DIES)
        self._check_drainable(node_ends)
        node_ends.sent = self._rerouting.sent(node_ends)
        self._cancel_relinks(node)
        freed = []
        for stage in self._table.stages(node_ends.inputs):
            freed += self._segments.settle_drops(stage, *sorted(stage.dropping))
            self._table.consumer_died(stage, ran=node_ends.started)
        freed += self._rerouting.drop_unmade_inputs(node_ends)
        if node in self._rerouting.nodes:
            freed += self._rerouting.leave_outputs(node_ends)
        begun: dict[str, list[Stage]] = {}
        self._rerouting.begin_after_sent(
            (s for s in self._table.present(node_ends.outputs) if s.ring is None), node_ends
        )
        for stage in self._table.present(node_ends.outputs):
            if stage.producer is node_ends.memory and stage.ring is not None and self._end(stage, node_ends):
                begun.setdefault(stage.route.target, []).append(self._table.chains[stage.route.id][-1])
        self._table.reset(node_ends)
        told = [message for message in freed if self._table.reachable(message.node)]
        told += [each for target, stages in begun.items() for each in self._links.announce_stages(target, stages)]
        return told + self._rerouting.change_outputs()

    def _end(self, stage: Stage, node_ends: NodeEnds) -> bool:
        """End a stage whose producer is dead, and begin the next one. Returns False, and begins none, if no other
        worker was ever linked to the stage."""
        if not stage.lived:
            self._table.forget_ring(stage)
            return False
        assert stage.ring is not None
        end, items = self._table.reader.remains(stage.ring)
        if not node_ends.source:
            items = 0  # input_seq of a node with inputs is that of an input frame and no item's number
        stage.ended = True
        route = next((each for each in self._table.routes if each.id == stage.route.id), stage.route)
        following = Stage(route, stage.epoch + 1, stage.base_seq + end, max(stage.resume, items), held=stage.held)
        self._table.chains[stage.route.id].append(following)
        return True

    def _cancel_relinks(self, node: str) -> None:
        """Stop waiting for ``node`` to be linked to successors of its consumers."""
        for node_ends in self._table.nodes.values():
            node_ends.relinking = {stage for stage in node_ends.relinking if stage.route.source != node}

    def _check_drainable(self, node_ends: NodeEnds) -> None:
        """Raise LostMemory if a successor would have to drain a RING that does not exist any more, because the only
        mapping of it was that of the worker that died."""
        for stage in self._table.stages(node_ends.inputs):
            if stage.ended and stage.told_consumer and stage.ring is None:
                what = f"died, and what it had to drain of {stage.route.id!r} died with it: no daemon had kept that"
                raise LostMemory(stage.route.target, what)


def _begun(port: Port, stage: Stage) -> Port:
    """Return ``port`` with the position of ``stage``, for its producer."""
    return msgspec.structs.replace(port, epoch=stage.epoch, base_seq=stage.base_seq, resume=stage.resume)
