"""The shared memory of one flow as the daemon has it: the shell of the machine in ``core.wiring``.

Nobody's word is taken: every descriptor is checked (seals, size, header) before the machine hears of it. A handle is
the descriptor's number; an end of a line is one that is made when it is sent. Memory outlives the worker that made it:
until the flow has ended, or until a stage whose producer is dead is drained. No message is sent here; what has to be
sent is returned. There is one method for each thing that the machine is told, and it is short: what is long is their
list.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

from chronetix import shm
from chronetix.protocol import messages as wire
from chronetix.protocol.errors import error
from chronetix.shm import layout
from chronetixd.core.death import HeldFrames
from chronetixd.core.wiring.incarnations import LostMemory
from chronetixd.core.wiring.machine import WiringMachine
from chronetixd.core.wiring.route_table import Close, NodeMessage
from chronetixd.core.wiring.segments import check_new
from chronetixd.core.wiring.stages import MAX_SEGMENTS, DataRoute, Handle, LineEnd, Snapshot, check_count
from chronetixd.dataplane import rebuild
from chronetixd.dataplane.checked import checked
from chronetixd.dataplane.lines import Lines
from chronetixd.dataplane.pack import PackedWiring, Packer, Unpacker
from chronetixd.dataplane.recovered import RecoveredMemory
from chronetixd.loop.closing import close_memory
from chronetixd.packing import Bag, Unbag
from chronetixd.store.descriptor_keys import Key

if TYPE_CHECKING:
    from chronetix.shm._native import RouteSnapshot

__all__ = ["DataRoute", "ToNode", "Wiring"]

Remains = Callable[[int], tuple[int, int]]
"""Where a dead producer's RING ends, as a position, and the highest input_seq committed to it. Raises PeerFault."""


SHARE = 8
"""A flow's arenas may grow by one in so many of the descriptors that the daemon may have open."""


def most_of_flow() -> int:
    """Segments that all arenas of one flow may have together."""
    return max(MAX_SEGMENTS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE)


class ToNode(NamedTuple):
    """A message for ``node``, with descriptors that stay ours and ends of lines: see :meth:`Wiring.given`."""

    node: str
    message: wire.Message
    descriptors: tuple[int | LineEnd, ...] = ()


