"""The shared memory of one flow in the daemon: wraps the state machine of ``core.wiring`` and does its input and
output.

No descriptor is trusted: each is checked (seals, size, header) before the machine is told of it. A handle is the number
of the descriptor; an end of a wake-up line is only made when it is sent. Memory outlives the worker that made it: until
the flow has ended, or until a stage whose producer is dead is drained. No message is sent here; messages to send are
returned. There is one short method for each event of the machine; the file is longer than 400 lines because there are
many events.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, cast

from chronetix import shm
from chronetix.protocol import messages as wire
from chronetix.protocol.errors import error
from chronetix.shm import layout
from chronetixd.core.counters import final, shown
from chronetixd.core.death import HeldFrames
from chronetixd.core.wiring.incarnations import LostMemory
from chronetixd.core.wiring.machine import WiringMachine
from chronetixd.core.wiring.route_table import Close, NodeMessage
from chronetixd.core.wiring.segments import check_new
from chronetixd.core.wiring.stages import MAX_SEGMENTS, DataRoute, Ends, Handle, LineEnd, Snapshot, Stage, check_count
from chronetixd.dataplane import rebuild
from chronetixd.dataplane.checked import checked
from chronetixd.dataplane.claims import broken_rule, misfit, unfinished
from chronetixd.dataplane.lines import Lines
from chronetixd.dataplane.pack import PackedWiring, Packer, Unpacker
from chronetixd.dataplane.recovered import RecoveredMemory
from chronetixd.loop.closing import close_memory
from chronetixd.packing import Bag, Unbag
from chronetixd.store.descriptor_keys import Key

if TYPE_CHECKING:
    from chronetix.shm._native import RouteSnapshot

__all__ = ["DataRoute", "FlowWiring", "ToNode"]

Remains = Callable[[int], tuple[int, int]]
"""Returns the position at which a dead producer's RING ends, and the highest input_seq committed to it. Raises
PeerFault.
"""


SHARE = 8
"""The arenas of a flow may use one in this many of the descriptors that the daemon may have open."""


def most_of_flow() -> int:
    """Return how many segments all arenas of one flow may have together."""
    return max(MAX_SEGMENTS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE)


class ToNode(NamedTuple):
    """A message for ``node``, with descriptors that the daemon keeps, and ends of wake-up lines: see
    :meth:`FlowWiring.sendable`."""

    node: str
    message: wire.WireMessage
    descriptors: tuple[int | LineEnd, ...] = ()


class Views:
    """Reads RINGs and CREDITs for the machine; each pair is mapped once, until one of the two is closed."""

    def __init__(self, remains: Remains) -> None:
        self._remains = remains
        self._open: dict[tuple[int, int], shm.RouteView] = {}
        self._pairs: dict[Hashable, set[tuple[int, int]]] = {}
        """By either end: the pairs that are mapped."""

    def remains(self, ring: Handle) -> tuple[int, int]:
        """See ``MemoryReader``. Raises PeerFault."""
        return self._remains(ring)

    def snapshot(self, ring: Handle, credit: Handle) -> Snapshot | None:
        """See ``MemoryReader``."""
        view = self.of((ring, credit))
        return cast("Snapshot", view.snapshot()) if view is not None else None

    def of(self, pair: tuple[Handle, Handle] | None) -> shm.RouteView | None:
        """Return the mapping of a pair; None before both ends exist, when a header is corrupt, or for lack of
        memory."""
        if pair is None:
            return None
        if pair not in self._open:
            try:
                self._open[pair] = shm.RouteView(*pair)
            except (shm.PeerFault, ValueError, MemoryError):
                return None
            for handle in pair:
                self._pairs.setdefault(handle, set()).add(pair)
        return self._open[pair]

    def close(self, handle: Hashable) -> None:
        """Unmap the pairs that ``handle`` belongs to."""
        for pair in self._pairs.pop(handle, ()):
            (other,) = set(pair) - {handle}
            self._pairs[other].discard(pair)
            self._open.pop(pair).close()


class FlowWiring:
    """All data routes of one flow."""

    def __init__(self, nodes: Iterable[str], routes: tuple[DataRoute, ...], remains: Remains = shm.remains) -> None:
        self._views = Views(remains)
        self.machine = WiringMachine(nodes, routes, self._views)
        self._lines = Lines()
        self._last: dict[str, RouteSnapshot | None] = {}
        self._final: dict[str, RouteSnapshot | None] = {}
        """Counters of routes whose two ends are gone: taken one by one, so that the end of the flow need not take them
        all."""

    @property
    def routes(self) -> tuple[DataRoute, ...]:
        """The routes that the flow has now."""
        return self.machine.table.routes

    @contextmanager
    def _closing_after(self) -> Iterator[WiringMachine]:
        """Close what the machine has released, whether the event has failed or not."""
        try:
            yield self.machine
        finally:
            self._close_all(self.machine.take_closes())

    def _close_all(self, effects: Iterable[Close]) -> None:
        for effect in effects:
            if isinstance(effect.handle, LineEnd):
                self._lines.close(effect.handle)
            else:
                self._views.close(effect.handle)
                close_memory(cast("int", effect.handle))

    # -- workers of an earlier daemon ----------------------------------------------------------------------

    def know(self, message: wire.Configure) -> None:
        """Remember what a worker was told by an earlier daemon."""
        self.machine.rerouting.know(message)

    def reattached(self, node: str, message: wire.Reattach, descriptors: list[int]) -> rebuild.ReattachedMemory:
        """Return the memory that ``node`` offers as it reattaches, checked. Raises ProtocolError, and then nothing is
        kept."""
        node_ends = self.machine.table.nodes[node]
        return rebuild.reattached(node, node_ends.outputs, node_ends.inputs, message, descriptors)

    def take_over(
        self,
        had: Mapping[str, rebuild.ReattachedMemory],
        dead: Mapping[str, int],
        over: set[str],
        kept: RecoveredMemory,
        late: Mapping[str, str] | None = None,
    ) -> list[ToNode]:
        """Continue with the memory that reattached workers ``had``, and with what was ``kept`` for others. Nodes in
        ``dead`` (with the incarnation that died) are to have successors; nodes that are ``over`` had finished; ``late``
        tells how workers died that died under this daemon. Returns the messages to send: segments that producers wait
        for.

        Raises LostMemory when a successor would need memory that does not exist any more.
        """
        table = self.machine.table
        nodes = {}
        for node, node_ends in table.nodes.items():
            made = nodes[node] = rebuild.node_ends(
                node, had.get(node), node_ends.outputs, node_ends.inputs, over=node in over
            )
            if node in dead and node not in had:
                rebuild.attach_recovered(made, kept, dead[node])
        chains = {
            route.id: rebuild.chain(route, had.get(route.source), had.get(route.target), kept, dead)
            for route in table.routes
        }
        with self._closing_after() as machine:
            machine.take_over(nodes, chains)
            for node in nodes:
                self._map_stages(node)
            for node, what in rebuild.missing_memory(table.stages(table.routes), dead, kept, late or {}):
                raise LostMemory(node, what)
            living = {node: shown for node, shown in had.items() if node not in dead}
            return _sent(
                told
                for node, shown in living.items()
                for told in machine.segments.resume_segments(node, shown.memory, shown.unconfirmed, shown.dropped)
            )

    def memories(self) -> dict[Key, int]:
        """Return all memory that a later daemon needs to continue from what dead workers have left. The descriptors
        stay this daemon's."""
        return rebuild.memories(self.machine.table.stages(self.machine.table.routes), self.machine.table.nodes)

    # -- handed over to the next image of the daemon -------------------------------------------------------

    def packed(self, bag: Bag) -> PackedWiring:
        """Return the whole state; descriptors go into ``bag``."""
        packer, table = Packer(bag, self._lines), self.machine.table
        chains = {route: packer.stages(chain) for route, chain in table.chains.items()}
        nodes = {node: packer.node_ends(node_ends) for node, node_ends in table.nodes.items()}
        stages, memories = packer.all()
        return PackedWiring(
            memories=memories,
            stages=stages,
            chains=chains,
            places=nodes,
            counters={route: counters.packed() for route, counters in table.counters.items()},
            ports=[(node, route, port) for (node, route), port in table.ports.items()],
            last={route: None if last is None else dict(last) for route, last in self._last.items()},
        )

    def unpack(self, packed: PackedWiring, bag: Unbag) -> None:
        """Restore the state from ``packed``. Raises ValueError when ``packed`` has other nodes or routes, OSError."""
        table = self.machine.table
        if packed.chains.keys() != table.chains.keys() or packed.places.keys() != table.nodes.keys():
            raise ValueError("it has other nodes or routes than its contract")
        unpacker = Unpacker(packed.stages, packed.memories, table.routes, bag, self._lines)
        table.chains = {route: unpacker.stages(chain) for route, chain in packed.chains.items()}
        for node, node_ends in packed.places.items():
            unpacker.node_ends(table.nodes[node], node_ends)
        for route, counters in packed.counters.items():
            table.counters[route].unpack(counters)
        table.ports = {(node, route): port for node, route, port in packed.ports}
        self._last = cast("dict[str, RouteSnapshot | None]", packed.last)
        for node in table.nodes:
            self._map_stages(node)

    # -- what a worker is told and offers ------------------------------------------------------------------

    def configure(self, node: str, message: wire.Configure) -> wire.Configure:
        """Return ``message`` with the ports of the incarnation of ``node`` that is configured."""
        self._final.clear()
        return self.machine.incarnations.configure(node, message)

    def offer(self, node: str, message: wire.Offer, descriptors: list[int]) -> list[ToNode]:
        """Check and keep what ``node`` offers; takes ``descriptors`` over and empties the list. Returns messages to
        consumers about stages that ``node`` has left; links are due after that.

        Raises ProtocolError ``descriptor-refused`` or ``malformed-message``, and then has kept nothing.
        """
        _, ends = self.machine.incarnations.expected(node, message)
        fds = iter(descriptors)
        try:
            if len(message.segments) > 1:
                self._check_share(node, len(message.segments))
            rings = [checked(next(fds), "ring", f"the ring of route {stage.route.id!r}") for stage in ends.rings]
            credits = [checked(next(fds), "credit", f"the credits of route {s.route.id!r}") for s in ends.credits]
            self.check_fits(node, ends, rings, credits)
            segments = {index: next(fds) for index in message.segments}
            for index, fd in segments.items():
                self._check_segment(node, index, fd)
            based = [(Handle(ring), layout.base_seq(ring)) for ring in rings]
            kept = {index: Handle(fd) for index, fd in segments.items()}
            with self._closing_after() as machine:
                told = machine.incarnations.offer(node, message, based, [Handle(fd) for fd in credits], kept)
        except shm.PeerFault as fault:
            raise error("descriptor-refused", what=f"a ring of node {node!r}", reason=str(fault.args[0])) from None
        descriptors.clear()
        self._map_stages(node)
        return _sent(told)

    def check_fits(self, node: str, ends: Ends, rings: Iterable[int], credits: Iterable[int]) -> None:
        """Raise ProtocolError ``descriptor-refused`` if a RING or CREDIT is not what the port of ``node`` says, so that
        the peer could not be linked to it."""
        ports = self.machine.table.ports
        for kind, stages, fds in (("ring", ends.rings, rings), ("credits", ends.credits, credits)):
            for stage, fd in zip(stages, fds, strict=True):
                known = ports.get((node, stage.route.id))
                port = stage.port or known if kind == "credits" else known
                reason = misfit(stage, port, fd, with_policy=kind == "ring")
                if reason:
                    raise error("descriptor-refused", what=f"the {kind} of route {stage.route.id!r}", reason=reason)

    def _map_stages(self, node: str) -> None:
        """Map the stages of ``node`` while there is memory, so that their counters can be read when they are over."""
        node_ends = self.machine.table.nodes[node]
        for stage in self.machine.table.stages((*node_ends.outputs, *node_ends.inputs)):
            self._views.of(stage.seen)

    def due(self, node: str) -> list[ToNode]:
        """Return the links that can be sent now that ``node`` has offered: to ``node`` itself and to its peers."""
        return _sent(self.machine.links.due(node))

    def ready(self, node: str) -> list[ToNode]:
        """Note that ``node`` is ready: it has mapped everything that its first link brought, and can be told of stages
        that have begun meanwhile. Raises ProtocolError."""
        with self._closing_after() as machine:
            return _sent(machine.ready(node))

    def relink(self, node: str) -> list[ToNode]:
        """Return the links for the producers that were linked to the predecessor of ``node``, which is ready."""
        return _sent(self.machine.relink(node))

    def relinked(self, node: str) -> bool:
        """Return True once no producer has to be linked to successor ``node`` any more, so that it may start. True is
        returned once only."""
        return self.machine.links.relinked(node)

    def linked(self, node: str, message: wire.Linked) -> list[ToNode]:
        """Note that ``node`` has mapped what a later link brought. Raises ProtocolError when no link is unanswered."""
        with self._closing_after() as machine:
            return _sent(machine.linked(node, message))

    def started(self, node: str) -> None:
        """Note that ``node`` is told to start: from now on it may take and return frames."""
        self.machine.started(node)

    def grow(self, node: str, message: wire.Segment, descriptors: list[int]) -> list[ToNode]:
        """Keep a further segment of the arena of ``node``; takes ``descriptors`` over, unless the segment was reported
        at the reattach already. Raises ProtocolError."""
        memory = self.machine.table.nodes[node].memory
        again = memory is not None and message.index in memory.reported_segments and message.index in memory.segments
        if not again:
            self._check_segment(node, message.index, descriptors[0])
            self._check_share(node, 1)
        with self._closing_after() as machine:
            told = machine.grow(node, message, Handle(descriptors[0]))
        if not again:
            descriptors.clear()
        return _sent(told)

    def _check_segment(self, node: str, index: int, fd: int) -> None:
        """Raise ProtocolError if ``fd`` is no segment, or if ``node`` has a segment with this index already."""
        memory = self.machine.table.nodes[node].memory
        if memory is not None:
            check_new(memory, node, index)
        checked(fd, "segment", f"segment {index} of node {node!r}")

    def _check_share(self, node: str, more: int) -> None:
        """Raise ProtocolError ``quota-exceeded`` when ``node`` may not have ``more`` further segments."""
        memory = self.machine.table.nodes[node].memory
        check_count(node, (len(memory.segments) if memory is not None else 0) + more)
        most = most_of_flow()
        if self.machine.segments.held + more > most:
            raise error("quota-exceeded", what=f"another segment of node {node!r} and of its flow", limit=most)

    def mapped(self, node: str, message: wire.SegmentMapped) -> list[ToNode]:
        """Note that ``node`` has mapped a segment of one of its inputs. Raises ProtocolError."""
        return _sent(self.machine.mapped(node, message))

    def drop(self, node: str, message: wire.SegmentDropped, *, reuse: bool = True) -> list[ToNode]:
        """Note that ``node`` has given back a segment of its arena. Raises ProtocolError."""
        with self._closing_after() as machine:
            return _sent(machine.drop(node, message, reuse=reuse))

    def dropped(self, node: str, message: wire.SegmentDropped) -> list[ToNode]:
        """Note that ``node`` has unmapped a segment of an input. Raises ProtocolError."""
        with self._closing_after() as machine:
            return _sent(machine.dropped(node, message))

    def segments_of(self, node: str) -> dict[int, int] | None:
        """Return the segments of the worker of ``node``, which the daemon keeps; None when there is no such worker."""
        node_ends = self.machine.table.nodes.get(node)
        return None if node_ends is None or node_ends.memory is None or node_ends.gone else node_ends.memory.segments

    def sendable(self, descriptors: Iterable[int | LineEnd]) -> list[int]:
        """Return the descriptors to send with a message; they are the receiver's. Raises OSError when no descriptors
        are left."""
        return self._lines.sendable(descriptors)

    # -- what workers claim --------------------------------------------------------------------------------

    def unfinished(self, node: str) -> str:
        """Return why the worker of ``node``, which has said that it has finished and is gone, had not; an empty string
        if it had."""
        table = self.machine.table
        node_ends = table.nodes[node]
        if node_ends.memory is None:
            return ""
        inputs: list[tuple[Stage, int | None]] = []
        for route in node_ends.inputs:
            chain = table.chains[route.id]
            ends = [after.base_seq - stage.base_seq for stage, after in pairwise(chain)]
            inputs += zip(chain, [*ends, None], strict=True)
        return unfinished(node_ends.memory, table.present(node_ends.outputs), inputs)

    def accused_by(self, node: str, message: wire.Accuse) -> tuple[str, str]:
        """Return the node that ``node`` accuses, and the rule that this peer has broken, as the memory of the route
        shows; an empty string if it shows none. Raises ProtocolError for a route that is not linked to ``node``."""
        table = self.machine.table
        for route in (*table.nodes[node].inputs, *table.nodes[node].outputs):
            stages = table.chains[route.id] if route.id == message.route else ()
            for stage in stages:
                if (
                    stage.epoch != message.epoch
                    or not stage.complete
                    or not (stage.told_producer or stage.told_consumer)
                ):
                    continue
                memory = stage.producer.segments if stage.producer is not None else {}
                sizes = {index: os.fstat(fd).st_size for index, fd in memory.items()}
                if route.target == node:
                    return route.source, broken_rule(stage, "producer", sizes)
                return route.target, broken_rule(stage, "consumer", sizes)
        reason = f"stage {message.epoch} of route {message.route!r} is not linked to node {node!r}"
        raise error("malformed-message", type="accuse", reason=reason)

    # -- changed routes ------------------------------------------------------------------------------------

    def revise(
        self,
        routes: tuple[DataRoute, ...],
        told: Mapping[str, wire.Configure],
        untold: Iterable[str],
        switched: Collection[str],
    ) -> list[ToNode]:
        """Change the routes of the flow; see ``Rerouting.revise``."""
        with self._closing_after() as machine:
            return _sent(machine.rerouting.revise(routes, told, untold, switched))

    def keep_leaving_workers(self) -> list[ToNode]:
        """Keep the workers that were to be replaced, because the roll-out has ended before it was done."""
        return _sent(self.machine.rerouting.keep_leaving_workers())

    def drained(self, node: str, message: wire.Drained) -> list[ToNode]:
        """Note that ``node`` has drained a stage that its producer has ended. Raises ProtocolError."""
        with self._closing_after() as machine:
            return _sent(machine.drained(node, message))

    def has_output(self, node: str, route: str) -> bool:
        """Return whether ``node`` sends to ``route``, or did so until the route was removed."""
        return self.machine.rerouting.has_output(node, route)

    @property
    def under_way(self) -> list[str]:
        """Nodes that were told of a route change and have not carried it out yet."""
        return self.machine.rerouting.under_way

    @property
    def clean(self) -> bool:
        """Whether all removed routes are drained."""
        return self.machine.rerouting.clean

    def take_lost(self) -> dict[str, int]:
        """Return the frames of removed routes that no consumer has worked on, since the last call."""
        lost, self.machine.rerouting.lost = self.machine.rerouting.lost, {}
        return lost

    # -- exits of workers ----------------------------------------------------------------------------------

    def gone(self, node: str) -> list[ToNode]:
        """Note that ``node`` has exited for good. Raises PeerFault when it left a corrupt RING."""
        with self._closing_after() as machine:
            told = _sent(machine.incarnations.gone(node))
        self._finish(node)
        return told

    def _finish(self, node: str) -> None:
        nodes = self.machine.table.nodes
        node_ends = nodes.get(node)
        for route in (*node_ends.inputs, *node_ends.outputs) if node_ends is not None else ():
            if route.id in self.machine.table.counters and nodes[route.source].gone and nodes[route.target].gone:
                self._final[route.id] = self.snapshot(route)

    def succeeded(self, node: str) -> list[ToNode]:
        """Note that ``node`` has exited and will have a successor. Raises PeerFault, and LostMemory when no successor
        can continue."""
        with self._closing_after() as machine:
            return _sent(machine.incarnations.succeeded(node))

    # -- watching ------------------------------------------------------------------------------------------

    def snapshot(self, route: DataRoute) -> RouteSnapshot | None:
        """Return the counters of ``route`` over all of its stages; None before both ends exist or when a header is
        corrupt; the last counters after :meth:`close`."""
        if route.id in self._last:
            return self._last[route.id]
        table = self.machine.table
        total = table.counters[route.id].total(stage.snapshot(self._views) for stage in table.chains[route.id])
        return None if total is None else cast("RouteSnapshot", shown(total))

    def oldest_held(self, route: DataRoute) -> tuple[int, int, int] | None:
        """Return the frames of ``route`` that its consumer holds: how many, and of the oldest one the sequence number
        and the ns since it was sent. None when it holds none."""
        views = (self._views.of(stage.seen) for stage in self.machine.table.chains[route.id])
        found = [held for view in views if view is not None and (held := view.oldest_held()) is not None]
        return (sum(count for count, _, _ in found), *found[0][1:]) if found else None

    def has(self, route: DataRoute) -> bool:
        """Return whether ``route`` has not been given up after it was removed and drained."""
        return route.id in self.machine.table.counters or route.id in self._last

    def held_by(self, node: str) -> list[HeldFrames]:
        """Return the frames that ``node`` has taken and not returned, by route; also for a worker that has just
        died."""
        found = []
        for route in self.machine.table.nodes[node].inputs:
            count, sequences = 0, []
            for stage in self.machine.table.chains[route.id]:
                view = self._views.of(stage.seen)
                taken, frames = view.held() if view is not None else (0, [])
                count += taken
                sequences += [seq for seq, _, _ in frames]
            if count:
                found.append(HeldFrames(route=route.id, count=count, sequences=sorted(sequences)))
        return found

    def close(self, do: Callable[[Callable[[], None]], None] = lambda work: work()) -> None:
        """Take the last counters, then release all memory. Idempotent. ``do`` runs the closing, which takes the kernel
        time for large or many memories; nothing else uses the memory from then on."""
        for route in self.routes:
            if route.id not in self._last:
                found = self._final[route.id] if route.id in self._final else self.snapshot(route)
                self._last[route.id] = None if found is None else cast("RouteSnapshot", final(found))
        self.machine.close()
        effects = self.machine.take_closes()
        if effects:
            do(lambda: self._close_all(effects))


def _sent(told: Iterable[NodeMessage]) -> list[ToNode]:
    """Return the machine's messages, with descriptors in place of handles."""
    return [ToNode(node, message, cast("tuple[int | LineEnd, ...]", handles)) for node, message, handles in told]
