"""The input side of a worker: each route as a chain of stages, oldest first.

A stage is a route's time with one RING. When its producer has died it ends at a known place, and the next stage, the
first of a successor, takes its turn; the inlet goes on by itself. A stage that is empty and returned is told once, in
whichever thread gave the last frame back, and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from chronetix.nodeworker.api import codec
from chronetix.protocol.errors import error
from chronetix.protocol.messages import InputLink, Port, ReattachedStage
from chronetix.shm import Consumer, Doorbell, Inlet, PeerFault

OnEmptied = Callable[[str, int], None]
"""Told of a route and an epoch."""


class Stages:
    """The inputs of ``node``: a port for each stage of each route. ``on_emptied`` must not wait."""

    def __init__(self, node: str, ports: Iterable[Port], bell: Doorbell, on_emptied: OnEmptied) -> None:
        self._node = node
        self._bell = bell
        self._on_emptied = on_emptied
        self._chains: dict[str, list[Consumer]] = {}
        self._order: list[Consumer] = []
        self._empty: set[tuple[str, int]] = set()
        self._segments: dict[tuple[str, int], list[int]] = {}
        self._resumes: dict[tuple[str, int], int] = {}
        """What a daemon must know that finds this end and no producer."""
        self._over: dict[str, Consumer] = {}
        """What follows the last stage of a route that was concluded: an end that has ended."""
        self._forgotten: set[str] = set()
        for port in ports:
            self._append(port)
        self.inlet = Inlet([chain[0] for chain in self._chains.values()], bell)

    @property
    def latest(self) -> dict[str, Consumer]:
        """By route the last stage, whose producer lives."""
        return {route: chain[-1] for route, chain in self._chains.items() if chain}

    def all(self) -> list[Consumer]:
        """Every end that was not told to be empty, in the order in which they were asked for."""
        return list(self._order)

    def described(self, ends: Iterable[Consumer]) -> list[ReattachedStage]:
        """Each of these ends, and which segments of its producer it maps."""
        segments, resumes = self._segments, self._resumes
        return [
            ReattachedStage(
                route=end.route,
                epoch=end.epoch,
                linked=end.linked,
                segments=list(segments.get((end.route, end.epoch), ())),
                resume=resumes.get((end.route, end.epoch), 0),
            )
            for end in ends
        ]

    def extend(self, port: Port) -> Consumer:
        """The next stage of a route, or the first of a further one. Raises ValueError, PeerFault for what cannot follow
        the stage before."""
        known = port.route in self._chains
        end = self._append(port)
        if not known:
            self.inlet.add(end)
        return end

    def conclude(self, route: str, seq: int) -> None:
        """The last stage of ``route`` ends at sequence number ``seq``, and nothing follows. Raises ChronetixError for a
        route that is not ours, ValueError or PeerFault for an end that does not fit."""
        if route not in self._chains:
            raise error("route-unknown", route=route, node=self._node)
        last = self._chains[route][-1]
        self._over[route] = nothing = Consumer(route, credits=1, epoch=last.epoch + 1, base_seq=seq)
        nothing.close()
        last.succeed(nothing, partial(self._emptied, route, last.epoch))

    def forget(self, route: str) -> bool:
        """Of a route that was concluded, and all of whose stages are empty, nothing is left; False for any other. From
        the thread that takes."""
        if route not in self._over or self._chains[route]:
            return False
        self.inlet.remove(self._over.pop(route))
        del self._chains[route]
        self._forgotten.add(route)
        return True

    def link(self, message: InputLink, descriptors: Sequence[int]) -> None:
        """Map RING, segments and perhaps a predecessor's CREDIT, and listen on this end of the line; they stay the
        caller's. Raises PeerFault or ValueError for what does not fit."""
        end = self._find(message.route, message.epoch)
        if end is None:
            return
        ring, line, *rest = descriptors
        for index, segment in zip(message.segments, rest, strict=False):
            self._map(end, index, segment)
        end.link(ring, line, self._bell, predecessor=rest[-1] if message.predecessor else -1)

    def map_segment(self, route: str, epoch: int, index: int, descriptor: int) -> None:
        """Follow a producer that grew. Raises PeerFault for what cannot be mapped."""
        end = self._find(route, epoch)
        if end is not None:
            self._map(end, index, descriptor)

    def drop_segment(self, route: str, epoch: int, index: int) -> bool:
        """Follow a producer that gave a segment back; False if that is a lie, which has cost it the stage."""
        end = self._find(route, epoch)
        if end is None:
            return True
        try:
            end.drop_segment(index)
        except PeerFault:
            return False
        self._segments[route, epoch].remove(index)
        return True

    def close(self) -> None:
        """Detach everywhere."""
        for end in self.all():
            end.close()

    def abandon(self) -> None:
        """Leave everything as a death would: a successor may follow."""
        for end in self.all():
            end.abandon()

    def _find(self, route: str, epoch: int) -> Consumer | None:
        """The stage, None if it is empty. Raises ChronetixError for a route that is not ours."""
        if route in self._forgotten:
            return None
        if route not in self._chains:
            raise error("route-unknown", route=route, node=self._node)
        return next((end for end in self._chains[route] if end.epoch == epoch), None)

    def _map(self, end: Consumer, index: int, descriptor: int) -> None:
        end.add_segment(index, descriptor)
        self._segments[end.route, end.epoch].append(index)

    def _append(self, port: Port) -> Consumer:
        reading = codec.reading(port.content_type, port.route)
        end = Consumer(
            port.route,
            credits=port.credits,
            epoch=port.epoch,
            base_seq=port.base_seq,
            peer=port.peer,
            decode=reading.value,
            array=reading.array,
            meta=codec.load_meta,
            content_type=reading.content_type,
            qos=port.qos,
        )
        self._forgotten.discard(port.route)
        chain = self._chains.setdefault(port.route, [])
        if chain:
            before = chain[-1]
            before.succeed(end, partial(self._emptied, port.route, before.epoch))
        chain.append(end)
        self._order.append(end)
        self._segments[port.route, port.epoch] = []
        self._resumes[port.route, port.epoch] = port.resume
        return end

    def _emptied(self, route: str, epoch: int) -> None:
        """Told oldest first: each stage that is left ends where the next one begins. Without a lock, because this may
        be called within itself; who takes a stage out of the set tells of it."""
        chain = self._chains[route]
        self._empty.add((route, epoch))
        while chain:
            first = chain[0]
            try:
                self._empty.remove((route, first.epoch))
            except KeyError:
                return
            chain.remove(first)
            self._order.remove(first)
            self._segments.pop((route, first.epoch), None)
            self._resumes.pop((route, first.epoch), None)
            self._on_emptied(route, first.epoch)
