"""The shared memory of one flow as the daemon sees it: who offered which descriptor, and who has to get it.

Nobody's word is taken: every descriptor is checked (seals, size, header) before it is kept. Memory outlives the worker
that made it: until the flow has ended, or until a stage whose producer is dead is drained. Nodes may die and be born
again: see ``stages``, and Succession in PROTOCOL.md. No message is sent here; what has to be sent is returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec

import shm
from chronetixd import rewiring
from chronetixd.core.death import HeldFrames
from chronetixd.counters import Counters
from chronetixd.kept import Kept
from chronetixd.keys import Key
from chronetixd.stages import DataRoute, Ends, Memory, Place, Stage, checked
from chronetixd.upgrade.bag import Bag, Unbag
from chronetixd.upgrade.packed import PackedWiring
from chronetixd.upgrade.wiring import Packer, Unpacker
from protocol.errors import error
from protocol.messages import (
    Conclude,
    Configure,
    Detach,
    Drained,
    Extend,
    InputLink,
    Link,
    Linked,
    Offer,
    Port,
    Reattach,
    Retract,
    Segment,
    SegmentDropped,
    SegmentMapped,
)

if TYPE_CHECKING:
    from shm._native import RouteSnapshot

__all__ = ["DataRoute", "ToNode", "Wiring"]

Remains = Callable[[int], tuple[int, int]]
"""Where a dead producer's RING ends, as a position, and the highest input_seq committed to it. Raises PeerFault."""


class ToNode(NamedTuple):
    """A message for ``node``, with descriptors that stay ours."""

    node: str
    message: Conclude | Detach | Drained | Extend | Link | Retract | Segment | SegmentDropped | SegmentMapped
    descriptors: tuple[int, ...] = ()


