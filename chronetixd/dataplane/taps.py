"""Taps: clients that listen to one flow's data routes. A tap is the consumer of a ring that the route's producer adds
while it runs.

Rules: the daemon checks and forwards descriptors, and never reads a frame. Neither the producer nor the tap waits for
the other: the ring has policy latest, and the producer uses a segment whether the tap has mapped it or not. A tap ends
with its client, with its producer's worker, or with its flow, whichever is first.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from chronetix import shm
from chronetix.protocol.contract import Route
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.messages import Extend, Link, Offer, Port, Retract, WireMessage

if TYPE_CHECKING:
    from chronetix.shm._native import RouteSnapshot

Send = Callable[[str, WireMessage, Sequence[int]], None]
"""Sends a message to a node's worker, and hands the descriptors over."""

MAX_CREDITS = 1024
"""Frames of a tap's ring: what it may hold of its producer's memory."""

MAX_TAPS = 64
"""Taps on one flow at a time: each costs its producer a descriptor and a comparison for every frame."""


class Update(NamedTuple):
    """A message for the client, with duplicates of descriptors that the receiver has to close."""

    value: dict[str, Any]
    descriptors: tuple[int, ...]


@dataclass(slots=True)
class RouteTap:
    """One tap. ``end`` is the reason why it has ended, or an empty string."""

    id: str
    route: Route
    credits: int
    pid: int
    credit: int
    line: int = -1
    """The client's end of the wake-up line, until it is sent."""
    ring: int = -1
    view: shm.RouteView | None = None
    linked: bool = False
    end: str = ""
    fault: ChronetixError | None = None
    updates: asyncio.Queue[Update | None] = field(default_factory=asyncio.Queue)

    def snapshot(self) -> RouteSnapshot | None:
        """Return the counters of the tap; None before its ring exists."""
        return self.view.snapshot() if self.view is not None else None

    async def next(self) -> Update | None:
        """Return the next message for the client; None at the end. Raises ChronetixError when the tap could not be set
        up."""
        update = await self.updates.get()
        if update is None and self.fault is not None:
            raise self.fault
        return update

    def finish(self, why: str, fault: ChronetixError | None = None) -> None:
        """End the tap and tell the client why. Idempotent."""
        if not self.end:
            self.end, self.fault = why, fault
            self.updates.put_nowait(None)

    def close(self) -> None:
        """Close all descriptors and mappings of the tap. Idempotent."""
        if self.view is not None:
            self.view.close()
            self.view = None
        while not self.updates.empty():
            update = self.updates.get_nowait()
            for fd in update.descriptors if update is not None else ():
                os.close(fd)
        for fd in (self.credit, self.ring, self.line):
            if fd >= 0:
                os.close(fd)
        self.credit = self.ring = self.line = -1


