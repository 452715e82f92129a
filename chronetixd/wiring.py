"""The shared memory of one flow as the daemon sees it: who offered which descriptor, and who has to get it.

Nobody's word is taken: every descriptor is checked (seals, size, header) before it is kept. The daemon keeps all of
them until the flow has ended, so that memory outlives the worker that made it. No message is sent here; what has to be
sent is returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import shm
from chronetixd.core.death import HeldFrames
from protocol.errors import error
from protocol.messages import Detach, InputLink, Link, Offer, Segment, SegmentMapped

if TYPE_CHECKING:
    from shm._native import RouteSnapshot


class DataRoute(NamedTuple):
    """A data route: its id and the nodes at its ends."""

    id: str
    source: str
    target: str


@dataclass(slots=True)
class Memory:
    """What one worker offered; descriptors are owned."""

    doorbell: shm.Doorbell
    rings: dict[str, int] = field(default_factory=dict)
    credits: dict[str, int] = field(default_factory=dict)
    segments: dict[int, int] = field(default_factory=dict)


class ToNode(NamedTuple):
    """A message for ``node``, with descriptors that stay ours."""

    node: str
    message: Detach | Link | Segment | SegmentMapped
    descriptors: tuple[int, ...] = ()


class Wiring:
    """All data routes of one flow."""

    def __init__(self, nodes: Iterable[str], routes: tuple[DataRoute, ...]) -> None:
        self.routes = routes
        self._outputs: dict[str, list[DataRoute]] = {node: [] for node in nodes}
        self._inputs: dict[str, list[DataRoute]] = {node: [] for node in self._outputs}
        for route in routes:
            self._outputs[route.source].append(route)
            self._inputs[route.target].append(route)
        self._memory: dict[str, Memory] = {}
        self._gone: set[str] = set()
        self._linked: set[str] = set()
        self._unmapped: dict[tuple[str, int], set[str]] = {}
        """(producer, segment): routes whose consumer cannot follow descriptors into it yet."""
        self._by_link: set[tuple[str, int, str]] = set()
        """(producer, segment, route) of those that came, or will come, with the consumer's link."""
        self._views: dict[str, shm.RouteView] = {}
        self._last: dict[str, RouteSnapshot | None] = {}

    def offer(self, node: str, message: Offer, descriptors: list[int]) -> None:
        """Check and keep what ``node`` offers; takes ``descriptors`` over (empties the list).

        Raises ProtocolError ``descriptor-refused`` or ``malformed-message``, and then has kept nothing.
        """
        self._check_names(node, message)
        fds = iter(descriptors)
        try:
            memory = Memory(shm.Doorbell(next(fds)))
        except (OSError, ValueError, shm.PeerFault) as reason:
            raise error("descriptor-refused", what=f"the doorbell of node {node!r}", reason=str(reason)) from None
        try:
            for route in message.rings:
                memory.rings[route] = _checked(next(fds), "ring", f"the ring of route {route!r}")
            for route in message.credits:
                memory.credits[route] = _checked(next(fds), "credit", f"the credits of route {route!r}")
            for index in message.segments:
                what = f"segment {index} of node {node!r}"
                memory.segments[index] = _checked(next(fds), "segment", what)
        except BaseException:
            memory.doorbell.close()
            raise
        os.close(descriptors[0])
        descriptors.clear()
        self._memory[node] = memory

    def _check_names(self, node: str, message: Offer) -> None:
        wanted_rings = {route.id for route in self._outputs[node]}
        wanted_credits = {route.id for route in self._inputs[node]}
        lists = (("rings", message.rings, wanted_rings), ("credits", message.credits, wanted_credits))
        for what, offered, wanted in lists:
            if len(offered) != len(wanted) or set(offered) != wanted:
                reason = f"{what} are {sorted(offered)}, but the routes of node {node!r} are {sorted(wanted)}"
                raise error("malformed-message", type="offer", reason=reason)
        if len(set(message.segments)) != len(message.segments):
            raise error("malformed-message", type="offer", reason=f"segments {message.segments} repeat an index")

    def link(self, node: str) -> ToNode:
        """The other ends of all routes of ``node``. Every peer of it must have offered."""
        outputs, inputs = self._outputs[node], self._inputs[node]
        fds: list[int] = []
        for route in outputs:
            consumer = self._memory[route.target]
            fds += (consumer.credits[route.id], consumer.doorbell.fileno())
        links = []
        for route in inputs:
            producer = self._memory[route.source]
            fds += (producer.rings[route.id], producer.doorbell.fileno(), *producer.segments.values())
            links.append(InputLink(route=route.id, segments=list(producer.segments)))
        self._linked.add(node)
        return ToNode(node, Link(outputs=[route.id for route in outputs], inputs=links), tuple(fds))

    # -- growth --------------------------------------------------------------------------------------------

    def grow(self, node: str, message: Segment, descriptors: list[int]) -> list[ToNode]:
        """``node``'s arena has a further segment: what its consumers have to get, or, if nobody has to, its own go.

        A consumer that is not linked yet gets the segment with its link. Takes ``descriptors`` over; raises
        ProtocolError.
        """
        memory = self._memory.get(node)
        if memory is None:
            raise error("unexpected-message", type="segment", when="before the offer")
        if message.index in memory.segments:
            reason = f"segment {message.index} of node {node!r} is there already"
            raise error("malformed-message", type="segment", reason=reason)
        fd = _checked(descriptors[0], "segment", f"segment {message.index} of node {node!r}")
        memory.segments[message.index] = fd
        descriptors.clear()
        living = [route for route in self._outputs[node] if route.target not in self._gone]
        self._unmapped[node, message.index] = {route.id for route in living}
        forwarded = []
        for route in living:
            if route.target in self._linked:
                forwarded.append(ToNode(route.target, Segment(index=message.index, route=route.id), (fd,)))
            else:
                self._by_link.add((node, message.index, route.id))
        return forwarded + self._confirm_if_mapped(node, message.index)

    def mapped(self, node: str, message: SegmentMapped) -> list[ToNode]:
        """``node`` can follow descriptors into a segment of one of its inputs. Raises ProtocolError."""
        source = next((route.source for route in self._inputs[node] if route.id == message.route), None)
        if source is None or (source, message.index) not in self._unmapped:
            reason = f"segment {message.index} of route {message.route!r} was not sent to node {node!r}"
            raise error("malformed-message", type="segment-mapped", reason=reason)
        self._unmapped[source, message.index].discard(message.route)
        return self._confirm_if_mapped(source, message.index)

    def ready(self, node: str) -> list[ToNode]:
        """``node`` is ready: it has mapped all that came with its link."""
        return self._settle(node, lambda key: key in self._by_link)

    def _settle(self, node: str, settled: Callable[[tuple[str, int, str]], bool]) -> list[ToNode]:
        """Stop waiting for ``node`` to map those segments of its inputs that are settled."""
        confirmed: list[ToNode] = []
        for route in self._inputs[node]:
            for source, index in list(self._unmapped):
                key = (source, index, route.id)
                if source == route.source and route.id in self._unmapped[source, index] and settled(key):
                    self._by_link.discard(key)
                    self._unmapped[source, index].discard(route.id)
                    confirmed += self._confirm_if_mapped(source, index)
        return confirmed

    def _confirm_if_mapped(self, node: str, index: int) -> list[ToNode]:
        if self._unmapped[node, index]:
            return []
        del self._unmapped[node, index]
        return [ToNode(node, SegmentMapped(index=index))]

    # -- life ----------------------------------------------------------------------------------------------

    def gone(self, node: str) -> list[ToNode]:
        """``node`` has exited: wake everyone who may wait for it, detach its producers, let growth go on without it."""
        self._gone.add(node)
        near = {route.source for route in self._inputs[node]} | {route.target for route in self._outputs[node]}
        for peer in near - self._gone:
            if peer in self._memory:
                self._memory[peer].doorbell.ring()
        detached = [ToNode(route.source, Detach(route=route.id)) for route in self._inputs[node]]
        told = [*detached, *self._settle(node, lambda _: True)]
        return [message for message in told if message.node in self._memory and message.node not in self._gone]

    def snapshot(self, route: DataRoute) -> RouteSnapshot | None:
        """Counters of ``route``; None before both ends were there or when an end has spoilt its header; the last ones
        after :meth:`close`."""
        if route.id in self._last:
            return self._last[route.id]
        view = self._view(route)
        return view.snapshot() if view is not None else None

    def held(self, node: str) -> list[HeldFrames]:
        """Frames that ``node`` has taken and not returned, by route; for one that has just died."""
        found = []
        for route in self._inputs[node]:
            view = self._view(route)
            count, frames = view.held() if view is not None else (0, [])
            if count:
                found.append(HeldFrames(route=route.id, count=count, sequences=sorted(seq for seq, _, _ in frames)))
        return found

    def _view(self, route: DataRoute) -> shm.RouteView | None:
        view = self._views.get(route.id)
        if view is None:
            producer, consumer = self._memory.get(route.source), self._memory.get(route.target)
            if producer is None or consumer is None:
                return None
            try:
                view = shm.RouteView(producer.rings[route.id], consumer.credits[route.id])
            except (shm.PeerFault, ValueError):
                return None
            self._views[route.id] = view
        return view

    def close(self) -> None:
        """Take the last counters, then give all memory back. Idempotent."""
        for route in self.routes:
            if route.id not in self._last:
                self._last[route.id] = self.snapshot(route)
        for view in self._views.values():
            view.close()
        self._views.clear()
        for memory in self._memory.values():
            memory.doorbell.close()
            for fd in (*memory.rings.values(), *memory.credits.values(), *memory.segments.values()):
                os.close(fd)
        self._memory.clear()


def _checked(fd: int, kind: str, what: str) -> int:
    """``fd`` if it holds what it should. Raises ProtocolError ``descriptor-refused``."""
    try:
        shm.check(fd, kind)  # type: ignore[arg-type]
    except (OSError, ValueError, shm.PeerFault) as reason:
        raise error("descriptor-refused", what=what, reason=str(reason.args[0] if reason.args else reason)) from None
    return fd