class Wiring:
    """All data routes of one flow."""

    def __init__(self, nodes: Iterable[str], routes: tuple[DataRoute, ...], remains: Remains = shm.remains) -> None:
        self.routes = routes
        self._remains = remains
        self._places = {node: Place(node) for node in nodes}
        self._chains: dict[str, list[Stage]] = {}
        self._counters: dict[str, Counters] = {}
        self._ports: dict[tuple[str, str], Port] = {}
        self._last: dict[str, RouteSnapshot | None] = {}
        self._removed: dict[str, DataRoute] = {}
        """Routes that the flow has no more, until they are drained."""
        self._nodes = frozenset(self._places)
        """Those that the flow has."""
        self.lost: dict[str, int] = {}
        """Frames of routes that were removed, which nobody has worked on: their consumer was killed."""
        self._outputs_next: Callable[[], list[ToNode]] | None = None
        """What producers are told once all consumers know of their further inputs."""
        self._untold: frozenset[str] = frozenset()
        """Nodes that learn of other routes by being replaced, or never."""
        for route in routes:
            self._places[route.source].outputs.append(route)
            self._places[route.target].inputs.append(route)
            self._chains[route.id] = [Stage(route)]
            self._counters[route.id] = Counters()

    # -- workers of an earlier daemon ----------------------------------------------------------------------

    def know(self, message: Configure) -> None:
        """What a worker was told by an earlier daemon."""
        for port in message.inputs:
            self._ports[message.node, port.route] = port

    def shown(self, node: str, message: Reattach, descriptors: list[int]) -> rewiring.Shown:
        """What ``node`` shows of itself, checked. Raises ProtocolError, and then nothing is kept."""
        place = self._places[node]
        return rewiring.shown(node, place.outputs, place.inputs, message, descriptors)

    def take_over(
        self, had: Mapping[str, rewiring.Shown], dead: Mapping[str, int], over: set[str], kept: Kept
    ) -> list[ToNode]:
        """Go on with the memory that the nodes have, and that was ``kept`` for those without: ``dead`` ones, with the
        incarnation that died, are to have successors, those that are ``over`` had come to their end. What has to be
        sent: segments that producers wait for.

        Raises LostMemory when a successor would need what nobody has.
        """
        for node, place in self._places.items():
            made = rewiring.place(node, had.get(node), place.outputs, place.inputs)
            if node in dead and node not in had:
                rewiring.bury(made, kept, dead[node])
            made.gone = node in over
            self._places[node] = made
        for route in self.routes:
            ends = had.get(route.source), had.get(route.target)
            self._chains[route.id] = rewiring.chain(route, *ends, kept, dead)
        for node, what in rewiring.missing(self._stages(self.routes), dead, kept):
            raise rewiring.LostMemory(node, what)
        living = {node: shown for node, shown in had.items() if node not in dead}
        return [told for node, shown in living.items() for told in self._even_out(node, shown)]

    def _even_out(self, node: str, shown: rewiring.Shown) -> list[ToNode]:
        """What was under way about the segments of ``node`` when the daemon died is begun again."""
        memory = shown.memory
        told = []
        for index in memory.segments:
            told += self._spread(node, memory, index, confirmed=index not in shown.unconfirmed)
        for index in {*shown.dropped, *self._mapped_in_vain(node, memory)}:
            told += self._take_back(node, memory, index, reuse=index in shown.dropped)
        return told

    def _mapped_in_vain(self, node: str, memory: Memory) -> set[int]:
        """Segments that consumers map, and that ``node`` has given back."""
        stages = [stage for stage in self._present(self._places[node].outputs) if stage.producer is memory]
        return {index for stage in stages for index in stage.sent} - memory.segments.keys()

    def memories(self) -> dict[Key, int]:
        """All that a daemon without any needs to go on from what the dead have left; the descriptors stay ours."""
        return rewiring.memories(self._stages(self.routes), self._places)

    # -- handed over to the next image of the daemon -------------------------------------------------------

    def packed(self, bag: Bag) -> PackedWiring:
        """All of it; descriptors go into ``bag``."""
        packer = Packer(bag)
        chains = {route: packer.stages(chain) for route, chain in self._chains.items()}
        places = {node: packer.place(place) for node, place in self._places.items()}
        stages, memories = packer.all()
        return PackedWiring(
            memories=memories,
            stages=stages,
            chains=chains,
            places=places,
            counters={route: counters.packed() for route, counters in self._counters.items()},
            ports=[(node, route, port) for (node, route), port in self._ports.items()],
            last={route: None if last is None else dict(last) for route, last in self._last.items()},
        )

    def unpack(self, packed: PackedWiring, bag: Unbag) -> None:
        """Be the wiring that ``packed`` was. Raises ValueError when that is of another flow, OSError."""
        if packed.chains.keys() != self._chains.keys() or packed.places.keys() != self._places.keys():
            raise ValueError("it has other nodes or routes than its contract")
        unpacker = Unpacker(packed.stages, packed.memories, self.routes, bag)
        self._chains = {route: unpacker.stages(chain) for route, chain in packed.chains.items()}
        for node, place in packed.places.items():
            unpacker.place(self._places[node], place)
        for route, counters in packed.counters.items():
            self._counters[route].unpack(counters)
        self._ports = {(node, route): port for node, route, port in packed.ports}
        self._last = cast("dict[str, RouteSnapshot | None]", packed.last)

    # -- what a worker is told and offers ------------------------------------------------------------------

    def configure(self, node: str, message: Configure) -> Configure:
        """``message`` with the ports of the incarnation of ``node`` that gets it: every stage of an input, the present
        one of an output whose consumer lives."""
        place = self._places[node]
        inputs = [port for route in message.inputs for port in self._input_ports(place, route)]
        outputs = [self._output_port(port) for port in message.outputs if self._has_consumer(port.route)]
        rings = [self._chains[port.route][-1] for port in outputs]
        credits = [stage for route in message.inputs for stage in self._chains[route.route]]
        place.configured = True
        place.due.append(Ends(rings, credits))
        return msgspec.structs.replace(message, inputs=inputs, outputs=outputs, incarnation=place.incarnation)

    def _input_ports(self, place: Place, port: Port) -> list[Port]:
        self._ports[place.node, port.route] = port
        return [_at(port, stage) for stage in self._chains[port.route]]

    def _output_port(self, port: Port) -> Port:
        stage = self._chains[port.route][-1]
        return msgspec.structs.replace(port, epoch=stage.epoch, base_seq=stage.base_seq, resume=stage.resume)

    def _has_consumer(self, route: str) -> bool:
        return not self._places[self._chains[route][-1].route.target].gone

    def offer(self, node: str, message: Offer, descriptors: list[int]) -> list[ToNode]:
        """Check and keep what ``node`` offers; takes ``descriptors`` over (empties the list). What consumers have to be
        told of stages that it has left; links are due after that.

        Raises ProtocolError ``descriptor-refused`` or ``malformed-message``, and then has kept nothing.
        """
        place = self._places[node]
        if not place.due:
            raise error("unexpected-message", type="offer", when="without having been asked")
        due, ends = _in_order(place, message)
        fds = iter(descriptors)
        try:
            bell = shm.Doorbell(next(fds))
        except (OSError, ValueError, shm.PeerFault) as reason:
            raise error("descriptor-refused", what=f"the doorbell of node {node!r}", reason=str(reason)) from None
        memory = place.memory or Memory(bell, incarnation=place.incarnation)
        try:
            rings = [checked(next(fds), "ring", f"the ring of route {stage.route.id!r}") for stage in ends.rings]
            credits = [checked(next(fds), "credit", f"the credits of route {s.route.id!r}") for s in ends.credits]
            segments = {index: next(fds) for index in message.segments}
            for index, fd in segments.items():
                _check_segment(memory, node, index, fd)
            for stage, fd in zip(ends.rings, rings, strict=True):
                self._check_continues(stage, fd)
            self._check_ends(due.leave)
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
        _keep(memory, ends, rings, credits)
        place.due.remove(due)
        told = [each for stage in ends.rings if stage not in self._chains[stage.route.id] for each in self._next(stage)]
        told += [each for name in due.leave if name in self._removed for each in self._conclude(name)]
        return told + self._change_outputs()

    # -- other routes while it runs ------------------------------------------------------------------------

    def revise(
        self,
        routes: tuple[DataRoute, ...],
        told: Mapping[str, Configure],
        untold: Iterable[str],
        switched: Collection[str],
    ) -> list[ToNode]:
        """From now on these are the routes; ``told`` is what each node's worker would be told, ``switched`` are those
        whose ring is to be another one. Workers of nodes in ``untold`` are replaced, or end: what the others have to be
        told. Routes that are there no more go once they are drained."""
        before, after = {route.id: route for route in self.routes}, {route.id: route for route in routes}
        self._untold = frozenset(untold)
        self._removed |= {name: route for name, route in before.items() if name not in after}
        for name in switched:
            for stage in self._chains[name]:
                stage.port = self._ports.get((before[name].target, name))
        for node, message in told.items():
            self._places.setdefault(node, Place(node))
            self.know(message)
        self._nodes = frozenset(told)
        for name, route in after.items():
            source, target = self._places[route.source], self._places[route.target]
            if name not in before:
                self._chains[name], self._counters[name] = [Stage(route)], Counters()
            for ends in (source.outputs, target.inputs):
                ends[:] = [each for each in ends if each.id != name]
                ends.append(route)
        self.routes = routes
        added = after.keys() - before.keys()

        def living() -> list[Place]:
            return [self._places[node] for node in told if node not in self._untold and self._reachable(node)]

        def outputs() -> list[ToNode]:
            return [each for place in living() for each in self._reroute(place, told, added, switched)]

        self._outputs_next = outputs
        fed = {route.target for route in before.values()}  # who leaves must not come to its end before
        consumers = [self._places[node] for node in told if node in fed and self._reachable(node)]
        return [each for place in consumers for each in self._extend_inputs(place, added)] + self._change_outputs()

    def _change_outputs(self) -> list[ToNode]:
        """Now, if nobody has still to learn of an input: only then is nobody without any when others are closed."""
        then = self._outputs_next
        if then is None or any(ends.changes for place in self._places.values() for ends in place.due):
            return []
        self._outputs_next = None
        return then()

    def _extend_inputs(self, place: Place, added: Collection[str]) -> list[ToNode]:
        stages = [stage for stage in self._present(place.inputs) if stage.route.id in added]
        for stage in stages:
            stage.held = any(route.target == place.node for route in self._removed.values())
        return [self._extend(place, stages, changes=True)] if stages else []

    def _reroute(
        self, place: Place, told: Mapping[str, Configure], added: Collection[str], switched: Collection[str]
    ) -> list[ToNode]:
        leave = tuple(name for name, route in self._removed.items() if route.source == place.node)
        stages = []
        for route in place.outputs:
            present = self._chains[route.id][-1]
            if route.id in switched:
                stages.append(Stage(route, present.epoch + 1))
            elif route.id in added:
                stages.append(present)
        if not stages and not leave:
            return []
        ports = {port.route: port for port in told[place.node].outputs}
        outputs = [msgspec.structs.replace(ports[stage.route.id], epoch=stage.epoch) for stage in stages]
        place.due.append(Ends(stages, [], leave, changes=True))
        return [ToNode(place.node, Extend(outputs=outputs, leave=list(leave)))]

    @property
    def rerouting(self) -> list[str]:
        """Nodes whose routes have not changed yet as they were told."""
        return [node for node, place in self._places.items() if any(ends.changes for ends in place.due)]

    @property
    def clean(self) -> bool:
        """Of routes that were removed nothing is left."""
        return not self._removed

    def _check_continues(self, stage: Stage, ring: int) -> None:
        """Does a next stage that a living producer has begun begin where the one before ends? Raises ProtocolError,
        and PeerFault for one before that makes no sense."""
        before = self._chains[stage.route.id][-1]
        if stage is before or stage in self._chains[stage.route.id]:
            return
        if before.ring is not None:
            end, input_seq = self._remains(before.ring)
            stage.base_seq, stage.resume = before.base_seq + end, max(before.resume, input_seq)
        if rewiring.base_seq(ring) != stage.base_seq:
            reason = f"it begins at {rewiring.base_seq(ring)}, the one before ends at {stage.base_seq}"
            raise error("descriptor-refused", what=f"the ring of route {stage.route.id!r}", reason=reason)

    def _check_ends(self, removed: Iterable[str]) -> None:
        """Do the rings of these routes, which their producer leaves, make sense? Raises PeerFault."""
        for name in removed:
            stage = self._chains[name][-1] if name in self._removed else None
            if stage is not None and stage.ring is not None and not stage.ended:
                self._remains(stage.ring)

    def _next(self, stage: Stage) -> list[ToNode]:
        """Its producer, which lives, has gone on to this stage."""
        self._chains[stage.route.id][-1].ended = True
        self._chains[stage.route.id].append(stage)
        return self._tell_begun(stage.route.target, [stage])

    def _tell_begun(self, node: str, stages: list[Stage]) -> list[ToNode]:
        """Next stages of inputs of ``node``: now, or when it is ready; one that is yet to be born is told at birth."""
        consumer = self._places[node]
        if consumer.ready and not consumer.gone:
            return [self._extend(consumer, stages)]
        if consumer.configured:
            consumer.later += stages
        return []

    def _conclude(self, name: str) -> list[ToNode]:
        """The producer of a route that was removed has done with it."""
        route, stage = self._removed[name], self._chains[name][-1]
        outputs = self._places[route.source].outputs
        outputs[:] = [each for each in outputs if each.id != name]
        if stage.ended:
            return []
        end = self._remains(stage.ring)[0] if stage.ring is not None else 0
        stage.ended = True
        if route.target in self._untold or not self._reachable(route.target):
            return []
        return [ToNode(route.target, Conclude(route=name, seq=stage.base_seq + end))]

    def _forget_inputs(self, node: str) -> list[ToNode]:
        """Whoever took from these routes that were removed is gone: nobody ever will."""
        names = [name for name, route in self._removed.items() if route.target == node]
        return [each for name in names for each in self._forget_route(name)]

    def _forget_route(self, name: str) -> list[ToNode]:
        """A route that was removed is drained, or nobody is there to do it. What waited for that goes on."""
        told = []
        for stage in tuple(self._chains[name]):
            found = stage.snapshot() if stage.route.policy == "block" else None
            if found is not None and found["outstanding"]:
                self.lost[name] = self.lost.get(name, 0) + found["outstanding"]
            told += self._give_up(stage)
        route = self._removed.pop(name)
        del self._chains[name], self._counters[name]
        self._ports.pop((route.target, name), None)
        for ends in (self._places[route.source].outputs, self._places[route.target].inputs):
            ends[:] = [each for each in ends if each.id != name]
        told += self._release_held(route.target)
        for node in (route.source, route.target):
            self._discard(node)
        return told

    def _discard(self, node: str) -> None:
        """Of a node that the flow has no more, and that is gone, nothing is left."""
        place = self._places.get(node)
        ends = {end for route in self._removed.values() for end in (route.source, route.target)}
        if place is not None and place.gone and node not in self._nodes | ends:
            place.reset()
            del self._places[node]

    def _release_held(self, node: str) -> list[ToNode]:
        if any(route.target == node for route in self._removed.values()):
            return []
        place = self._places[node]
        for stage in self._stages(place.inputs):
            stage.held = False
        link = self._link(place)
        return [link] if link is not None else []

    def _give_up(self, stage: Stage) -> list[ToNode]:
        """Nothing of this stage will be taken or returned any more. A producer that lives is told."""
        told = [each for index in sorted(stage.dropping) for each in self._settle_drops(stage, index)]
        memory, source = stage.producer, stage.route.source
        if memory is not None:
            told += [each for index in sorted(memory.unmapped) for each in self._settle_segment(stage, index)]
        if memory is not None and memory is self._places[source].memory and self._reachable(source) and stage.ended:
            told.append(ToNode(source, Drained(route=stage.route.id, epoch=stage.epoch)))
        self._chains[stage.route.id].remove(stage)
        stage.close(self._counters[stage.route.id])
        return told

    # -- links ---------------------------------------------------------------------------------------------

    def links(self, node: str) -> list[ToNode]:
        """The links that are due now that ``node`` has offered: its own, and those of its peers."""
        place = self._places[node]
        near = [*(route.source for route in place.inputs), *(route.target for route in place.outputs)]
        found = [self._link(self._places[each]) for each in dict.fromkeys((node, *near))]
        return [link for link in found if link is not None]

    def _link(self, place: Place) -> ToNode | None:
        if place.gone or place.memory is None:
            return None
        if not place.linked:
            return self._first_link(place)
        outputs = [s for s in self._present(place.outputs) if s.producer is place.memory and s.complete]
        outputs = [stage for stage in outputs if not stage.told_producer]
        inputs = [s for s in self._stages(place.inputs) if s.consumer is place.memory and s.complete]
        inputs = [stage for stage in inputs if not stage.told_consumer and not stage.held]
        if not outputs and not inputs:
            return None
        place.answers.append(Ends(outputs, inputs))
        return _linked(place, outputs, inputs)

    def _first_link(self, place: Place) -> ToNode | None:
        """All ends at once, when the last peer has offered."""
        outputs = [stage for stage in self._present(place.outputs) if stage.producer is place.memory]
        inputs = [stage for stage in self._stages(place.inputs) if stage.consumer is place.memory]
        if not all(stage.complete for stage in (*outputs, *inputs)):
            return None
        place.linked = True
        return _linked(place, outputs, inputs)

    def ready(self, node: str) -> list[ToNode]:
        """``node`` is ready: it has mapped all that came with its link, and can be told of stages begun meanwhile."""
        place = self._places[node]
        place.ready = True
        told = self._settle(stage for stage in self._stages(place.inputs) if stage.told_consumer)
        if place.later:
            told.append(self._extend(place, place.later))
            place.later = []
        return told

    def relink(self, node: str) -> list[ToNode]:
        """The successor ``node`` is ready: links for the producers that had been linked to its predecessor."""
        place = self._places[node]
        mine = [stage for stage in self._stages(place.inputs) if stage.consumer is place.memory]
        stages = [s for s in mine if s.relink and not s.ended and not self._places[s.route.source].gone]
        place.relinking = set(stages)
        place.asked_relink = True
        told = []
        for source in dict.fromkeys(stage.route.source for stage in stages):
            producer = self._places[source]
            outputs = [stage for stage in stages if stage.route.source == source]
            producer.answers.append(Ends(outputs, []))
            told.append(_linked(producer, outputs, []))
        return told

    def relinked(self, node: str) -> bool:
        """No producer has to be linked to the successor ``node`` any more: it may start. Said once."""
        place = self._places[node]
        done = place.asked_relink and not place.relinking
        place.asked_relink = place.asked_relink and not done
        return done

    def linked(self, node: str, message: Linked) -> list[ToNode]:
        """``node`` has mapped what a link after its first brought. Raises ProtocolError when none is unanswered."""
        place = self._places[node]
        if not place.answers:
            raise error("unexpected-message", type="linked", when="where no link is to be answered")
        ends = place.answers.popleft()
        wanted = [stage.route.id for stage in (*ends.rings, *ends.credits)]
        if message.routes != wanted:
            reason = f"routes are {message.routes}, but the link was of {wanted}"
            raise error("malformed-message", type="linked", reason=reason)
        for stage in ends.rings:
            if all(stage not in later.rings for later in place.answers):
                self._places[stage.route.target].relinking.discard(stage)
        return self._settle(stage for stage in ends.credits if stage.told_consumer)

    def drained(self, node: str, message: Drained) -> list[ToNode]:
        """``node`` has emptied and returned a stage with which its producer has done: it is given up. Who has to know.
        Raises ProtocolError."""
        chain = self._chains.get(message.route)
        stage = chain[0] if chain and chain[0].route.target == node else None
        if stage is not None and message.epoch < stage.epoch and self._places[node].came_back:
            return []
        if chain is None or stage is None or stage.epoch != message.epoch or not stage.ended:
            reason = f"epoch {message.epoch} of route {message.route!r} is no stage that node {node!r} has to drain"
            raise error("malformed-message", type="drained", reason=reason)
        if len(chain) > 1:
            return self._give_up(stage)
        return self._forget_route(message.route) if message.route in self._removed else []

    def started(self, node: str) -> None:
        """``node`` is told to start: from now on it may take and return frames."""
        self._places[node].started = True

    def has_output(self, node: str, route: str) -> bool:
        """Does ``node`` send to ``route``, or did it until shortly?"""
        known = {each.id: each.source for each in self.routes} | {name: r.source for name, r in self._removed.items()}
        return known.get(route) == node

    def offered_by(self, node: str) -> tuple[int, dict[int, int]] | None:
        """Doorbell and segments of the worker of ``node``, which stay ours; None when there is none, or no more."""
        place = self._places.get(node)
        return (
            None
            if place is None or place.memory is None or place.gone
            else (place.memory.doorbell.fileno(), place.memory.segments)
        )

    # -- growth --------------------------------------------------------------------------------------------

    def grow(self, node: str, message: Segment, descriptors: list[int]) -> list[ToNode]:
        """``node``'s arena has a further segment: what its consumers have to get, or, if nobody has to, its own go.

        A consumer that is not linked yet gets the segment with its link. Takes ``descriptors`` over; raises
        ProtocolError.
        """
        memory = self._places[node].memory
        if memory is None:
            raise error("unexpected-message", type="segment", when="before the offer")
        if message.index in memory.segments and message.index in memory.shown_so:
            memory.shown_so.discard(message.index)
            return []
        _check_segment(memory, node, message.index, descriptors[0])
        memory.segments[message.index] = descriptors[0]
        descriptors.clear()
        return self._spread(node, memory, message.index)

    def _spread(self, node: str, memory: Memory, index: int, *, confirmed: bool = False) -> list[ToNode]:
        """A segment to every consumer that lacks it; unless ``confirmed``, ``node`` may not use it yet."""
        stages = [stage for stage in self._present(self._places[node].outputs) if stage.producer is memory]
        lacking = [s for s in stages if not self._places[s.route.target].gone and index not in s.sent]
        waited_for = {stage for stage in lacking if stage.route.policy == "block"}
        forwarded = []
        for stage in lacking:
            if stage.told_consumer:
                stage.sent.add(index)
                part = Segment(index=index, route=stage.route.id, epoch=stage.epoch)
                forwarded.append(ToNode(stage.route.target, part, (memory.segments[index],)))
        if confirmed:
            return forwarded
        if waited_for:
            memory.unmapped[index] = waited_for
            return forwarded
        return [*forwarded, ToNode(node, SegmentMapped(index=index))]

    def mapped(self, node: str, message: SegmentMapped) -> list[ToNode]:
        """``node`` can follow descriptors into a segment of one of its inputs. Raises ProtocolError."""
        chain = [stage for stage in self._chains.get(message.route, ()) if stage.route.target == node]
        stage = next((each for each in chain if each.epoch == message.epoch), None)
        if stage is None and (message.route not in self._chains or (chain and message.epoch < chain[0].epoch)):
            return []  # it was drained meanwhile
        if stage is None or message.index not in stage.sent:
            reason = f"segment {message.index} of route {message.route!r} was not sent to node {node!r}"
            raise error("malformed-message", type="segment-mapped", reason=reason)
        return self._settle_segment(stage, message.index)

    def _settle(self, stages: Iterable[Stage]) -> list[ToNode]:
        """Consumers have mapped what came with their links."""
        told = []
        for stage in stages:
            for index in sorted(stage.by_link):
                told += self._settle_segment(stage, index)
            stage.by_link.clear()
        return told

    def _settle_segment(self, stage: Stage, index: int) -> list[ToNode]:
        if stage.producer is None or not stage.producer.settle(stage, index):
            return []
        return [ToNode(stage.route.source, SegmentMapped(index=index))]

    # -- shrinking -----------------------------------------------------------------------------------------

    def drop(self, node: str, message: SegmentDropped, *, reuse: bool = True) -> list[ToNode]:
        """``node`` has given a segment of its arena back: who has to unmap it, or, if nobody has to, that its index is
        free, which it never is without ``reuse``. Raises ProtocolError for a segment that it may not use."""
        memory, index = self._places[node].memory, message.index
        if memory is not None and index not in memory.segments and index in memory.shown_so:
            memory.shown_so.discard(index)
            return []
        if memory is None or index not in memory.segments or index in memory.unmapped:
            reason = f"segment {index} of node {node!r} is not in use"
            raise error("malformed-message", type="segment-dropped", reason=reason)
        os.close(memory.segments.pop(index))
        return self._take_back(node, memory, index, reuse=reuse)

    def _take_back(self, node: str, memory: Memory, index: int, *, reuse: bool) -> list[ToNode]:
        """A segment that is there no more, from every consumer that maps it."""
        stages = [s for s in self._present(self._places[node].outputs) if s.producer is memory and index in s.sent]
        stages = [stage for stage in stages if not self._places[stage.route.target].gone]
        forwarded = []
        for stage in stages:
            stage.told_to_drop(index)
            part = SegmentDropped(index=index, route=stage.route.id, epoch=stage.epoch)
            forwarded.append(ToNode(stage.route.target, part))
        if reuse:
            memory.undropped[index] = set(stages)
        return forwarded + self._forget_if_dropped(node, memory, index)

    def dropped(self, node: str, message: SegmentDropped) -> list[ToNode]:
        """``node`` has unmapped a segment of an input, or had left that stage already. Raises ProtocolError."""
        chain = [stage for stage in self._chains.get(message.route, ()) if stage.route.target == node]
        if not chain:
            reason = f"route {message.route!r} is no input of node {node!r}"
            raise error("malformed-message", type="segment-dropped", reason=reason)
        stage = next((each for each in chain if each.epoch == message.epoch), None)
        return [] if stage is None else self._settle_drops(stage, message.index)

    def _settle_drops(self, stage: Stage, *indices: int) -> list[ToNode]:
        """Its consumer maps these no more."""
        told = []
        for index in indices:
            stage.dropping.discard(index)
            memory = stage.producer
            if memory is not None and stage in memory.undropped.get(index, ()):
                memory.undropped[index].discard(stage)
                told += self._forget_if_dropped(stage.route.source, memory, index)
        return told

    def _forget_if_dropped(self, node: str, memory: Memory, index: int) -> list[ToNode]:
        if memory.undropped.get(index) != set():
            return []
        del memory.undropped[index]
        return [ToNode(node, SegmentDropped(index=index))]

    # -- life ----------------------------------------------------------------------------------------------

    def gone(self, node: str) -> list[ToNode]:
        """``node`` has exited for good: wake everyone who may wait for it, detach its producers, let growth go on
        without it. Raises PeerFault when it left a RING that makes no sense, and somebody would have to know its
        end."""
        place = self._places[node]
        place.gone = True
        self._ring_peers(place)
        for stage in self._present(place.outputs):
            self._places[stage.route.target].relinking.discard(stage)
        told = [
            ToNode(route.source, (Retract if route.id in self._removed else Detach)(route=route.id))
            for route in place.inputs
        ]
        for stage in self._stages(place.inputs):
            for index in sorted(stage.producer.unmapped) if stage.producer is not None else ():
                told += self._settle_segment(stage, index)
            told += self._settle_drops(stage, *sorted(stage.dropping))
        told += [*self._done_with(place), *self._never_made(place)]
        place.due.clear()
        told += self._change_outputs()
        self._discard(node)
        return [message for message in told if self._reachable(message.node)]

    def _done_with(self, place: Place) -> list[ToNode]:
        """Its worker is gone: it takes nothing more from routes that were removed, and sends nothing more to them, nor
        to those that it has never made."""
        removed = [route.id for route in place.outputs if route.id in self._removed]
        told = [each for name in removed for each in self._conclude(name)]
        return told + self._forget_inputs(place.node)

    def _never_made(self, place: Place) -> list[ToNode]:
        """Outputs that were added, and that its worker has not made before its end: nothing will come there."""
        told = []
        for stage in self._present(place.outputs):
            if stage.ring is None and not stage.ended and self._places[stage.route.target].ready:
                stage.ended = True
                told.append(ToNode(stage.route.target, Conclude(route=stage.route.id, seq=stage.base_seq)))
        return told

    def succeeded(self, node: str) -> list[ToNode]:
        """``node`` has exited and will be born again: its routes wait for it, its outputs begin their next stage.

        Raises PeerFault when it left a RING that makes no sense, LostMemory when it had to drain one that nobody has:
        its successor cannot go on.
        """
        place = self._places[node]
        rewiring.check_drainable(self._stages(place.inputs))
        self._ring_peers(place)
        freed = []
        for stage in self._stages(place.inputs):
            freed += self._settle_drops(stage, *sorted(stage.dropping))
            stage.consumer_died(self._counters[stage.route.id], ran=place.started)
        freed += self._done_with(place)
        begun: dict[str, list[Stage]] = {}
        for stage in self._present(place.outputs):
            self._places[stage.route.target].relinking.discard(stage)
            if stage.producer is place.memory and stage.ring is not None and self._end(stage):
                begun.setdefault(stage.route.target, []).append(self._chains[stage.route.id][-1])
        place.reset()
        told = [message for message in freed if self._reachable(message.node)]
        told += [each for target, stages in begun.items() for each in self._tell_begun(target, stages)]
        return told + self._change_outputs()

    def _end(self, stage: Stage) -> bool:
        """Its producer is dead; a next stage has begun, unless nobody ever saw this one."""
        if not stage.lived:
            stage.forget_ring()
            return False
        assert stage.ring is not None
        end, input_seq = self._remains(stage.ring)
        stage.ended = True
        route = next((each for each in self.routes if each.id == stage.route.id), stage.route)
        following = Stage(route, stage.epoch + 1, stage.base_seq + end, max(stage.resume, input_seq))
        self._chains[stage.route.id].append(following)
        return True

    def _extend(self, place: Place, stages: list[Stage], *, changes: bool = False) -> ToNode:
        place.due.append(Ends([], list(stages), changes=changes))
        inputs = [_at(self._ports[place.node, stage.route.id], stage) for stage in stages]
        return ToNode(place.node, Extend(inputs=inputs))

    def _ring_peers(self, place: Place) -> None:
        near = {route.source for route in place.inputs} | {route.target for route in place.outputs}
        for peer in near:
            memory = self._places[peer].memory
            if memory is not None and not self._places[peer].gone:
                memory.doorbell.ring()

    def _reachable(self, node: str) -> bool:
        place = self._places.get(node)
        return place is not None and place.memory is not None and not place.gone

    def _stages(self, routes: Iterable[DataRoute]) -> Iterator[Stage]:
        for route in routes:
            yield from self._chains[route.id]

    def _present(self, routes: Iterable[DataRoute]) -> list[Stage]:
        return [self._chains[route.id][-1] for route in routes]

    # -- watching ------------------------------------------------------------------------------------------

    def snapshot(self, route: DataRoute) -> RouteSnapshot | None:
        """Counters of ``route`` over all of its stages; None before both ends were there or when an end has spoilt its
        header; the last ones after :meth:`close`."""
        if route.id in self._last:
            return self._last[route.id]
        return self._counters[route.id].total(stage.snapshot() for stage in self._chains[route.id])

    def kept(self, route: DataRoute) -> tuple[int, int, int] | None:
        """Frames of ``route`` that its consumer has taken and not returned: how many, the oldest one's sequence number
        and ns since it was sent; None without one."""
        views = (stage.open_view() for stage in self._chains[route.id])
        found = [held for view in views if view is not None and (held := view.oldest_held()) is not None]
        return (sum(count for count, _, _ in found), *found[0][1:]) if found else None

    def held(self, node: str) -> list[HeldFrames]:
        """Frames that ``node`` has taken and not returned, by route; for one that has just died."""
        found = []
        for route in self._places[node].inputs:
            count, sequences = 0, []
            for stage in self._chains[route.id]:
                view = stage.open_view()
                taken, frames = view.held() if view is not None else (0, [])
                count += taken
                sequences += [seq for seq, _, _ in frames]
            if count:
                found.append(HeldFrames(route=route.id, count=count, sequences=sorted(sequences)))
        return found

    def close(self) -> None:
        """Take the last counters, then give all memory back. Idempotent."""
        for route in self.routes:
            if route.id not in self._last:
                self._last[route.id] = self.snapshot(route)
        for name, chain in self._chains.items():
            for stage in chain:
                stage.close(self._counters[name])
            chain.clear()
        for place in self._places.values():
            place.reset()
        for name in self._removed:
            del self._chains[name], self._counters[name]
        self._removed.clear()
        self._places = {node: place for node, place in self._places.items() if node in self._nodes}