class Views:
    """Reads RINGs and CREDITs for the machine; each pair is mapped once, until one of them is closed."""

    def __init__(self, remains: Remains) -> None:
        self._remains = remains
        self._open: dict[tuple[int, int], shm.RouteView] = {}
        self._pairs: dict[Hashable, set[tuple[int, int]]] = {}
        """By either of its ends, what is open."""

    def remains(self, ring: Handle) -> tuple[int, int]:
        """Raises PeerFault."""
        return self._remains(ring)

    def snapshot(self, ring: Handle, credit: Handle) -> Snapshot | None:
        """See ``Reader``."""
        view = self.of((ring, credit))
        return cast("Snapshot", view.snapshot()) if view is not None else None

    def of(self, pair: tuple[Handle, Handle] | None) -> shm.RouteView | None:
        """What a stage looks like; None before both ends were there, when one has spoilt its header, or for want of
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
        """It is not needed any more."""
        for pair in self._pairs.pop(handle, ()):
            (other,) = set(pair) - {handle}
            self._pairs[other].discard(pair)
            self._open.pop(pair).close()


class Wiring:
    """All data routes of one flow."""

    def __init__(self, nodes: Iterable[str], routes: tuple[DataRoute, ...], remains: Remains = shm.remains) -> None:
        self._views = Views(remains)
        self.machine = WiringMachine(nodes, routes, self._views)
        self._lines = Lines()
        self._last: dict[str, RouteSnapshot | None] = {}
        self._final: dict[str, RouteSnapshot | None] = {}
        """Counters of routes whose two ends are gone: taken one by one, so that the flow's end finds them."""

    @property
    def routes(self) -> tuple[DataRoute, ...]:
        """Those that the flow has."""
        return self.machine.table.routes

    @contextmanager
    def _carried_out(self) -> Iterator[WiringMachine]:
        """What the machine says beside messages is done, whether it has failed or not."""
        try:
            yield self.machine
        finally:
            self._do(self.machine.take_closes())

    def _do(self, effects: Iterable[Close]) -> None:
        for effect in effects:
            if isinstance(effect.handle, LineEnd):
                self._lines.close(effect.handle)
            else:
                self._views.close(effect.handle)
                close_memory(cast("int", effect.handle))

    # -- workers of an earlier daemon ----------------------------------------------------------------------

    def know(self, message: wire.Configure) -> None:
        """What a worker was told by an earlier daemon."""
        self.machine.rerouting.know(message)

    def shown(self, node: str, message: wire.Reattach, descriptors: list[int]) -> rebuild.ReattachedMemory:
        """What ``node`` shows of itself, checked. Raises ProtocolError, and then nothing is kept."""
        node_ends = self.machine.table.nodes[node]
        return rebuild.shown(node, node_ends.outputs, node_ends.inputs, message, descriptors)

    def take_over(
        self,
        had: Mapping[str, rebuild.ReattachedMemory],
        dead: Mapping[str, int],
        over: set[str],
        kept: RecoveredMemory,
        late: Mapping[str, str] | None = None,
    ) -> list[ToNode]:
        """Go on with the memory that the nodes have, and that was ``kept`` for those without: ``dead`` ones, with the
        incarnation that died, are to have successors, those that are ``over`` had come to their end; ``late`` says of
        dead ones that died under this daemon how. What has to be sent: segments that producers wait for.

        Raises LostMemory when a successor would need what nobody has.
        """
        table = self.machine.table
        places = {}
        for node, node_ends in table.nodes.items():
            made = places[node] = rebuild.node_ends(
                node, had.get(node), node_ends.outputs, node_ends.inputs, over=node in over
            )
            if node in dead and node not in had:
                rebuild.bury(made, kept, dead[node])
        chains = {
            route.id: rebuild.chain(route, had.get(route.source), had.get(route.target), kept, dead)
            for route in table.routes
        }
        with self._carried_out() as machine:
            machine.take_over(places, chains)
            for node in places:
                self._look_at(node)
            for node, what in rebuild.missing(table.stages(table.routes), dead, kept, late or {}):
                raise LostMemory(node, what)
            living = {node: shown for node, shown in had.items() if node not in dead}
            return _sent(
                told
                for node, shown in living.items()
                for told in machine.segments.resume_segments(node, shown.memory, shown.unconfirmed, shown.dropped)
            )

    def memories(self) -> dict[Key, int]:
        """All that a daemon without any needs to go on from what the dead have left; the descriptors stay ours."""
        return rebuild.memories(self.machine.table.stages(self.machine.table.routes), self.machine.table.nodes)

    # -- handed over to the next image of the daemon -------------------------------------------------------

    def packed(self, bag: Bag) -> PackedWiring:
        """All of it; descriptors go into ``bag``."""
        packer, table = Packer(bag, self._lines), self.machine.table
        chains = {route: packer.stages(chain) for route, chain in table.chains.items()}
        places = {node: packer.node_ends(node_ends) for node, node_ends in table.nodes.items()}
        stages, memories = packer.all()
        return PackedWiring(
            memories=memories,
            stages=stages,
            chains=chains,
            places=places,
            counters={route: counters.packed() for route, counters in table.counters.items()},
            ports=[(node, route, port) for (node, route), port in table.ports.items()],
            last={route: None if last is None else dict(last) for route, last in self._last.items()},
        )

    def unpack(self, packed: PackedWiring, bag: Unbag) -> None:
        """Be the wiring that ``packed`` was. Raises ValueError when that is of another flow, OSError."""
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
            self._look_at(node)

    # -- what a worker is told and offers ------------------------------------------------------------------

    def configure(self, node: str, message: wire.Configure) -> wire.Configure:
        """``message`` with the ports of the incarnation of ``node`` that gets it."""
        self._final.clear()
        return self.machine.incarnations.configure(node, message)

    def offer(self, node: str, message: wire.Offer, descriptors: list[int]) -> list[ToNode]:
        """Check and keep what ``node`` offers; takes ``descriptors`` over (empties the list). What consumers have to be
        told of stages that it has left; links are due after that.

        Raises ProtocolError ``descriptor-refused`` or ``malformed-message``, and then has kept nothing.
        """
        _, ends = self.machine.incarnations.expected(node, message)
        fds = iter(descriptors)
        try:
            if len(message.segments) > 1:
                self._check_share(node, len(message.segments))
            rings = [checked(next(fds), "ring", f"the ring of route {stage.route.id!r}") for stage in ends.rings]
            credits = [checked(next(fds), "credit", f"the credits of route {s.route.id!r}") for s in ends.credits]
            segments = {index: next(fds) for index in message.segments}
            for index, fd in segments.items():
                self._check_segment(node, index, fd)
            based = [(Handle(ring), layout.base_seq(ring)) for ring in rings]
            kept = {index: Handle(fd) for index, fd in segments.items()}
            with self._carried_out() as machine:
                told = machine.incarnations.offer(node, message, based, [Handle(fd) for fd in credits], kept)
        except shm.PeerFault as fault:
            raise error("descriptor-refused", what=f"a ring of node {node!r}", reason=str(fault.args[0])) from None
        descriptors.clear()
        self._look_at(node)
        return _sent(told)

    def _look_at(self, node: str) -> None:
        """Map the stages of ``node`` while there is memory: what they have counted is wanted when they are over."""
        node_ends = self.machine.table.nodes[node]
        for stage in self.machine.table.stages((*node_ends.outputs, *node_ends.inputs)):
            self._views.of(stage.seen)

    def due(self, node: str) -> list[ToNode]:
        """The links that are due now that ``node`` has offered: its own, and those of its peers."""
        return _sent(self.machine.links.due(node))

    def ready(self, node: str) -> list[ToNode]:
        """``node`` is ready: it has mapped all that came with its link, and can be told of stages begun meanwhile.
        Raises ProtocolError."""
        with self._carried_out() as machine:
            return _sent(machine.ready(node))

    def relink(self, node: str) -> list[ToNode]:
        """The successor ``node`` is ready: links for the producers that had been linked to its predecessor."""
        return _sent(self.machine.relink(node))

    def relinked(self, node: str) -> bool:
        """No producer has to be linked to the successor ``node`` any more: it may start. Said once."""
        return self.machine.links.relinked(node)

    def linked(self, node: str, message: wire.Linked) -> list[ToNode]:
        """``node`` has mapped what a link after its first brought. Raises ProtocolError when none is unanswered."""
        with self._carried_out() as machine:
            return _sent(machine.linked(node, message))

    def started(self, node: str) -> None:
        """``node`` is told to start: from now on it may take and return frames."""
        self.machine.started(node)

    def grow(self, node: str, message: wire.Segment, descriptors: list[int]) -> list[ToNode]:
        """``node``'s arena has a further segment; takes ``descriptors`` over, unless it has shown that one already.
        Raises ProtocolError."""
        memory = self.machine.table.nodes[node].memory
        again = memory is not None and message.index in memory.reported_segments and message.index in memory.segments
        if not again:
            self._check_segment(node, message.index, descriptors[0])
            self._check_share(node, 1)
        with self._carried_out() as machine:
            told = machine.grow(node, message, Handle(descriptors[0]))
        if not again:
            descriptors.clear()
        return _sent(told)

    def _check_segment(self, node: str, index: int, fd: int) -> None:
        """Is ``fd`` a segment that ``node`` has not had yet? Raises ProtocolError."""
        memory = self.machine.table.nodes[node].memory
        if memory is not None:
            check_new(memory, node, index)
        checked(fd, "segment", f"segment {index} of node {node!r}")

    def _check_share(self, node: str, more: int) -> None:
        """Raises ProtocolError ``quota-exceeded`` when ``node`` may not have ``more`` further segments."""
        memory = self.machine.table.nodes[node].memory
        check_count(node, (len(memory.segments) if memory is not None else 0) + more)
        most = most_of_flow()
        if self.machine.segments.held + more > most:
            raise error("quota-exceeded", what=f"another segment of node {node!r} and of its flow", limit=most)

    def mapped(self, node: str, message: wire.SegmentMapped) -> list[ToNode]:
        """``node`` can follow descriptors into a segment of one of its inputs. Raises ProtocolError."""
        return _sent(self.machine.mapped(node, message))

    def drop(self, node: str, message: wire.SegmentDropped, *, reuse: bool = True) -> list[ToNode]:
        """``node`` has given a segment of its arena back. Raises ProtocolError."""
        with self._carried_out() as machine:
            return _sent(machine.drop(node, message, reuse=reuse))

    def dropped(self, node: str, message: wire.SegmentDropped) -> list[ToNode]:
        """``node`` has unmapped a segment of an input. Raises ProtocolError."""
        with self._carried_out() as machine:
            return _sent(machine.dropped(node, message))

    def segments_of(self, node: str) -> dict[int, int] | None:
        """Segments of the worker of ``node``, which stay ours; None when there is none, or no more."""
        node_ends = self.machine.table.nodes.get(node)
        return None if node_ends is None or node_ends.memory is None or node_ends.gone else node_ends.memory.segments

    def given(self, descriptors: Iterable[int | LineEnd]) -> list[int]:
        """What travels with a message, and is the receiver's. Raises OSError when there are no more descriptors."""
        return self._lines.given(descriptors)

    # -- other routes --------------------------------------------------------------------------------------

    def revise(
        self,
        routes: tuple[DataRoute, ...],
        told: Mapping[str, wire.Configure],
        untold: Iterable[str],
        switched: Collection[str],
    ) -> list[ToNode]:
        """From now on these are the routes."""
        with self._carried_out() as machine:
            return _sent(machine.rerouting.revise(routes, told, untold, switched))

    def keep_leaving_workers(self) -> list[ToNode]:
        """The roll-out has ended before it was done: who was to be replaced stays."""
        return _sent(self.machine.rerouting.keep_leaving_workers())

    def drained(self, node: str, message: wire.Drained) -> list[ToNode]:
        """``node`` has emptied and returned a stage with which its producer has done. Raises ProtocolError."""
        with self._carried_out() as machine:
            return _sent(machine.drained(node, message))

    def has_output(self, node: str, route: str) -> bool:
        """Does ``node`` send to ``route``, or did it until shortly?"""
        return self.machine.rerouting.has_output(node, route)

    @property
    def under_way(self) -> list[str]:
        """Nodes whose routes have not changed yet as they were told."""
        return self.machine.rerouting.under_way

    @property
    def clean(self) -> bool:
        """Of routes that were removed nothing is left."""
        return self.machine.rerouting.clean

    def take_lost(self) -> dict[str, int]:
        """Frames of routes that were removed, which nobody has worked on, since this was last asked."""
        lost, self.machine.rerouting.lost = self.machine.rerouting.lost, {}
        return lost

    # -- life ----------------------------------------------------------------------------------------------

    def gone(self, node: str) -> list[ToNode]:
        """``node`` has exited for good. Raises PeerFault when it left a RING that makes no sense."""
        with self._carried_out() as machine:
            told = _sent(machine.incarnations.gone(node))
        self._finish(node)
        return told

    def _finish(self, node: str) -> None:
        places = self.machine.table.nodes
        node_ends = places.get(node)
        for route in (*node_ends.inputs, *node_ends.outputs) if node_ends is not None else ():
            if route.id in self.machine.table.counters and places[route.source].gone and places[route.target].gone:
                self._final[route.id] = self.snapshot(route)

    def succeeded(self, node: str) -> list[ToNode]:
        """``node`` has exited and will be born again. Raises PeerFault, LostMemory when none can go on from it."""
        with self._carried_out() as machine:
            return _sent(machine.incarnations.succeeded(node))

    # -- watching ------------------------------------------------------------------------------------------

    def snapshot(self, route: DataRoute) -> RouteSnapshot | None:
        """Counters of ``route`` over all of its stages; None before both ends were there or when an end has spoilt its
        header; the last ones after :meth:`close`."""
        if route.id in self._last:
            return self._last[route.id]
        table = self.machine.table
        total = table.counters[route.id].total(stage.snapshot(self._views) for stage in table.chains[route.id])
        return cast("RouteSnapshot | None", total)

    def kept(self, route: DataRoute) -> tuple[int, int, int] | None:
        """Frames of ``route`` that its consumer has taken and not returned: how many, the oldest one's sequence number
        and ns since it was sent; None without one."""
        views = (self._views.of(stage.seen) for stage in self.machine.table.chains[route.id])
        found = [held for view in views if view is not None and (held := view.oldest_held()) is not None]
        return (sum(count for count, _, _ in found), *found[0][1:]) if found else None

    def has(self, route: DataRoute) -> bool:
        """It has not been given up: removed, and drained."""
        return route.id in self.machine.table.counters or route.id in self._last

    def held(self, node: str) -> list[HeldFrames]:
        """Frames that ``node`` has taken and not returned, by route; for one that has just died."""
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
        """Take the last counters, then give all memory back. Idempotent. ``do`` has that done: what was large, or many,
        takes the kernel its time; nothing else of it is used from then on."""
        for route in self.routes:
            if route.id not in self._last:
                self._last[route.id] = self._final[route.id] if route.id in self._final else self.snapshot(route)
        self.machine.close()
        effects = self.machine.take_closes()
        if effects:
            do(lambda: self._do(effects))


def _sent(told: Iterable[NodeMessage]) -> list[ToNode]:
    """With descriptors."""
    return [ToNode(node, message, cast("tuple[int | LineEnd, ...]", handles)) for node, message, handles in told]