class Taps:
    """All taps of one flow. ``source`` returns the segments of a node's worker, which the worker's owner keeps, or None
    while there is no such worker."""

    def __init__(self, send: Send, source: Callable[[str], Mapping[int, int] | None]) -> None:
        self._send = send
        self._source = source
        self._taps: dict[str, RouteTap] = {}
        self.next = 1
        """The number of the next tap. No number is used twice, so that a worker's message about a tap that is gone is
        recognised."""

    def __iter__(self) -> Iterator[RouteTap]:
        return iter(tuple(self._taps.values()))

    def of(self, route: str) -> list[dict[str, Any]]:
        """Return the taps of ``route``: id, process, counters."""
        taps = [tap for tap in self if tap.route.id == route]
        return [{"id": tap.id, "pid": tap.pid, **(tap.snapshot() or {})} for tap in taps]

    def open(self, route: Route, credits: int, pid: int, descriptors: list[int]) -> RouteTap:
        """Begin a tap of ``route``, whose source runs. On success it takes ``descriptors`` (a CREDIT) over and empties
        the list. Raises ChronetixError ``bad-argument``, ``quota-exceeded``, ``descriptor-refused`` or
        ``route-detached``."""
        if not 1 <= credits <= MAX_CREDITS:
            raise error("bad-argument", argument="credits", verb="tap", reason=f"must be from 1 to {MAX_CREDITS}")
        if len(descriptors) != 1:
            reason = f"a CREDIT must come along, not {len(descriptors)} descriptors"
            raise error("bad-argument", argument="descriptors", verb="tap", reason=reason)
        if len(self._taps) >= MAX_TAPS:
            raise error("quota-exceeded", what="another tap on this flow", limit=MAX_TAPS)
        if self._source(route.source) is None:
            raise error("route-detached", route=route.id, reason=f"node {route.source!r} does not run")
        try:
            shm.check(descriptors[0], "credit")
        except (OSError, ValueError, shm.PeerFault) as reason:
            raise error("descriptor-refused", what=f"a tap of route {route.id!r}", reason=str(reason.args[0])) from None
        tap = RouteTap(f"tap/{self.next}", route, credits, pid, descriptors[0])
        descriptors.clear()
        self.next += 1
        self._taps[tap.id] = tap
        port = Port(
            route=tap.id,
            peer="tap",
            topic=route.topic,
            content_type=route.content_type,
            schema_ver=route.schema_ver,
            credits=credits,
            watermark=max(1, credits * 3 // 4),
            credit_low=credits // 2,
            policy="latest",
            tap_of=route.id,
        )
        self._send(route.source, Extend(outputs=[port]), ())
        return tap

    def close(self, tap: RouteTap) -> None:
        """End a tap whose client does not listen any more. Idempotent."""
        if self._taps.pop(tap.id, None) is not None and self._source(tap.route.source) is not None:
            self._send(tap.route.source, Retract(route=tap.id), ())
        tap.finish("closed")
        tap.close()

    # -- messages of workers -------------------------------------------------------------------------------

    def offers(self, message: Offer) -> bool:
        """Return whether this offer answers a request for the ring of a tap."""
        ours = [route for route in message.rings if route.startswith("tap/")]
        return bool(ours) and len(ours) == len(message.rings) and not message.credits and not message.segments

    def offered(self, node: str, message: Offer, descriptors: list[int]) -> None:
        """Send the client's ends to the producer that has offered a tap's ring. The ring of a tap that is gone
        meanwhile stays in the list. Raises ProtocolError ``descriptor-refused`` or ``malformed-message``, which are the
        worker's fault."""
        for at, name in enumerate(message.rings):
            tap = self._taps.get(name)
            if tap is None:
                continue
            if tap.route.source != node or tap.ring >= 0:
                raise error("malformed-message", type="offer", reason=f"{name} was not asked for")
            try:
                shm.check(descriptors[at], "ring")
            except (OSError, ValueError, shm.PeerFault) as reason:
                raise error("descriptor-refused", what=f"the ring of {name}", reason=str(reason.args[0])) from None
            tap.ring = os.dup(descriptors[at])
            self._pair(tap)

    def _pair(self, tap: RouteTap) -> None:
        """Link the producer to the tap, because both ends exist. If the client made its end with other sizes than it
        has stated, the tap ends with an error."""
        try:
            tap.view = shm.RouteView(tap.ring, tap.credit)
            producers, tap.line = shm.line(one_way=True)
        except (OSError, ValueError, shm.PeerFault) as reason:
            fault = error("descriptor-refused", what=f"a tap of route {tap.route.id!r}", reason=str(reason.args[0]))
            tap.finish("refused", fault)
            return
        self._send(tap.route.source, Link(outputs=[tap.id]), (os.dup(tap.credit), producers))

    def linked(self, node: str, routes: Sequence[str]) -> None:
        """Send the ring and all segments to the client, because the producer has reported that it sends now."""
        segments = self._source(node)
        for name in routes:
            tap = self._taps.get(name)
            if tap is None or tap.route.source != node or tap.view is None or tap.linked or segments is None:
                continue
            tap.linked = True
            route = tap.route
            value = {
                "id": tap.id,
                "route": route.id,
                "topic": route.topic,
                "content_type": route.content_type,
                "from": route.source,
                "to": route.target,
                "segments": list(segments),
            }
            line, tap.line = tap.line, -1
            fds = (os.dup(tap.ring), line, *map(os.dup, segments.values()))
            tap.updates.put_nowait(Update(value, fds))

    def segment_added(self, node: str, index: int, segment: int) -> None:
        """Send a further segment of the arena of ``node`` to its taps; the descriptor stays the caller's."""
        for tap in self._taps.values():
            if tap.route.source == node and tap.linked and not tap.end:
                tap.updates.put_nowait(Update({"segment": index}, (os.dup(segment),)))

    def has_listeners(self, node: str) -> bool:
        """Return whether a tap maps segments of the arena of ``node``. A tap is not told when a segment is given back:
        it keeps its mapping until it ends, so that the segment's index must not be reused."""
        return any(tap.route.source == node and tap.linked and not tap.end for tap in self._taps.values())

    # -- life ----------------------------------------------------------------------------------------------

    def worker_exited(self, node: str) -> None:
        """End the taps of ``node``, whose worker has exited. Frames that were sent can still be read."""
        for tap in tuple(self._taps.values()):
            if tap.route.source == node:
                tap.finish(f"the worker of node {node!r} has ended")

    def routes_removed(self, routes: Collection[str]) -> None:
        """End the taps of removed routes."""
        for tap in tuple(self._taps.values()):
            if tap.route.id in routes:
                tap.finish("the route was removed")

    def end(self) -> None:
        """End all taps, because the flow has ended."""
        for tap in tuple(self._taps.values()):
            tap.finish("the flow has ended")


def find_route(flow: str, routes: Sequence[Route], name: str, bus_topics: Collection[str] = ()) -> Route:
    """Return the data route that ``name`` means: by its id, its topic, or its ends as ``from:to``. ``bus_topics`` are
    the topics of the event bus that the flow uses.

    Raises ChronetixError ``bad-argument``, which lists the routes that exist.
    """
    control = [route for route in routes if route.plane != "data"]
    routes = [route for route in routes if route.plane == "data"]
    for meant in (lambda r: r.id, lambda r: f"{r.source}:{r.target}", lambda r: r.topic):
        found = [route for route in routes if meant(route) == name]
        if len(found) == 1:
            return found[0]
        if found:
            reason = f"it means {len(found)} routes of flow {flow}: {', '.join(route.id for route in found)}"
            raise error("bad-argument", argument="route", verb="tap", reason=reason)
    by_bus = any(name in (route.id, route.topic, f"{route.source}:{route.target}") for route in control)
    if by_bus or name in bus_topics:
        reason = (
            f"{name} is a topic of the event bus, and only data routes can be listened to: to see its messages, let a "
            "node subscribe to it and log them"
        )
        raise error("bad-argument", argument="route", verb="tap", reason=reason)
    known = ", ".join(route.id for route in routes[:16]) or "none"
    reason = f"flow {flow} has no data route {name}, but {known}"
    raise error("bad-argument", argument="route", verb="tap", reason=reason)