def _at(port: Port, stage: Stage) -> Port:
    return msgspec.structs.replace(stage.port or port, epoch=stage.epoch, base_seq=stage.base_seq, resume=stage.resume)


def _meant(place: Place, message: Offer) -> Ends:
    """What was asked for that this answers: inputs are offered at once, outputs between two frames."""
    names = sorted(message.rings), sorted(message.credits)
    fits = (due for due in place.due if (_names(due.rings), _names(due.credits)) == names)
    return next(fits, place.due[0])


def _names(stages: Iterable[Stage]) -> list[str]:
    return sorted(stage.route.id for stage in stages)


def _in_order(place: Place, message: Offer) -> tuple[Ends, Ends]:
    """What was asked for, and the stages that the names of an offer mean. Raises ProtocolError when they are not those
    that were asked for."""
    due = _meant(place, message)
    for what, offered, stages in (("rings", message.rings, due.rings), ("credits", message.credits, due.credits)):
        wanted = sorted(stage.route.id for stage in stages)
        if sorted(offered) != wanted:
            reason = f"{what} are {sorted(offered)}, but the routes of node {place.node!r} are {wanted}"
            raise error("malformed-message", type="offer", reason=reason)
    if len(set(message.segments)) != len(message.segments):
        raise error("malformed-message", type="offer", reason=f"segments {message.segments} repeat an index")
    return due, Ends(_named(message.rings, due.rings), _named(message.credits, due.credits))


