"""Other routes while a flow runs: they are switched, added or removed at a frame boundary of the producer, and what is
old stays until its consumer has drained it. When that happens is for others to say; see ``rollout``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress

import msgspec

import shm
from chronetixd import rewiring
from chronetixd.counters import Counters
from chronetixd.links import Links
from chronetixd.net import Net, ToNode
from chronetixd.segments import Segments
from chronetixd.stages import DataRoute, Ends, Place, Stage
from protocol.errors import error
from protocol.messages import Conclude, Configure, Drained, Extend


class Rerouting:
    """Of one flow."""

    def __init__(self, net: Net, segments: Segments, links: Links) -> None:
        self._net = net
        self._segments = segments
        self._links = links
        self.nodes = frozenset(net.places)
        """Those that the flow has."""
        self.lost: dict[str, int] = {}
        """Frames of routes that were removed, which nobody has worked on: their consumer was killed."""
        self._outputs_next: Callable[[], list[ToNode]] | None = None
        """What producers are told once all consumers know of their further inputs."""
        self._untold: frozenset[str] = frozenset()
        """Nodes that learn of other routes by being replaced, or never."""

    def know(self, message: Configure) -> None:
        """What a worker is told, or was by an earlier daemon."""
        for port in message.inputs:
            self._net.ports[message.node, port.route] = port

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
        before, after = {route.id: route for route in self._net.routes}, {route.id: route for route in routes}
        self._untold = frozenset(untold)
        self._net.removed |= {name: route for name, route in before.items() if name not in after}
        for name in switched:
            for stage in self._net.chains[name]:
                stage.port = self._net.ports.get((before[name].target, name))
        for node, message in told.items():
            self._net.places.setdefault(node, Place(node))
            self.know(message)
        self.nodes = frozenset(told)
        for name, route in after.items():
            source, target = self._net.places[route.source], self._net.places[route.target]
            if name not in before:
                self._net.chains[name], self._net.counters[name] = [Stage(route)], Counters()
            for ends in (source.outputs, target.inputs):
                ends[:] = [each for each in ends if each.id != name]
                ends.append(route)
        self._net.routes = routes
        added = after.keys() - before.keys()

        def living() -> list[Place]:
            return [self._net.places[node] for node in told if node not in self._untold and self._net.reachable(node)]

        def outputs() -> list[ToNode]:
            return [each for place in living() for each in self._reroute(place, told, added, switched)]

        self._outputs_next = outputs
        fed = {route.target for route in before.values()}  # who leaves must not come to its end before
        consumers = [self._net.places[node] for node in told if node in fed and self._net.reachable(node)]
        return [each for place in consumers for each in self._extend_inputs(place, added)] + self.change_outputs()

    def change_outputs(self) -> list[ToNode]:
        """Now, if nobody has still to learn of an input: only then is nobody without any when others are closed."""
        then = self._outputs_next
        if then is None or any(ends.changes for place in self._net.places.values() for ends in place.due):
            return []
        self._outputs_next = None
        return then()

    def _extend_inputs(self, place: Place, added: Collection[str]) -> list[ToNode]:
        stages = [stage for stage in self._net.present(place.inputs) if stage.route.id in added]
        for stage in stages:
            stage.held = any(route.target == place.node for route in self._net.removed.values())
        return [self._links.extend(place, stages, changes=True)] if stages else []

    def _reroute(
        self, place: Place, told: Mapping[str, Configure], added: Collection[str], switched: Collection[str]
    ) -> list[ToNode]:
        leave = tuple(name for name, route in self._net.removed.items() if route.source == place.node)
        stages = []
        for route in place.outputs:
            present = self._net.chains[route.id][-1]
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
    def under_way(self) -> list[str]:
        """Nodes whose routes have not changed yet as they were told."""
        return [node for node, place in self._net.places.items() if any(ends.changes for ends in place.due)]

    @property
    def clean(self) -> bool:
        """Of routes that were removed nothing is left."""
        return not self._net.removed

    def check_continues(self, stage: Stage, ring: int) -> None:
        """Does a next stage that a living producer has begun begin where the one before ends? Raises ProtocolError,
        and PeerFault for one before that makes no sense."""
        before = self._net.chains[stage.route.id][-1]
        if stage is before or stage in self._net.chains[stage.route.id]:
            return
        if before.ring is not None:
            end, input_seq = self._net.remains(before.ring)
            if not self._net.places[stage.route.source].source:
                input_seq = 0  # of a frame that came in, no item's number
            stage.base_seq, stage.resume = before.base_seq + end, max(before.resume, input_seq)
        if rewiring.base_seq(ring) != stage.base_seq:
            reason = f"it begins at {rewiring.base_seq(ring)}, the one before ends at {stage.base_seq}"
            raise error("descriptor-refused", what=f"the ring of route {stage.route.id!r}", reason=reason)

    def check_ends(self, removed: Iterable[str]) -> None:
        """Do the rings of these routes, which their producer leaves, make sense? Raises PeerFault."""
        for name in removed:
            stage = self._net.chains[name][-1] if name in self._net.removed else None
            if stage is not None and stage.ring is not None and not stage.ended:
                self._net.remains(stage.ring)

    def note_sent(self, place: Place) -> None:
        """How far has a source come? Raises PeerFault for a ring of it that makes no sense."""
        for stage in self._net.stages(place.outputs) if place.source else ():
            items = self._net.remains(stage.ring)[1] if stage.ring is not None else 0
            place.sent = max(place.sent, stage.resume, items)

    @staticmethod
    def begin_after_sent(stages: Iterable[Stage], place: Place) -> None:
        """Of these stages those that are the first of a route that was added. Items that its source had sent before go
        by other routes; if they come again all the same, they are marked."""
        for stage in stages:
            if stage.epoch == 0:
                stage.resume = max(stage.resume, place.sent)

    def next(self, stage: Stage) -> list[ToNode]:
        """Its producer, which lives, has gone on to this stage."""
        self._net.chains[stage.route.id][-1].ended = True
        self._net.chains[stage.route.id].append(stage)
        return self._links.tell_begun(stage.route.target, [stage])

    def conclude(self, name: str) -> list[ToNode]:
        """The producer of a route that was removed has done with it."""
        route, stage = self._net.removed[name], self._net.chains[name][-1]
        outputs = self._net.places[route.source].outputs
        outputs[:] = [each for each in outputs if each.id != name]
        if stage.ended:
            return []
        end = self._net.remains(stage.ring)[0] if stage.ring is not None else 0
        stage.ended = True
        if route.target in self._untold or not self._net.reachable(route.target):
            return []
        return [ToNode(route.target, Conclude(route=name, seq=stage.base_seq + end))]

    def _forget_inputs(self, node: str) -> list[ToNode]:
        """Whoever took from these routes that were removed is gone: nobody ever will."""
        names = [name for name, route in self._net.removed.items() if route.target == node]
        return [each for name in names for each in self._forget_route(name)]

    def _forget_route(self, name: str) -> list[ToNode]:
        """A route that was removed is drained, or nobody is there to do it. What waited for that goes on."""
        told = []
        with suppress(shm.PeerFault):  # its producer will be told when it offers, or has died
            self.note_sent(self._net.places[self._net.removed[name].source])
        for stage in tuple(self._net.chains[name]):
            found = stage.snapshot() if stage.route.policy == "block" else None
            if found is not None and found["outstanding"]:
                self.lost[name] = self.lost.get(name, 0) + found["outstanding"]
            told += self._give_up(stage)
        route = self._net.removed.pop(name)
        del self._net.chains[name], self._net.counters[name]
        self._net.ports.pop((route.target, name), None)
        for ends in (self._net.places[route.source].outputs, self._net.places[route.target].inputs):
            ends[:] = [each for each in ends if each.id != name]
        told += self._release_held(route.target)
        for node in (route.source, route.target):
            self.discard(node)
        return told

    def discard(self, node: str) -> None:
        """Of a node that the flow has no more, and that is gone, nothing is left."""
        place = self._net.places.get(node)
        ends = {end for route in self._net.removed.values() for end in (route.source, route.target)}
        if place is not None and place.gone and node not in self.nodes | ends:
            place.reset()
            del self._net.places[node]

    def _release_held(self, node: str) -> list[ToNode]:
        if any(route.target == node for route in self._net.removed.values()):
            return []
        place = self._net.places[node]
        for stage in self._net.stages(place.inputs):
            stage.held = False
        link = self._links.link(place)
        return [link] if link is not None else []

    def _give_up(self, stage: Stage) -> list[ToNode]:
        """Nothing of this stage will be taken or returned any more. A producer that lives is told."""
        told = [each for index in sorted(stage.dropping) for each in self._segments.settle_drops(stage, index)]
        memory, source = stage.producer, stage.route.source
        if memory is not None:
            told += [each for index in sorted(memory.unmapped) for each in self._segments.settle_segment(stage, index)]
        lives = self._net.reachable(source) and memory is self._net.places[source].memory
        if lives and stage.ended:
            told.append(ToNode(source, Drained(route=stage.route.id, epoch=stage.epoch)))
        self._net.chains[stage.route.id].remove(stage)
        stage.close(self._net.counters[stage.route.id])
        return told

    def drained(self, node: str, message: Drained) -> list[ToNode]:
        """``node`` has emptied and returned a stage with which its producer has done: it is given up. Who has to know.
        Raises ProtocolError."""
        chain = self._net.chains.get(message.route)
        stage = chain[0] if chain and chain[0].route.target == node else None
        if stage is not None and message.epoch < stage.epoch and self._net.places[node].came_back:
            return []
        if chain is None or stage is None or stage.epoch != message.epoch or not stage.ended:
            reason = f"epoch {message.epoch} of route {message.route!r} is no stage that node {node!r} has to drain"
            raise error("malformed-message", type="drained", reason=reason)
        if len(chain) > 1:
            return self._give_up(stage)
        return self._forget_route(message.route) if message.route in self._net.removed else []

    def has_output(self, node: str, route: str) -> bool:
        """Does ``node`` send to ``route``, or did it until shortly?"""
        known = {each.id: each.source for each in self._net.routes}
        known |= {name: each.source for name, each in self._net.removed.items()}
        return known.get(route) == node

    def done_with(self, place: Place) -> list[ToNode]:
        """Its worker is gone: it takes nothing more from routes that were removed, and sends nothing more to them, nor
        to those that it has never made."""
        removed = [route.id for route in place.outputs if route.id in self._net.removed]
        told = [each for name in removed for each in self.conclude(name)]
        return told + self._forget_inputs(place.node)

    def never_made(self, place: Place) -> list[ToNode]:
        """Outputs that were added, and that its worker has not made before its end: nothing will come there."""
        told = []
        for stage in self._net.present(place.outputs):
            if stage.ring is None and not stage.ended and self._net.places[stage.route.target].ready:
                stage.ended = True
                told.append(ToNode(stage.route.target, Conclude(route=stage.route.id, seq=stage.base_seq)))
        return told
