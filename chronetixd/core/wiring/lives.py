"""Workers that are born, offer what they made, and are gone: for good, or to have a successor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Configure, Detach, Offer, Port, Retract
from chronetixd.core.wiring.links import Links, at
from chronetixd.core.wiring.offers import in_order, keep
from chronetixd.core.wiring.reroute import Rerouting
from chronetixd.core.wiring.route_table import RouteTable, Told
from chronetixd.core.wiring.segments import Segments, check_new
from chronetixd.core.wiring.stages import Ends, Handle, Memory, NodeEnds, Stage
from chronetixd.core.wiring.states import NodeEvent


class LostMemory(Exception):
    """``node`` cannot be continued; ``what`` is the rest of a sentence about it."""

    def __init__(self, node: str, what: str) -> None:
        super().__init__(node, what)
        self.node = node
        self.what = what


class Lives:
    """Of all nodes of one flow."""

    def __init__(self, net: RouteTable, segments: Segments, links: Links, rerouting: Rerouting) -> None:
        self._net = net
        self._segments = segments
        self._links = links
        self._rerouting = rerouting

    # -- born ----------------------------------------------------------------------------------------------

    def configure(self, node: str, message: Configure) -> Configure:
        """``message`` with the ports of the incarnation of ``node`` that gets it: every stage of an input, also of a
        route that was removed and is not drained; the present one of an output whose consumer lives."""
        place = self._net.places[node]
        place.happens(NodeEvent.CONFIGURED)
        self._rerouting.know(message)
        self._rerouting.release(place)
        credits = list(self._net.stages(place.inputs))
        outputs = {port.route: port for port in message.outputs}
        rings = [stage for stage in self._net.present(place.outputs) if stage.route.id in outputs]
        rings = [stage for stage in rings if not self._net.places[stage.route.target].gone]
        place.source = not credits
        place.due.append(Ends(rings, credits))
        return msgspec.structs.replace(
            message,
            inputs=[at(self._net.ports[node, stage.route.id], stage) for stage in credits],
            outputs=[_begun(outputs[stage.route.id], stage) for stage in rings],
            incarnation=place.incarnation,
        )

    # -- what it offers ------------------------------------------------------------------------------------

    def expected(self, node: str, message: Offer) -> tuple[Ends, Ends]:
        """What was asked for that this offer answers, and the stages that its names mean. Raises ProtocolError."""
        place = self._net.places[node]
        if not place.due or not place.may(NodeEvent.OFFERS):
            raise error("unexpected-message", type="offer", when="without having been asked")
        return in_order(place, message)

    def offer(
        self,
        node: str,
        message: Offer,
        rings: Sequence[tuple[Handle, int]],
        credits: Sequence[Handle],
        segments: Mapping[int, Handle],
    ) -> list[Told]:
        """Keep what ``node`` offers, each RING with the sequence number at which it begins. What consumers have to be
        told of stages that it has left; links are due after that. Raises ProtocolError, and PeerFault for a ring of it
        that makes no sense, and then nothing has changed."""
        due, ends = self.expected(node, message)
        place = self._net.places[node]
        memory = place.memory or Memory(incarnation=place.incarnation)
        for index in segments:
            check_new(memory, node, index)
        made = [
            self._rerouting.check_continues(stage, base) for stage, (_, base) in zip(ends.rings, rings, strict=True)
        ]
        self._rerouting.check_ends(due.leave)
        if due.changes:
            place.sent = self._rerouting.sent(place)
        place.happens(NodeEvent.OFFERS)
        place.memory = memory
        memory.segments |= segments
        keep(memory, Ends(made, ends.credits), [ring for ring, _ in rings], credits)
        place.due.remove(due)
        if due.changes:
            self._rerouting.begin_after_sent(made, place)
        begun = [stage for stage in made if stage not in self._net.chains[stage.route.id]]
        told = [each for stage in begun for each in self._rerouting.next(stage)]
        for name in due.leave:
            told += self._rerouting.conclude(name) if name in self._net.removed else []
        return told + self._rerouting.change_outputs()

    def ready(self, node: str) -> list[Told]:
        """``node`` is ready: what it could not be told before."""
        place = self._net.places[node]
        told = self._links.ready(node)
        return told + self._rerouting.concluded(place)

    # -- gone ----------------------------------------------------------------------------------------------

    def gone(self, node: str) -> list[Told]:
        """``node`` has exited for good: detach its producers, let growth go on
        without it. Raises PeerFault when it left a RING that makes no sense, and somebody would have to know its
        end."""
        place = self._net.places[node]
        place.happens(NodeEvent.ENDS)
        self._nobody_waits_for_relinks(node)
        told = [
            Told(route.source, (Retract if route.id in self._net.removed else Detach)(route=route.id))
            for route in place.inputs
        ]
        for stage in self._net.stages(place.inputs):
            for index in sorted(stage.producer.unmapped) if stage.producer is not None else ():
                told += self._segments.settle_segment(stage, index)
            told += self._segments.settle_drops(stage, *sorted(stage.dropping))
        told += [*self._rerouting.leave_outputs(place), *self._rerouting.never_made(place)]
        told += self._rerouting.forget_inputs(node)
        place.due.clear()
        told += self._rerouting.change_outputs()
        self._rerouting.discard(node)
        return [message for message in told if self._net.reachable(message.node)]

    def succeeded(self, node: str) -> list[Told]:
        """``node`` has exited and will be born again: its routes wait for it, its outputs begin their next stage.

        Raises PeerFault when it left a RING that makes no sense, LostMemory when it had to drain one that nobody has:
        its successor cannot go on.
        """
        place = self._net.places[node]
        place.check(NodeEvent.DIES)
        self._check_drainable(place)
        place.sent = self._rerouting.sent(place)
        self._nobody_waits_for_relinks(node)
        freed = []
        for stage in self._net.stages(place.inputs):
            freed += self._segments.settle_drops(stage, *sorted(stage.dropping))
            self._net.consumer_died(stage, ran=place.started)
        freed += self._rerouting.drop_unmade(place)
        if node in self._rerouting.nodes:
            freed += self._rerouting.leave_outputs(place)
        begun: dict[str, list[Stage]] = {}
        self._rerouting.begin_after_sent((s for s in self._net.present(place.outputs) if s.ring is None), place)
        for stage in self._net.present(place.outputs):
            if stage.producer is place.memory and stage.ring is not None and self._end(stage, place):
                begun.setdefault(stage.route.target, []).append(self._net.chains[stage.route.id][-1])
        self._net.reset(place)
        told = [message for message in freed if self._net.reachable(message.node)]
        told += [each for target, stages in begun.items() for each in self._links.tell_begun(target, stages)]
        return told + self._rerouting.change_outputs()

    def _end(self, stage: Stage, place: NodeEnds) -> bool:
        """Its producer is dead; a next stage has begun, unless nobody ever saw this one."""
        if not stage.lived:
            self._net.forget_ring(stage)
            return False
        assert stage.ring is not None
        end, items = self._net.reader.remains(stage.ring)
        if not place.source:
            items = 0  # of a frame that came in, no item's number
        stage.ended = True
        route = next((each for each in self._net.routes if each.id == stage.route.id), stage.route)
        following = Stage(route, stage.epoch + 1, stage.base_seq + end, max(stage.resume, items), held=stage.held)
        self._net.chains[stage.route.id].append(following)
        return True

    def _nobody_waits_for_relinks(self, node: str) -> None:
        """Whoever waits for ``node`` to be linked to it does not any more."""
        for place in self._net.places.values():
            place.relinking = {stage for stage in place.relinking if stage.route.source != node}

    def _check_drainable(self, place: NodeEnds) -> None:
        """A successor must not have to drain what is there no more: its worker's own mapping of it was the last."""
        for stage in self._net.stages(place.inputs):
            if stage.ended and stage.told_consumer and stage.ring is None:
                what = f"died, and what it had to drain of {stage.route.id!r} died with it: no daemon had kept that"
                raise LostMemory(stage.route.target, what)


def _begun(port: Port, stage: Stage) -> Port:
    """``port`` as its producer is told of ``stage``."""
    return msgspec.structs.replace(port, epoch=stage.epoch, base_seq=stage.base_seq, resume=stage.resume)