def _named(names: Iterable[str], stages: Iterable[Stage]) -> list[Stage]:
    """The stages by name; those of one route in the order of their epochs."""
    left: dict[str, list[Stage]] = {}
    for stage in sorted(stages, key=lambda stage: -stage.epoch):
        left.setdefault(stage.route.id, []).append(stage)
    return [left[name].pop() for name in names]


def _check_segment(memory: Memory, node: str, index: int, fd: int) -> None:
    if index in memory.segments:
        reason = f"segment {index} of node {node!r} is there already"
        raise error("malformed-message", type="segment", reason=reason)
    checked(fd, "segment", f"segment {index} of node {node!r}")


def _keep(memory: Memory, ends: Ends, rings: Iterable[int], credits: Iterable[int]) -> None:
    for stage, fd in zip(ends.rings, rings, strict=True):
        stage.ring, stage.producer = fd, memory
        memory.stages += 1
    for stage, fd in zip(ends.credits, credits, strict=True):
        stage.credit, stage.consumer = fd, memory


def _linked(place: Place, outputs: list[Stage], inputs: list[Stage]) -> ToNode:
    """The link that brings these ends; they count as told."""
    fds: list[int] = []
    for stage in outputs:
        assert stage.credit is not None
        assert stage.consumer is not None
        fds += (stage.credit, stage.consumer.doorbell.fileno())
        stage.told_producer, stage.relink = True, False
    links = []
    for stage in inputs:
        assert stage.ring is not None
        assert stage.producer is not None
        segments = stage.producer.segments
        fds += (stage.ring, stage.producer.doorbell.fileno(), *segments.values())
        succeeds = stage.predecessor is not None
        if stage.predecessor is not None:
            fds.append(stage.predecessor)
            stage.close_view()
        links.append(InputLink(route=stage.route.id, segments=list(segments), epoch=stage.epoch, predecessor=succeeds))
        stage.told_consumer = True
        stage.by_link, stage.sent = set(segments), set(segments)
    epochs = [stage.epoch for stage in outputs] if place.ready else []
    message = Link(outputs=[stage.route.id for stage in outputs], inputs=links, epochs=epochs)
    return ToNode(place.node, message, tuple(fds))
