"""A worker's shared memory: what it makes and offers, and what it maps of its peers.

Rules: a worker makes the RINGs of its outputs, the CREDITs of its inputs, one ARENA if it sends, one doorbell;
descriptors that arrive are closed once they are mapped. Growth: a new arena segment is offered to the daemon, used
only when confirmed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nodeworker import codec
from protocol.errors import error
from protocol.messages import Configure, Detach, Link, Offer, Port, Segment, SegmentMapped, Stage
from shm import Arena, Consumer, Doorbell, Inlet, Outlet, Producer

Grow = Callable[[int, int, int], None]
"""Announces a new segment: index, descriptor, bytes."""

FIRST_SEGMENT = 1 << 18
"""Bytes of the first arena segment: enough for small frames, cheap to make; larger frames make it grow at once."""


class Inventory(NamedTuple):
    """All that a worker has made, and what it maps of its peers, as a :class:`Reattach` tells it."""

    outputs: list[Stage]
    inputs: list[Stage]
    segments: list[int]
    unconfirmed: list[int]


@dataclass(slots=True)
class Wiring:
    """The shared memory of one node, in the order of its ports."""

    node: str
    bell: Doorbell
    arena: Arena | None
    producers: dict[str, Producer]
    consumers: dict[str, Consumer]
    budget_ns: int = 0
    epochs: dict[str, int] = field(default_factory=dict)
    mapped: dict[str, list[int]] = field(default_factory=dict)
    """Segments of the producer that each input maps."""
    unconfirmed: set[int] = field(default_factory=set)

    def inventory(self) -> tuple[Inventory, list[int]]:
        """All of it, for a daemon that has none, and the descriptors that go with it."""
        offer, descriptors = self.offer()
        memory = Inventory(
            [Stage(route=route, epoch=self.epochs[route]) for route in offer.rings],
            [
                Stage(route=route, epoch=self.epochs[route], segments=self.mapped.get(route, []))
                for route in offer.credits
            ],
            offer.segments,
            sorted(self.unconfirmed),
        )
        return memory, descriptors

    def offer(self) -> tuple[Offer, list[int]]:
        """What the daemon hands to the peers, and the descriptors that go with it."""
        segments = self.arena.segments if self.arena else ()
        rings, credits = self.producers.values(), self.consumers.values()
        descriptors = [self.bell.fileno(), *(p.fd for p in rings), *(c.fd for c in credits), *(s[1] for s in segments)]
        message = Offer(rings=list(self.producers), credits=list(self.consumers), segments=[s[0] for s in segments])
        return message, descriptors

    def link(self, message: Link, descriptors: Sequence[int]) -> None:
        """Map what the peers offered. Raises PeerFault or ValueError for what does not fit, ChronetixError for a route
        that is not ours. The descriptors are closed in any case."""
        try:
            rest = iter(descriptors)
            for route in message.outputs:
                self._producer(route).link(next(rest), next(rest))
            for link in message.inputs:
                consumer = self._consumer(link.route)
                ring, bell = next(rest), next(rest)
                for index in link.segments:
                    consumer.add_segment(index, next(rest))
                consumer.link(ring, bell)
                self.mapped[link.route] = list(link.segments)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._all_linked()

    def map_segment(self, message: Segment, descriptor: int) -> SegmentMapped:
        """Follow a producer that grew. The answer for the daemon; the descriptor is closed."""
        try:
            self._consumer(message.route).add_segment(message.index, descriptor)
            self.mapped[message.route].append(message.index)
        finally:
            os.close(descriptor)
        return SegmentMapped(index=message.index, route=message.route)

    def confirm(self, message: SegmentMapped) -> None:
        """Every consumer follows: the arena may use the segment, and whoever waits for room is woken."""
        if self.arena is not None:
            self.unconfirmed.discard(message.index)
            self.arena.confirm(message.index)
        self.bell.ring()

    def detach(self, message: Detach) -> None:
        """Nobody takes from this route any more: whoever waits for its credits is woken and gets RouteClosed."""
        self._producer(message.route).close()
        self.bell.ring()

    def inlet(self) -> Inlet:
        """Takes from every input."""
        return Inlet(list(self.consumers.values()), self.bell)

    def outlet(self, producers: Sequence[Producer]) -> Outlet:
        """Sends to ``producers``."""
        return Outlet(producers, self.bell, budget_ns=self.budget_ns)

    def close(self) -> None:
        """Give back every mapping and descriptor. Peers see the end of the stream, or a closed route."""
        for producer in self.producers.values():
            producer.close()
        for consumer in self.consumers.values():
            consumer.close()
        if self.arena is not None:
            self.arena.close()

    def _producer(self, route: str) -> Producer:
        if route not in self.producers:
            raise error("route-unknown", route=route, node=self.node)
        return self.producers[route]

    def _consumer(self, route: str) -> Consumer:
        if route not in self.consumers:
            raise error("route-unknown", route=route, node=self.node)
        return self.consumers[route]

    def _all_linked(self) -> None:
        ends: list[Producer | Consumer] = [*self.producers.values(), *self.consumers.values()]
        for end in ends:
            if not end.linked:
                raise error("route-detached", route=end.route, reason="the daemon's link message left it out")


def build(config: Configure, on_grow: Grow, bell: Doorbell | None = None) -> Wiring:
    """Make the shared memory of the node of ``config``. Raises OSError when there is none."""
    arena = None
    if config.outputs:
        first = min(FIRST_SEGMENT, config.arena_limit)
        arena = Arena(config.arena_limit, first=first, on_grow=on_grow)
    return Wiring(
        node=config.node,
        bell=bell or Doorbell(),
        arena=arena,
        producers={port.route: _produce(port, arena) for port in config.outputs if arena is not None},
        consumers={port.route: _consume(port) for port in config.inputs},
        epochs={port.route: port.epoch for port in (*config.inputs, *config.outputs)},
        budget_ns=config.budget_ns,
    )


def _produce(port: Port, arena: Arena) -> Producer:
    if port.policy == "latest":
        raise ValueError(f"route {port.route!r}: policy 'latest' is not supported by this worker")
    return Producer(
        arena,
        port.route,
        credits=port.credits,
        watermark=port.watermark,
        credit_low=port.credit_low,
        policy=port.policy,
        epoch=port.epoch,
        base_seq=port.base_seq,
    )


def _consume(port: Port) -> Consumer:
    return Consumer(
        port.route,
        credits=port.credits,
        epoch=port.epoch,
        base_seq=port.base_seq,
        peer=port.peer,
        decode=codec.decoder(port.content_type, port.route),
        qos=port.qos,
    )
