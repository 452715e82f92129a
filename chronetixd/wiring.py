"""The shared memory of one flow as the daemon sees it: who offered which descriptor, and who has to get it.

Nobody's word is taken: every descriptor is checked (seals, size, header) before it is kept. Memory outlives the worker
that made it: until the flow has ended, or until a stage whose producer is dead is drained. Nodes may die and be born
again: see ``stages``, and Succession in PROTOCOL.md. No message is sent here; what has to be sent is returned. Growth
and shrinking are in ``segments``, links in ``links``, other routes while a flow runs in ``rerouting``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

import msgspec

import shm
from chronetixd import rewiring
from chronetixd.core.death import HeldFrames
from chronetixd.counters import Counters
from chronetixd.kept import Kept
from chronetixd.keys import Key
from chronetixd.links import Links, at
from chronetixd.net import Net, Remains, ToNode
from chronetixd.offers import in_order, keep
from chronetixd.rerouting import Rerouting
from chronetixd.segments import Segments, check_segment
from chronetixd.stages import DataRoute, Ends, Memory, Place, Stage, checked
from chronetixd.upgrade.bag import Bag, Unbag
from chronetixd.upgrade.packed import PackedWiring
from chronetixd.upgrade.wiring import Packer, Unpacker
from protocol.errors import error
from protocol.messages import Configure, Detach, Offer, Port, Reattach, Retract

if TYPE_CHECKING:
    from shm._native import RouteSnapshot

__all__ = ["DataRoute", "ToNode", "Wiring"]


class Wiring:
    """All data routes of one flow."""

    def __init__(self, nodes: Iterable[str], routes: tuple[DataRoute, ...], remains: Remains = shm.remains) -> None:
        self.net = net = Net(routes, {node: Place(node) for node in nodes}, remains=remains)
        self.segments = Segments(net)
        self.links = Links(net, self.segments)
        self.rerouting = Rerouting(net, self.segments, self.links)
        self._last: dict[str, RouteSnapshot | None] = {}
        for route in routes:
            net.places[route.source].outputs.append(route)
            net.places[route.target].inputs.append(route)
            net.chains[route.id] = [Stage(route)]
            net.counters[route.id] = Counters()

    @property
    def routes(self) -> tuple[DataRoute, ...]:
        """Those that the flow has."""
        return self.net.routes

    # -- workers of an earlier daemon ----------------------------------------------------------------------

    def shown(self, node: str, message: Reattach, descriptors: list[int]) -> rewiring.Shown:
        """What ``node`` shows of itself, checked. Raises ProtocolError, and then nothing is kept."""
        place = self.net.places[node]
        return rewiring.shown(node, place.outputs, place.inputs, message, descriptors)

    def take_over(
        self, had: Mapping[str, rewiring.Shown], dead: Mapping[str, int], over: set[str], kept: Kept
    ) -> list[ToNode]:
        """Go on with the memory that the nodes have, and that was ``kept`` for those without: ``dead`` ones, with the
        incarnation that died, are to have successors, those that are ``over`` had come to their end. What has to be
        sent: segments that producers wait for.

        Raises LostMemory when a successor would need what nobody has.
        """
        for node, place in self.net.places.items():
            made = rewiring.place(node, had.get(node), place.outputs, place.inputs)
            if node in dead and node not in had:
                rewiring.bury(made, kept, dead[node])
            made.gone = node in over
            made.source = not made.inputs
            self.net.places[node] = made
        for route in self.net.routes:
            ends = had.get(route.source), had.get(route.target)
            self.net.chains[route.id] = rewiring.chain(route, *ends, kept, dead)
        for node, what in rewiring.missing(self.net.stages(self.net.routes), dead, kept):
            raise rewiring.LostMemory(node, what)
        living = {node: shown for node, shown in had.items() if node not in dead}
        return [told for node, shown in living.items() for told in self.segments.even_out(node, shown)]

    def memories(self) -> dict[Key, int]:
        """All that a daemon without any needs to go on from what the dead have left; the descriptors stay ours."""
        return rewiring.memories(self.net.stages(self.net.routes), self.net.places)

    # -- handed over to the next image of the daemon -------------------------------------------------------

    def packed(self, bag: Bag) -> PackedWiring:
        """All of it; descriptors go into ``bag``."""
        packer = Packer(bag)
        chains = {route: packer.stages(chain) for route, chain in self.net.chains.items()}
        places = {node: packer.place(place) for node, place in self.net.places.items()}
        stages, memories = packer.all()
        return PackedWiring(
            memories=memories,
            stages=stages,
            chains=chains,
            places=places,
            counters={route: counters.packed() for route, counters in self.net.counters.items()},
            ports=[(node, route, port) for (node, route), port in self.net.ports.items()],
            last={route: None if last is None else dict(last) for route, last in self._last.items()},
        )

    def unpack(self, packed: PackedWiring, bag: Unbag) -> None:
        """Be the wiring that ``packed`` was. Raises ValueError when that is of another flow, OSError."""
        if packed.chains.keys() != self.net.chains.keys() or packed.places.keys() != self.net.places.keys():
            raise ValueError("it has other nodes or routes than its contract")
        unpacker = Unpacker(packed.stages, packed.memories, self.net.routes, bag)
        self.net.chains = {route: unpacker.stages(chain) for route, chain in packed.chains.items()}
        for node, place in packed.places.items():
            unpacker.place(self.net.places[node], place)
        for route, counters in packed.counters.items():
            self.net.counters[route].unpack(counters)
        self.net.ports = {(node, route): port for node, route, port in packed.ports}
        self._last = cast("dict[str, RouteSnapshot | None]", packed.last)

    # -- what a worker is told and offers ------------------------------------------------------------------

    def configure(self, node: str, message: Configure) -> Configure:
        """``message`` with the ports of the incarnation of ``node`` that gets it: every stage of an input, the present
        one of an output whose consumer lives."""
        place = self.net.places[node]
        inputs = [port for route in message.inputs for port in self._input_ports(place, route)]
        outputs = [self._output_port(port) for port in message.outputs if self._has_consumer(port.route)]
        rings = [self.net.chains[port.route][-1] for port in outputs]
        credits = [stage for route in message.inputs for stage in self.net.chains[route.route]]
        place.configured, place.source = True, not message.inputs
        place.due.append(Ends(rings, credits))
        return msgspec.structs.replace(message, inputs=inputs, outputs=outputs, incarnation=place.incarnation)

    def _input_ports(self, place: Place, port: Port) -> list[Port]:
        self.net.ports[place.node, port.route] = port
        return [at(port, stage) for stage in self.net.chains[port.route]]

    def _output_port(self, port: Port) -> Port:
        stage = self.net.chains[port.route][-1]
        return msgspec.structs.replace(port, epoch=stage.epoch, base_seq=stage.base_seq, resume=stage.resume)

    def _has_consumer(self, route: str) -> bool:
        return not self.net.places[self.net.chains[route][-1].route.target].gone

    def offer(self, node: str, message: Offer, descriptors: list[int]) -> list[ToNode]:
        """Check and keep what ``node`` offers; takes ``descriptors`` over (empties the list). What consumers have to be
        told of stages that it has left; links are due after that.

        Raises ProtocolError ``descriptor-refused`` or ``malformed-message``, and then has kept nothing.
        """
        place = self.net.places[node]
        if not place.due:
            raise error("unexpected-message", type="offer", when="without having been asked")
        due, ends = in_order(place, message)
        fds = iter(descriptors)
        try:
            bell = shm.Doorbell(next(fds))
        except (OSError, ValueError, shm.PeerFault) as reason:
            raise error("descriptor-refused", what=f"the doorbell of node {node!r}", reason=str(reason)) from None
        memory = place.memory or Memory(bell, incarnation=place.incarnation)
        try:
            if len(message.segments) > 1:
                self.segments.check_share(node, memory, len(message.segments))
            rings = [checked(next(fds), "ring", f"the ring of route {stage.route.id!r}") for stage in ends.rings]
            credits = [checked(next(fds), "credit", f"the credits of route {s.route.id!r}") for s in ends.credits]
            segments = {index: next(fds) for index in message.segments}
            for index, fd in segments.items():
                check_segment(memory, node, index, fd)
            for stage, fd in zip(ends.rings, rings, strict=True):
                self.rerouting.check_continues(stage, fd)
            self.rerouting.check_ends(due.leave)
            if due.changes:
                self.rerouting.note_sent(place)
        except shm.PeerFault as fault:
            bell.close()
            raise error("descriptor-refused", what=f"a ring of node {node!r}", reason=str(fault.args[0])) from None
        except BaseException:
            bell.close()
            raise
        if place.memory is not None:
            bell.close()
        place.memory = memory
        memory.segments |= segments
        os.close(descriptors[0])
        descriptors.clear()
        keep(memory, ends, rings, credits)
        place.due.remove(due)
        if due.changes:
            self.rerouting.begin_after_sent(ends.rings, place)
        told = [
            each
            for stage in ends.rings
            if stage not in self.net.chains[stage.route.id]
            for each in self.rerouting.next(stage)
        ]
        told += [each for name in due.leave if name in self.net.removed for each in self.rerouting.conclude(name)]
        return told + self.rerouting.change_outputs()

    def started(self, node: str) -> None:
        """``node`` is told to start: from now on it may take and return frames."""
        self.net.places[node].started = True

    def offered_by(self, node: str) -> tuple[int, dict[int, int]] | None:
        """Doorbell and segments of the worker of ``node``, which stay ours; None when there is none, or no more."""
        place = self.net.places.get(node)
        return (
            None
            if place is None or place.memory is None or place.gone
            else (place.memory.doorbell.fileno(), place.memory.segments)
        )

    # -- life ----------------------------------------------------------------------------------------------

    def gone(self, node: str) -> list[ToNode]:
        """``node`` has exited for good: wake everyone who may wait for it, detach its producers, let growth go on
        without it. Raises PeerFault when it left a RING that makes no sense, and somebody would have to know its
        end."""
        place = self.net.places[node]
        place.gone = True
        self._ring_peers(place)
        for stage in self.net.present(place.outputs):
            self.net.places[stage.route.target].relinking.discard(stage)
        told = [
            ToNode(route.source, (Retract if route.id in self.net.removed else Detach)(route=route.id))
            for route in place.inputs
        ]
        for stage in self.net.stages(place.inputs):
            for index in sorted(stage.producer.unmapped) if stage.producer is not None else ():
                told += self.segments.settle_segment(stage, index)
            told += self.segments.settle_drops(stage, *sorted(stage.dropping))
        told += [*self.rerouting.done_with(place), *self.rerouting.never_made(place)]
        place.due.clear()
        told += self.rerouting.change_outputs()
        self.rerouting.discard(node)
        return [message for message in told if self.net.reachable(message.node)]

    def succeeded(self, node: str) -> list[ToNode]:
        """``node`` has exited and will be born again: its routes wait for it, its outputs begin their next stage.

        Raises PeerFault when it left a RING that makes no sense, LostMemory when it had to drain one that nobody has:
        its successor cannot go on.
        """
        place = self.net.places[node]
        rewiring.check_drainable(self.net.stages(place.inputs))
        self.rerouting.note_sent(place)
        self._ring_peers(place)
        freed = []
        for stage in self.net.stages(place.inputs):
            freed += self.segments.settle_drops(stage, *sorted(stage.dropping))
            stage.consumer_died(self.net.counters[stage.route.id], ran=place.started)
        freed += self.rerouting.done_with(place)
        begun: dict[str, list[Stage]] = {}
        self.rerouting.begin_after_sent((s for s in self.net.present(place.outputs) if s.ring is None), place)
        for stage in self.net.present(place.outputs):
            self.net.places[stage.route.target].relinking.discard(stage)
            if stage.producer is place.memory and stage.ring is not None and self._end(stage):
                begun.setdefault(stage.route.target, []).append(self.net.chains[stage.route.id][-1])
        place.reset()
        told = [message for message in freed if self.net.reachable(message.node)]
        told += [each for target, stages in begun.items() for each in self.links.tell_begun(target, stages)]
        return told + self.rerouting.change_outputs()

    def _end(self, stage: Stage) -> bool:
        """Its producer is dead; a next stage has begun, unless nobody ever saw this one."""
        if not stage.lived:
            stage.forget_ring()
            return False
        assert stage.ring is not None
        end, input_seq = self.net.remains(stage.ring)
        if not self.net.places[stage.route.source].source:
            input_seq = 0  # of a frame that came in, no item's number
        stage.ended = True
        route = next((each for each in self.net.routes if each.id == stage.route.id), stage.route)
        following = Stage(route, stage.epoch + 1, stage.base_seq + end, max(stage.resume, input_seq))
        self.net.chains[stage.route.id].append(following)
        return True

    def _ring_peers(self, place: Place) -> None:
        near = {route.source for route in place.inputs} | {route.target for route in place.outputs}
        for peer in near:
            memory = self.net.places[peer].memory
            if memory is not None and not self.net.places[peer].gone:
                memory.doorbell.ring()

    # -- watching ------------------------------------------------------------------------------------------

    def snapshot(self, route: DataRoute) -> RouteSnapshot | None:
        """Counters of ``route`` over all of its stages; None before both ends were there or when an end has spoilt its
        header; the last ones after :meth:`close`."""
        if route.id in self._last:
            return self._last[route.id]
        return self.net.counters[route.id].total(stage.snapshot() for stage in self.net.chains[route.id])

    def kept(self, route: DataRoute) -> tuple[int, int, int] | None:
        """Frames of ``route`` that its consumer has taken and not returned: how many, the oldest one's sequence number
        and ns since it was sent; None without one."""
        views = (stage.open_view() for stage in self.net.chains[route.id])
        found = [held for view in views if view is not None and (held := view.oldest_held()) is not None]
        return (sum(count for count, _, _ in found), *found[0][1:]) if found else None

    def held(self, node: str) -> list[HeldFrames]:
        """Frames that ``node`` has taken and not returned, by route; for one that has just died."""
        found = []
        for route in self.net.places[node].inputs:
            count, sequences = 0, []
            for stage in self.net.chains[route.id]:
                view = stage.open_view()
                taken, frames = view.held() if view is not None else (0, [])
                count += taken
                sequences += [seq for seq, _, _ in frames]
            if count:
                found.append(HeldFrames(route=route.id, count=count, sequences=sorted(sequences)))
        return found

    def close(self) -> None:
        """Take the last counters, then give all memory back. Idempotent."""
        for route in self.net.routes:
            if route.id not in self._last:
                self._last[route.id] = self.snapshot(route)
        for name, chain in self.net.chains.items():
            for stage in chain:
                stage.close(self.net.counters[name])
            chain.clear()
        for place in self.net.places.values():
            place.reset()
        for name in self.net.removed:
            del self.net.chains[name], self.net.counters[name]
        self.net.removed.clear()
        self.net.places = {node: place for node, place in self.net.places.items() if node in self.rerouting.nodes}
