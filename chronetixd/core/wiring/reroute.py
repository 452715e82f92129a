"""Routes that change while a flow runs: routes are switched, added or removed at a frame boundary of the producer, and
an old stage stays until its consumer has drained it. ``core.rollout`` decides when that happens.

Rules: a worker that lived when the routes changed is told of the change, exactly once; a worker that is configured
afterwards is configured with the new routes. A removed route stays as long as there is a consumer, or will be a
consumer's successor, to drain it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Conclude, Configure, Drained, Extend, Port
from chronetixd.core.counters import Counters
from chronetixd.core.wiring.links import Links
from chronetixd.core.wiring.route_table import NodeMessage, RouteTable
from chronetixd.core.wiring.segments import Segments
from chronetixd.core.wiring.stages import DataRoute, Ends, NodeEnds, Stage


@dataclass(frozen=True, slots=True)
class OutputChange:
    """What a living producer is told when the routes have changed, once all consumers know of their new inputs."""

    incarnation: int
    ports: tuple[Port, ...]
    """Added outputs, and outputs that continue with another ring."""


class Rerouting:
    """The route changes of one flow."""

    def __init__(self, table: RouteTable, segments: Segments, links: Links) -> None:
        self._table = table
        self._segments = segments
        self._links = links
        self.nodes = frozenset(table.nodes)
        """The nodes that the flow has now."""
        self.lost: dict[str, int] = {}
        """By removed route: frames that no consumer has worked on, because the consumer was killed."""
        self._outputs: dict[str, OutputChange] = {}
        self._former: dict[str, set[str]] = {}
        """By node: the nodes that sent to it before the routes changed."""
        self._leaving: dict[str, int] = {}
        """Workers, by node and incarnation, that are replaced or end because of the change, and so are not told of
        other routes."""

    def know(self, message: Configure) -> None:
        """Remember the ports that a worker is told, or was told by an earlier daemon."""
        for port in (*message.inputs, *message.outputs):
            self._table.ports[message.node, port.route] = port

    def revise(
        self,
        routes: tuple[DataRoute, ...],
        told: Mapping[str, Configure],
        untold: Iterable[str],
        switched: Collection[str],
    ) -> list[NodeMessage]:
        """Change the routes of the flow, and return the messages to living workers. ``told`` is the configuration of
        each node, ``untold`` are nodes whose worker is replaced or ends, ``switched`` are routes that get another ring.
        Removed routes are dropped once they are drained."""
        before, after = {route.id: route for route in self._table.routes}, {route.id: route for route in routes}
        places = self._table.nodes
        self._former = {}
        for route in before.values():
            self._former.setdefault(route.target, set()).add(route.source)
        self._leaving = {node: places[node].incarnation for node in untold if node in places}
        self._table.removed |= {name: route for name, route in before.items() if name not in after}
        for name in switched:
            for stage in self._table.chains[name]:
                stage.port = self._table.ports.get((before[name].target, name))
        for node, message in told.items():
            places.setdefault(node, NodeEnds(node))
            self.know(message)
        self.nodes = frozenset(told)
        for name, route in after.items():
            if name not in before:
                self._table.chains[name], self._table.counters[name] = [Stage(route)], Counters()
            for ends in (places[route.source].outputs, places[route.target].inputs):
                ends[:] = [each for each in ends if each.id != name]
                ends.append(route)
        self._table.routes = routes
        added = after.keys() - before.keys()
        self._outputs = {
            node: OutputChange(places[node].incarnation, self._changed_ports(places[node], message, added, switched))
            for node, message in told.items()
            if not self._leaves(node) and self._table.reachable(node)
        }
        fed = {route.target for route in before.values()}  # a leaving worker must not see the end of its inputs first
        consumers = [places[node] for node in told if node in fed and self._table.reachable(node)]
        return [
            each for node_ends in consumers for each in self._extend_inputs(node_ends, added)
        ] + self.change_outputs()

    def _leaves(self, node: str) -> bool:
        """Return whether the present worker of ``node`` is to be replaced or to end."""
        return self._leaving.get(node) == self._table.nodes[node].incarnation

    def keep_leaving_workers(self) -> list[NodeMessage]:
        """Keep the workers that were to be replaced, because the roll-out has ended before it was done. Returns the
        messages that tell them which of their inputs have ended."""
        leaving, self._leaving = [node for node in self._leaving if self._leaves_and_lives(node)], {}
        places = [self._table.nodes[node] for node in leaving]
        return [each for node_ends in places if node_ends.ready for each in self.tell_ended_inputs(node_ends)]

    def _leaves_and_lives(self, node: str) -> bool:
        return self._table.reachable(node) and self._leaves(node)

    @staticmethod
    def _changed_ports(
        node_ends: NodeEnds, message: Configure, added: Collection[str], switched: Collection[str]
    ) -> tuple[Port, ...]:
        ports = {port.route: port for port in message.outputs}
        return tuple(ports[route.id] for route in node_ends.outputs if route.id in added or route.id in switched)

    def change_outputs(self) -> list[NodeMessage]:
        """Return the messages that change the outputs, once every consumer has offered its new inputs. Earlier, closing
        an old output could leave a consumer without any input."""
        if any(ends.changes for node_ends in self._table.nodes.values() for ends in node_ends.due):
            return []
        waiting, self._outputs = self._outputs, {}
        return [each for node, outputs in waiting.items() for each in self._reroute(node, outputs)]

    def _extend_inputs(self, node_ends: NodeEnds, added: Collection[str]) -> list[NodeMessage]:
        stages = [stage for stage in self._table.present(node_ends.inputs) if stage.route.id in added]
        for stage in stages:
            stage.held = any(route.target == node_ends.node for route in self._table.removed.values())
        return [self._links.extend(node_ends, stages, changes=True)] if stages else []

    def release(self, node_ends: NodeEnds) -> None:
        """Release stages from being held when ``node_ends`` is configured with the new routes while old workers still
        send to it. A stage that it sends to is released if holding it could deadlock: the consumer would take nothing
        until removed routes are drained, and draining them waits, through this node, for that consumer. Frames may then
        overtake others that come by another branch."""
        if node_ends.node not in self._leaving or self._leaves(node_ends.node):
            return
        old = {route.source for route in self._table.removed.values() if route.target == node_ends.node}
        old |= {before for node in old for before in self._unfinished_before(node)}
        for stage in self._table.present(node_ends.outputs):
            waits_for = {each.source for each in self._table.removed.values() if each.target == stage.route.target}
            if any(old & self._unfinished_before(node) for node in waits_for):
                stage.held = False

    def _unfinished_before(self, node: str) -> set[str]:
        """Return the nodes that may still send frames which reach ``node`` by the old routes."""
        found: set[str] = set()
        todo = set(self._former.get(node, ()))
        while todo:
            one = todo.pop()
            node_ends = self._table.nodes.get(one)
            if one in found or node_ends is None or node_ends.gone:
                continue
            if self._leaves(one) or any(ends.changes for ends in node_ends.due):
                found.add(one)
                todo |= self._former.get(one, set())
        return found

    def _reroute(self, node: str, outputs: OutputChange) -> list[NodeMessage]:
        """Tell ``node`` of its changed outputs, if its worker lived already when the routes changed."""
        node_ends = self._table.nodes.get(node)
        if node_ends is None or node_ends.incarnation != outputs.incarnation or not self._table.reachable(node):
            return []
        leave = tuple(name for name, route in self._table.removed.items() if route.source == node)
        stages, ports = [], []
        for port in outputs.ports:
            present = self._table.chains[port.route][-1]
            goes_on = present.producer is node_ends.memory
            route = next(each for each in node_ends.outputs if each.id == port.route)
            stages.append(Stage(route, present.epoch + 1) if goes_on else present)
            ports.append(msgspec.structs.replace(port, epoch=stages[-1].epoch))
            self._table.ports[node, port.route] = port
        if not stages and not leave:
            return []
        node_ends.due.append(Ends(stages, [], leave, changes=True))
        return [NodeMessage(node, Extend(outputs=ports, leave=list(leave)))]

    @property
    def under_way(self) -> list[str]:
        """Nodes that were told of a route change and have not carried it out yet."""
        return [node for node, node_ends in self._table.nodes.items() if any(ends.changes for ends in node_ends.due)]

    @property
    def clean(self) -> bool:
        """Whether all removed routes are drained."""
        return not self._table.removed

    # -- where a living producer goes on -------------------------------------------------------------------

    def check_continues(self, stage: Stage, base_seq: int) -> Stage:
        """Return ``stage`` with the position at which the stage before it ends. Raises ProtocolError if its RING, which
        begins at ``base_seq``, begins elsewhere, and PeerFault if the RING of the stage before it is corrupt."""
        before = self._table.chains[stage.route.id][-1]
        if stage is before or stage in self._table.chains[stage.route.id]:
            self._check_begin(stage, base_seq, stage.base_seq)
            return stage
        begins, resume = stage.base_seq, stage.resume
        if before.ring is not None:
            end, items = self._table.reader.remains(before.ring)
            if not self._table.nodes[stage.route.source].source:
                items = 0  # input_seq of a node with inputs is that of an input frame and no item's number
            begins, resume = before.base_seq + end, max(before.resume, items)
        self._check_begin(stage, base_seq, begins)
        return replace(stage, base_seq=begins, resume=resume)

    @staticmethod
    def _check_begin(stage: Stage, base_seq: int, begins: int) -> None:
        if base_seq != begins:
            reason = f"it begins at {base_seq}, the one before ends at {begins}"
            raise error("descriptor-refused", what=f"the ring of route {stage.route.id!r}", reason=reason)

    def check_ends(self, removed: Iterable[str]) -> None:
        """Raise PeerFault if any of the RINGs of these removed routes, which their producer leaves, is corrupt."""
        for name in removed:
            stage = self._table.chains[name][-1] if name in self._table.removed else None
            if stage is not None and stage.ring is not None and not stage.ended:
                self._table.reader.remains(stage.ring)

    def sent(self, node_ends: NodeEnds) -> int:
        """Return the last item that a source is known to have sent. Raises PeerFault if one of its RINGs is corrupt."""
        found = node_ends.sent
        for stage in self._table.stages(node_ends.outputs) if node_ends.source else ():
            items = self._table.reader.remains(stage.ring)[1] if stage.ring is not None else 0
            found = max(found, stage.resume, items)
        return found

    @staticmethod
    def begin_after_sent(stages: Iterable[Stage], node_ends: NodeEnds) -> None:
        """Set the position of those of ``stages`` that are the first stage of an added route. Items that the source
        sent before the change went by other routes; if the source sends such an item again, it is marked as a
        repetition."""
        for stage in stages:
            if stage.epoch == 0:
                stage.resume = max(stage.resume, node_ends.sent)

    def next(self, stage: Stage) -> list[NodeMessage]:
        """Append ``stage``, which its living producer has begun. Returns the message that tells the consumer."""
        self._table.chains[stage.route.id][-1].ended = True
        self._table.chains[stage.route.id].append(stage)
        return self._links.announce_stages(stage.route.target, [stage])

    # -- routes that were removed --------------------------------------------------------------------------

    def conclude(self, name: str) -> list[NodeMessage]:
        """Note that the producer of a removed route sends nothing more to it."""
        route, stage = self._table.removed[name], self._table.chains[name][-1]
        outputs = self._table.nodes[route.source].outputs
        outputs[:] = [each for each in outputs if each.id != name]
        told = self.conclude_stage(stage)
        target = self._table.nodes[route.target]
        if target.gone or (stage.ring is None and len(self._table.chains[name]) == 1 and not target.configured):
            return [*told, *self._forget_route(name)]
        return told

    def conclude_stage(self, stage: Stage) -> list[NodeMessage]:
        """Note that nothing follows this last stage of its route. The consumer is told now, or when it is ready."""
        if stage.ended:
            return []
        stage.ended = True
        target = self._table.nodes[stage.route.target]
        link = self._links.link(target) if not target.linked else None
        return [*([link] if link is not None else []), *self.tell_concluded(stage)]

    def tell_concluded(self, stage: Stage) -> list[NodeMessage]:
        """Return the message that tells the consumer where ``stage`` ends; none if it is not ready or is to be
        replaced, or if the RING that would tell died with the daemon that had it: the flow fails for that then."""
        target = self._table.nodes[stage.route.target]
        if not target.ready or self._leaves(target.node):
            return []
        if stage.ring is None and stage.told_consumer:
            return []
        end = self._table.reader.remains(stage.ring)[0] if stage.ring is not None else 0
        return [NodeMessage(target.node, Conclude(route=stage.route.id, seq=stage.base_seq + end))]

    def tell_ended_inputs(self, node_ends: NodeEnds) -> list[NodeMessage]:
        """Return the messages that tell ``node_ends``, which has become ready, which of its inputs had ended before."""
        over = [stage for stage in self._table.present(node_ends.inputs) if stage.ended]
        return [each for stage in over for each in self.tell_concluded(stage)]

    def forget_inputs(self, node: str) -> list[NodeMessage]:
        """Drop removed routes whose consumer ``node`` is gone for good. A route that its producer has not ended yet is
        dropped when the producer has."""
        names = [name for name, route in self._table.removed.items() if route.target == node]
        names = [name for name in names if self._table.chains[name][-1].ended]
        return [each for name in names for each in self._forget_route(name)]

    def drop_unmade_inputs(self, node_ends: NodeEnds) -> list[NodeMessage]:
        """Drop stages that ended before their RING was made, because the worker of ``node_ends`` is dead and its
        successor need not be told of them."""
        told = []
        for route in tuple(node_ends.inputs):
            chain = self._table.chains[route.id]
            for stage in [each for each in chain if each.ended and each.ring is None]:
                if len(chain) > 1:
                    self._table.give_up(stage)
                    chain.remove(stage)
                elif route.id in self._table.removed:
                    told += self._forget_route(route.id)
        return told

    def _forget_route(self, name: str, *, drained: bool = False) -> list[NodeMessage]:
        """Drop a removed route that is drained, or that no consumer will drain. Returns messages to workers that waited
        for that."""
        told = []
        route = self._table.removed[name]
        source = self._table.nodes[route.source]
        if source.source:
            for stage in self._table.chains[name]:
                source.sent = max(source.sent, stage.resume, self._items(stage))
        for stage in tuple(self._table.chains[name]):
            found = stage.snapshot(self._table.reader) if stage.route.policy == "block" and not drained else None
            if found is not None and found["outstanding"]:
                # a consumer that died may have left returns uncounted, but more than that are never under way
                self.lost[name] = self.lost.get(name, 0) + min(found["outstanding"], found["credits"])
            told += self._give_up(stage)
        del self._table.removed[name], self._table.chains[name], self._table.counters[name]
        for node in (route.source, route.target):
            self._table.ports.pop((node, name), None)
        for ends in (source.outputs, self._table.nodes[route.target].inputs):
            ends[:] = [each for each in ends if each.id != name]
        told += self._release_held(route.target)
        for node in (route.source, route.target):
            self.discard(node)
        return told

    def _items(self, stage: Stage) -> int:
        """Return the last item in an ended stage. Its RING was checked when the stage ended."""
        return self._table.reader.remains(stage.ring)[1] if stage.ring is not None else 0

    def discard(self, node: str) -> None:
        """Forget a removed node that is gone and at no end of any route."""
        node_ends = self._table.nodes.get(node)
        ends = {end for route in self._table.removed.values() for end in (route.source, route.target)}
        if node_ends is not None and node_ends.gone and node not in self.nodes | ends:
            self._table.reset(node_ends)
            del self._table.nodes[node]

    def _release_held(self, node: str) -> list[NodeMessage]:
        if any(route.target == node for route in self._table.removed.values()):
            return []
        node_ends = self._table.nodes[node]
        for stage in self._table.stages(node_ends.inputs):
            stage.held = False
        link = self._links.link(node_ends)
        return [link] if link is not None else []

    def _give_up(self, stage: Stage) -> list[NodeMessage]:
        """Give up a stage of which no frame will be taken or returned any more. A living producer is told."""
        told = [each for index in sorted(stage.dropping) for each in self._segments.settle_drops(stage, index)]
        memory, source = stage.producer, stage.route.source
        if memory is not None:
            told += [each for index in sorted(memory.unmapped) for each in self._segments.settle_segment(stage, index)]
        lives = self._table.reachable(source) and memory is self._table.nodes[source].memory
        if lives and stage.ended:
            told.append(NodeMessage(source, Drained(route=stage.route.id, epoch=stage.epoch)))
        self._table.chains[stage.route.id].remove(stage)
        self._table.give_up(stage)
        return told

    def drained(self, node: str, message: Drained) -> list[NodeMessage]:
        """Give up a stage that ``node`` has drained and its producer has ended. Returns the messages that follow.
        Raises ProtocolError."""
        chain = self._table.chains.get(message.route)
        stage = chain[0] if chain and chain[0].route.target == node else None
        if stage is not None and message.epoch < stage.epoch and self._table.nodes[node].reattached:
            return []
        if chain is None or stage is None or stage.epoch != message.epoch or not stage.ended:
            reason = f"epoch {message.epoch} of route {message.route!r} is no stage that node {node!r} has to drain"
            raise error("malformed-message", type="drained", reason=reason)
        if len(chain) > 1:
            return self._give_up(stage)
        return self._forget_route(message.route, drained=True) if message.route in self._table.removed else []

    def has_output(self, node: str, route: str) -> bool:
        """Return whether ``node`` sends to ``route``, or did so until the route was removed."""
        known = {each.id: each.source for each in self._table.routes}
        known |= {name: each.source for name, each in self._table.removed.items()}
        return known.get(route) == node

    def leave_outputs(self, node_ends: NodeEnds) -> list[NodeMessage]:
        """Note that the worker of ``node_ends`` sends nothing more to removed routes."""
        removed = [route.id for route in node_ends.outputs if route.id in self._table.removed]
        return [each for name in removed for each in self.conclude(name)]

    def conclude_unmade_outputs(self, node_ends: NodeEnds) -> list[NodeMessage]:
        """End added outputs whose RING was not made before the worker of ``node_ends`` ended: no frame will come by
        them."""
        unmade = [stage for stage in self._table.present(node_ends.outputs) if stage.ring is None]
        return [each for stage in unmade for each in self.conclude_stage(stage)]
