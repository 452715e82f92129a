"""Other routes while a flow runs: they are switched, added or removed at a frame boundary of the producer, and what is
old stays until its consumer has drained it. When that happens is for others to say; see ``core.rollout``.

Rules: who lived when the routes became others is told so, once; who is born afterwards is born with what there is. A
route that was removed stays as long as somebody is there, or will be, to drain it: also for a consumer's successor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Conclude, Configure, Drained, Extend, Port
from chronetixd.core.counters import Counters
from chronetixd.core.wiring.links import Links
from chronetixd.core.wiring.route_table import RouteTable, Told
from chronetixd.core.wiring.segments import Segments
from chronetixd.core.wiring.stages import DataRoute, Ends, NodeEnds, Stage


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a producer that lived when the routes became others is told as soon as all consumers know theirs."""

    incarnation: int
    ports: tuple[Port, ...]
    """Further ones, and those that go on with another ring."""


class Rerouting:
    """Of one flow."""

    def __init__(self, net: RouteTable, segments: Segments, links: Links) -> None:
        self._net = net
        self._segments = segments
        self._links = links
        self.nodes = frozenset(net.places)
        """Those that the flow has."""
        self.lost: dict[str, int] = {}
        """Frames of routes that were removed, which nobody has worked on: their consumer was killed."""
        self._outputs: dict[str, Outputs] = {}
        self._former: dict[str, set[str]] = {}
        """Who sent to each node before the routes became others."""
        self._leaving: dict[str, int] = {}
        """Workers, by node and incarnation, that learn of other routes by being replaced, or never."""

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
    ) -> list[Told]:
        """From now on these are the routes; ``told`` is what each node's worker would be told, ``switched`` are those
        whose ring is to be another one. Workers of nodes in ``untold`` are replaced, or end: what the others have to be
        told. Routes that are there no more go once they are drained."""
        before, after = {route.id: route for route in self._net.routes}, {route.id: route for route in routes}
        places = self._net.places
        self._former = {}
        for route in before.values():
            self._former.setdefault(route.target, set()).add(route.source)
        self._leaving = {node: places[node].incarnation for node in untold if node in places}
        self._net.removed |= {name: route for name, route in before.items() if name not in after}
        for name in switched:
            for stage in self._net.chains[name]:
                stage.port = self._net.ports.get((before[name].target, name))
        for node, message in told.items():
            places.setdefault(node, NodeEnds(node))
            self.know(message)
        self.nodes = frozenset(told)
        for name, route in after.items():
            if name not in before:
                self._net.chains[name], self._net.counters[name] = [Stage(route)], Counters()
            for ends in (places[route.source].outputs, places[route.target].inputs):
                ends[:] = [each for each in ends if each.id != name]
                ends.append(route)
        self._net.routes = routes
        added = after.keys() - before.keys()
        self._outputs = {
            node: Outputs(places[node].incarnation, self._others(places[node], message, added, switched))
            for node, message in told.items()
            if not self._leaves(node) and self._net.reachable(node)
        }
        fed = {route.target for route in before.values()}  # who leaves must not come to its end before
        consumers = [places[node] for node in told if node in fed and self._net.reachable(node)]
        return [each for place in consumers for each in self._extend_inputs(place, added)] + self.change_outputs()

    def _leaves(self, node: str) -> bool:
        """Its present worker is to be replaced, or to end."""
        return self._leaving.get(node) == self._net.places[node].incarnation

    def nobody_leaves(self) -> list[Told]:
        """The roll-out has ended before it was done. Whoever was to be replaced stays, and is told which of its inputs
        have come to their end."""
        leaving, self._leaving = [node for node in self._leaving if self._leaves_yet(node)], {}
        places = [self._net.places[node] for node in leaving]
        return [each for place in places if place.ready for each in self.concluded(place)]

    def _leaves_yet(self, node: str) -> bool:
        return self._net.reachable(node) and self._leaves(node)

    @staticmethod
    def _others(
        place: NodeEnds, message: Configure, added: Collection[str], switched: Collection[str]
    ) -> tuple[Port, ...]:
        ports = {port.route: port for port in message.outputs}
        return tuple(ports[route.id] for route in place.outputs if route.id in added or route.id in switched)

    def change_outputs(self) -> list[Told]:
        """Now, if nobody has still to learn of an input: only then is nobody without any when others are closed."""
        if any(ends.changes for place in self._net.places.values() for ends in place.due):
            return []
        waiting, self._outputs = self._outputs, {}
        return [each for node, outputs in waiting.items() for each in self._reroute(node, outputs)]

    def _extend_inputs(self, place: NodeEnds, added: Collection[str]) -> list[Told]:
        stages = [stage for stage in self._net.present(place.inputs) if stage.route.id in added]
        for stage in stages:
            stage.held = any(route.target == place.node for route in self._net.removed.values())
        return [self._links.extend(place, stages, changes=True)] if stages else []

    def release(self, place: NodeEnds) -> None:
        """Its worker is born as what the new flow says, and old ones send to it still. What it sends is not held where
        that would wait for one of these: its consumer would take nothing, so that it would not, and they never end.
        Frames may then overtake others that come by another branch."""
        if place.node not in self._leaving or self._leaves(place.node):
            return
        old = {route.source for route in self._net.removed.values() if route.target == place.node}
        old |= {before for node in old for before in self._unfinished_before(node)}
        for stage in self._net.present(place.outputs):
            waits_for = {each.source for each in self._net.removed.values() if each.target == stage.route.target}
            if any(old & self._unfinished_before(node) for node in waits_for):
                stage.held = False

    def _unfinished_before(self, node: str) -> set[str]:
        """Of those whose frames came to ``node`` by the routes of before, whoever may send some still."""
        found: set[str] = set()
        todo = set(self._former.get(node, ()))
        while todo:
            one = todo.pop()
            place = self._net.places.get(one)
            if one in found or place is None or place.gone:
                continue
            if self._leaves(one) or any(ends.changes for ends in place.due):
                found.add(one)
                todo |= self._former.get(one, set())
        return found

    def _reroute(self, node: str, outputs: Outputs) -> list[Told]:
        """Only a worker that lived already when the routes became others."""
        place = self._net.places.get(node)
        if place is None or place.incarnation != outputs.incarnation or not self._net.reachable(node):
            return []
        leave = tuple(name for name, route in self._net.removed.items() if route.source == node)
        stages, ports = [], []
        for port in outputs.ports:
            present = self._net.chains[port.route][-1]
            goes_on = present.producer is place.memory
            route = next(each for each in place.outputs if each.id == port.route)
            stages.append(Stage(route, present.epoch + 1) if goes_on else present)
            ports.append(msgspec.structs.replace(port, epoch=stages[-1].epoch))
        if not stages and not leave:
            return []
        place.due.append(Ends(stages, [], leave, changes=True))
        return [Told(node, Extend(outputs=ports, leave=list(leave)))]

    @property
    def under_way(self) -> list[str]:
        """Nodes whose routes have not changed yet as they were told."""
        return [node for node, place in self._net.places.items() if any(ends.changes for ends in place.due)]

    @property
    def clean(self) -> bool:
        """Of routes that were removed nothing is left."""
        return not self._net.removed

    # -- where a living producer goes on -------------------------------------------------------------------

    def check_continues(self, stage: Stage, base_seq: int) -> Stage:
        """``stage`` as it goes on where the one before ends. Raises ProtocolError if its RING, which begins at
        ``base_seq``, does not, and PeerFault for one before that makes no sense."""
        before = self._net.chains[stage.route.id][-1]
        if stage is before or stage in self._net.chains[stage.route.id]:
            return stage
        begins, resume = stage.base_seq, stage.resume
        if before.ring is not None:
            end, items = self._net.reader.remains(before.ring)
            if not self._net.places[stage.route.source].source:
                items = 0  # of a frame that came in, no item's number
            begins, resume = before.base_seq + end, max(before.resume, items)
        if base_seq != begins:
            reason = f"it begins at {base_seq}, the one before ends at {begins}"
            raise error("descriptor-refused", what=f"the ring of route {stage.route.id!r}", reason=reason)
        return replace(stage, base_seq=begins, resume=resume)

    def check_ends(self, removed: Iterable[str]) -> None:
        """Do the rings of these routes, which their producer leaves, make sense? Raises PeerFault."""
        for name in removed:
            stage = self._net.chains[name][-1] if name in self._net.removed else None
            if stage is not None and stage.ring is not None and not stage.ended:
                self._net.reader.remains(stage.ring)

    def sent(self, place: NodeEnds) -> int:
        """How far has a source come? Raises PeerFault for a ring of it that makes no sense."""
        found = place.sent
        for stage in self._net.stages(place.outputs) if place.source else ():
            items = self._net.reader.remains(stage.ring)[1] if stage.ring is not None else 0
            found = max(found, stage.resume, items)
        return found

    @staticmethod
    def begin_after_sent(stages: Iterable[Stage], place: NodeEnds) -> None:
        """Of these stages those that are the first of a route that was added. Items that its source had sent before go
        by other routes; if they come again all the same, they are marked."""
        for stage in stages:
            if stage.epoch == 0:
                stage.resume = max(stage.resume, place.sent)

    def next(self, stage: Stage) -> list[Told]:
        """Its producer, which lives, has gone on to this stage."""
        self._net.chains[stage.route.id][-1].ended = True
        self._net.chains[stage.route.id].append(stage)
        return self._links.tell_begun(stage.route.target, [stage])

    # -- routes that were removed --------------------------------------------------------------------------

    def conclude(self, name: str) -> list[Told]:
        """The producer of a route that was removed has done with it."""
        route, stage = self._net.removed[name], self._net.chains[name][-1]
        outputs = self._net.places[route.source].outputs
        outputs[:] = [each for each in outputs if each.id != name]
        told = self.conclude_stage(stage)
        target = self._net.places[route.target]
        if target.gone or (stage.ring is None and len(self._net.chains[name]) == 1 and not target.configured):
            return [*told, *self._forget_route(name)]
        return told

    def conclude_stage(self, stage: Stage) -> list[Told]:
        """Nothing comes behind this stage, which is its route's last one: its consumer is told, now or when it is
        ready."""
        if stage.ended:
            return []
        stage.ended = True
        target = self._net.places[stage.route.target]
        link = self._links.link(target) if not target.linked else None
        return [*([link] if link is not None else []), *self.tell_concluded(stage)]

    def tell_concluded(self, stage: Stage) -> list[Told]:
        """Tell its consumer, if it is ready and stays."""
        target = self._net.places[stage.route.target]
        if not target.ready or self._leaves(target.node):
            return []
        end = self._net.reader.remains(stage.ring)[0] if stage.ring is not None else 0
        return [Told(target.node, Conclude(route=stage.route.id, seq=stage.base_seq + end))]

    def concluded(self, place: NodeEnds) -> list[Told]:
        """``place`` is ready: which of its inputs had come to their end before."""
        over = [stage for stage in self._net.present(place.inputs) if stage.ended]
        return [each for stage in over for each in self.tell_concluded(stage)]

    def forget_inputs(self, node: str) -> list[Told]:
        """Whoever took from these routes that were removed is gone for good: nobody ever will. Those with which their
        producers have not done go when they have."""
        names = [name for name, route in self._net.removed.items() if route.target == node]
        names = [name for name in names if self._net.chains[name][-1].ended]
        return [each for name in names for each in self._forget_route(name)]

    def drop_unmade(self, place: NodeEnds) -> list[Told]:
        """Its worker is dead. A stage that has ended before anybody made its RING is nothing that a successor would
        have to be told of."""
        told = []
        for route in tuple(place.inputs):
            chain = self._net.chains[route.id]
            for stage in [each for each in chain if each.ended and each.ring is None]:
                if len(chain) > 1:
                    self._net.give_up(stage)
                    chain.remove(stage)
                elif route.id in self._net.removed:
                    told += self._forget_route(route.id)
        return told

    def _forget_route(self, name: str, *, drained: bool = False) -> list[Told]:
        """A route that was removed is drained, or nobody is there to do it. What waited for that goes on."""
        told = []
        route = self._net.removed[name]
        source = self._net.places[route.source]
        if source.source:
            for stage in self._net.chains[name]:
                source.sent = max(source.sent, stage.resume, self._items(stage))
        for stage in tuple(self._net.chains[name]):
            found = stage.snapshot(self._net.reader) if stage.route.policy == "block" and not drained else None
            if found is not None and found["outstanding"]:
                # a consumer that died may have left returns uncounted, but more than that are never under way
                self.lost[name] = self.lost.get(name, 0) + min(found["outstanding"], found["credits"])
            told += self._give_up(stage)
        del self._net.removed[name], self._net.chains[name], self._net.counters[name]
        self._net.ports.pop((route.target, name), None)
        for ends in (source.outputs, self._net.places[route.target].inputs):
            ends[:] = [each for each in ends if each.id != name]
        told += self._release_held(route.target)
        for node in (route.source, route.target):
            self.discard(node)
        return told

    def _items(self, stage: Stage) -> int:
        """The last item in a stage that has ended, and so was looked at already."""
        return self._net.reader.remains(stage.ring)[1] if stage.ring is not None else 0

    def discard(self, node: str) -> None:
        """Of a node that the flow has no more, and that is gone, nothing is left."""
        place = self._net.places.get(node)
        ends = {end for route in self._net.removed.values() for end in (route.source, route.target)}
        if place is not None and place.gone and node not in self.nodes | ends:
            self._net.reset(place)
            del self._net.places[node]

    def _release_held(self, node: str) -> list[Told]:
        if any(route.target == node for route in self._net.removed.values()):
            return []
        place = self._net.places[node]
        for stage in self._net.stages(place.inputs):
            stage.held = False
        link = self._links.link(place)
        return [link] if link is not None else []

    def _give_up(self, stage: Stage) -> list[Told]:
        """Nothing of this stage will be taken or returned any more. A producer that lives is told."""
        told = [each for index in sorted(stage.dropping) for each in self._segments.settle_drops(stage, index)]
        memory, source = stage.producer, stage.route.source
        if memory is not None:
            told += [each for index in sorted(memory.unmapped) for each in self._segments.settle_segment(stage, index)]
        lives = self._net.reachable(source) and memory is self._net.places[source].memory
        if lives and stage.ended:
            told.append(Told(source, Drained(route=stage.route.id, epoch=stage.epoch)))
        self._net.chains[stage.route.id].remove(stage)
        self._net.give_up(stage)
        return told

    def drained(self, node: str, message: Drained) -> list[Told]:
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
        return self._forget_route(message.route, drained=True) if message.route in self._net.removed else []

    def has_output(self, node: str, route: str) -> bool:
        """Does ``node`` send to ``route``, or did it until shortly?"""
        known = {each.id: each.source for each in self._net.routes}
        known |= {name: each.source for name, each in self._net.removed.items()}
        return known.get(route) == node

    def leave_outputs(self, place: NodeEnds) -> list[Told]:
        """Its worker sends nothing more to routes that were removed."""
        removed = [route.id for route in place.outputs if route.id in self._net.removed]
        return [each for name in removed for each in self.conclude(name)]

    def never_made(self, place: NodeEnds) -> list[Told]:
        """Outputs that were added, and that its worker has not made before its end: nothing will come there."""
        unmade = [stage for stage in self._net.present(place.outputs) if stage.ring is None]
        return [each for stage in unmade for each in self.conclude_stage(stage)]
