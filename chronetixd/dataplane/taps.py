"""Listeners on one flow's data routes: a client is the consumer of a ring that the route's producer adds while it runs.

Rules: the daemon hands descriptors on, each checked, and never looks into a frame. A tap waits for nobody and nobody
waits for it: its ring is of policy latest, and a segment is used whether it has been mapped here or not. It ends with
its client, with its producer's worker, or with its flow, whichever is first.
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
from chronetix.protocol.messages import Extend, Link, Message, Offer, Port, Retract

if TYPE_CHECKING:
    from chronetix.shm._native import RouteSnapshot

Send = Callable[[str, Message, Sequence[int]], None]
"""To a node's worker; the descriptors are given away."""

MAX_CREDITS = 1024
"""Frames of a tap's ring: what it may hold of its producer's memory."""

MAX_TAPS = 64
"""On one flow at a time: each costs its producer a descriptor and a comparison for every frame."""


class Update(NamedTuple):
    """Something for the client, with duplicates of descriptors that are its owner's to close."""

    value: dict[str, Any]
    descriptors: tuple[int, ...]


@dataclass(slots=True)
class Tap:
    """One listener. ``end`` says why it is over; until then ``updates`` is not."""

    id: str
    route: Route
    credits: int
    pid: int
    credit: int
    line: int = -1
    """The client's end, until it has it."""
    ring: int = -1
    view: shm.RouteView | None = None
    linked: bool = False
    end: str = ""
    fault: ChronetixError | None = None
    updates: asyncio.Queue[Update | None] = field(default_factory=asyncio.Queue)

    def snapshot(self) -> RouteSnapshot | None:
        """Its counters; None before its ring is there."""
        return self.view.snapshot() if self.view is not None else None

    async def next(self) -> Update | None:
        """What comes next for the client; None at the end. Raises ChronetixError when it could not be set up."""
        update = await self.updates.get()
        if update is None and self.fault is not None:
            raise self.fault
        return update

    def over(self, why: str, fault: ChronetixError | None = None) -> None:
        """Tell the client. Idempotent."""
        if not self.end:
            self.end, self.fault = why, fault
            self.updates.put_nowait(None)

    def close(self) -> None:
        """Give everything back. Idempotent."""
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
    """All taps of one flow. ``source`` gives the segments of a node's worker, which stay its owner's, None while there
    is no such worker."""

    def __init__(self, send: Send, source: Callable[[str], Mapping[int, int] | None]) -> None:
        self._send = send
        self._source = source
        self._taps: dict[str, Tap] = {}
        self.next = 1
        """Number of the next one. What workers say of one that is gone is recognised by it: none is used twice."""

    def __iter__(self) -> Iterator[Tap]:
        return iter(tuple(self._taps.values()))

    def of(self, route: str) -> list[dict[str, Any]]:
        """The taps of ``route``: id, process, counters."""
        taps = [tap for tap in self if tap.route.id == route]
        return [{"id": tap.id, "pid": tap.pid, **(tap.snapshot() or {})} for tap in taps]

    def open(self, route: Route, credits: int, pid: int, descriptors: list[int]) -> Tap:
        """Begin to listen to ``route``, whose source runs; takes ``descriptors`` (a CREDIT) over when it
        succeeds (empties the list). Raises ChronetixError ``bad-argument``, ``quota-exceeded``, ``descriptor-refused``,
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
        tap = Tap(f"tap/{self.next}", route, credits, pid, descriptors[0])
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

    def close(self, tap: Tap) -> None:
        """Its client wants no more. Idempotent."""
        if self._taps.pop(tap.id, None) is not None and self._source(tap.route.source) is not None:
            self._send(tap.route.source, Retract(route=tap.id), ())
        tap.over("closed")
        tap.close()

    # -- what workers say ----------------------------------------------------------------------------------

    def offers(self, message: Offer) -> bool:
        """Is this offer the answer to our extend?"""
        ours = [route for route in message.rings if route.startswith("tap/")]
        return bool(ours) and len(ours) == len(message.rings) and not message.credits and not message.segments

    def offered(self, node: str, message: Offer, descriptors: list[int]) -> None:
        """Hand the client's ends on to the producer; a ring of a tap that is gone meanwhile is left to be closed.
        Raises ProtocolError ``descriptor-refused`` or ``malformed-message``, which are the worker's fault."""
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

    def _pair(self, tap: Tap) -> None:
        """Both ends are there. The client may have made its own for other numbers than it said."""
        try:
            tap.view = shm.RouteView(tap.ring, tap.credit)
            producers, tap.line = shm.line(one_way=True)
        except (OSError, ValueError, shm.PeerFault) as reason:
            fault = error("descriptor-refused", what=f"a tap of route {tap.route.id!r}", reason=str(reason.args[0]))
            tap.over("refused", fault)
            return
        self._send(tap.route.source, Link(outputs=[tap.id]), (os.dup(tap.credit), producers))

    def linked(self, node: str, routes: Sequence[str]) -> None:
        """The producer sends from now on: the client gets its ring and every segment there is."""
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

    def grew(self, node: str, index: int, segment: int) -> None:
        """The arena of ``node`` has a further segment, which stays the caller's."""
        for tap in self._taps.values():
            if tap.route.source == node and tap.linked and not tap.end:
                tap.updates.put_nowait(Update({"segment": index}, (os.dup(segment),)))

    def listen_to(self, node: str) -> bool:
        """Does a client map segments of the arena of ``node``? It is not told when one is given back: the memory is
        its own until it ends, and the number must not be used again."""
        return any(tap.route.source == node and tap.linked and not tap.end for tap in self._taps.values())

    # -- life ----------------------------------------------------------------------------------------------

    def gone(self, node: str) -> None:
        """The worker of ``node`` has exited: what it has sent can still be read."""
        for tap in tuple(self._taps.values()):
            if tap.route.source == node:
                tap.over(f"the worker of node {node!r} has ended")

    def removed(self, routes: Collection[str]) -> None:
        """The flow has these routes no more."""
        for tap in tuple(self._taps.values()):
            if tap.route.id in routes:
                tap.over("the route was removed")

    def end(self) -> None:
        """The flow has ended."""
        for tap in tuple(self._taps.values()):
            tap.over("the flow has ended")


def find_route(flow: str, routes: Sequence[Route], name: str) -> Route:
    """The data route that ``name`` means: its id, its topic, or its ends as ``from:to``.

    Raises ChronetixError ``bad-argument``, naming what there is."""
    routes = [route for route in routes if route.plane == "data"]
    for meant in (lambda r: r.id, lambda r: f"{r.source}:{r.target}", lambda r: r.topic):
        found = [route for route in routes if meant(route) == name]
        if len(found) == 1:
            return found[0]
        if found:
            reason = f"it means {len(found)} routes of flow {flow}: {', '.join(route.id for route in found)}"
            raise error("bad-argument", argument="route", verb="tap", reason=reason)
    known = ", ".join(route.id for route in routes[:16]) or "none"
    reason = f"flow {flow} has no data route {name}, but {known}"
    raise error("bad-argument", argument="route", verb="tap", reason=reason)
