"""A worker's shared memory: what it makes and offers, and what it maps of its peers.

Rules: a worker makes the RINGs of its outputs, the CREDITs of its inputs, one ARENA if it sends, one doorbell;
descriptors that arrive are closed once they are mapped. Growth: a new arena segment is offered to the daemon, used
only when confirmed. Shrinking: one that was dropped is announced, its index used again only when confirmed. Everything
but ``build`` may happen while the plugin's thread works or sleeps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from chronetix.nodeworker.api.outputs import Outputs
from chronetix.nodeworker.memory.stages import OnEmptied, Stages
from chronetix.protocol.errors import error
from chronetix.protocol.messages import (
    Conclude,
    Configure,
    Detach,
    Drained,
    Extend,
    Link,
    Offer,
    Port,
    ReattachedStage,
    Retract,
    Segment,
    SegmentDropped,
    SegmentMapped,
)
from chronetix.shm import Arena, Consumer, Doorbell, Inlet, Outlet, Producer

Grow = Callable[[int, int, int], None]
"""Announces a new segment: index, descriptor, bytes."""

Drop = Callable[[int], None]
"""Announces that a segment was given back: index."""

OnGaveUp = Callable[[str, int], None]
"""Told of a route whose consumer has kept the node waiting for longer than the route allows, and for how many ns."""

FIRST_SEGMENT = 1 << 18
"""Bytes of the first arena segment: enough for small frames, cheap to make; larger frames make it grow at once."""


class Inventory(NamedTuple):
    """All that a worker has made, and what it maps of its peers, as a :class:`Reattach` tells it."""

    outputs: list[ReattachedStage]
    inputs: list[ReattachedStage]
    segments: list[int]
    unconfirmed: list[int]
    dropped: list[int]


NO_HUGEPAGES = (
    "huge pages were asked for, but there are none: reserve some (sysctl vm.nr_hugepages), or have shared memory heed "
    "advice (echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled); the node runs with small ones"
)


@dataclass(slots=True)
class Wiring:
    """The shared memory of one node, in the order of its ports."""

    node: str
    bell: Doorbell
    arena: Arena | None
    producers: dict[str, Producer]
    stages: Stages
    budget_ns: int = 0
    outputs: Outputs | None = None
    """Where taps join; set before the first can come."""
    taps: dict[str, tuple[str, Producer]] = field(default_factory=dict)
    """By name: the route that it listens to, and the end."""
    resumes: dict[str, int] = field(default_factory=dict)
    """Of each output the last item that had gone before its present stage began: see ``Port.resume``."""
    is_source: bool = False
    """Its frames carry the numbers of their items."""
    done: dict[tuple[str, int], Producer] = field(default_factory=dict)
    """Stages that were left: kept until every frame has come back."""
    on_gave_up: OnGaveUp | None = None

    @property
    def consumers(self) -> dict[str, Consumer]:
        """By input route the last stage's end."""
        return self.stages.latest

    def lacks_hugepages(self, config: Configure) -> bool:
        """They were asked for, and its memory is not made of them."""
        return config.hugepages and self.arena is not None and self.arena.pages == "small"

    def inventory(self) -> tuple[Inventory, list[int]]:
        """All of it, for a daemon that has none, and the descriptors that go with it."""
        for route in tuple(self.taps):
            self.retract(Retract(route=route))  # who listened did so by way of the daemon that is gone
        ends = self.stages.all()
        segments, unconfirmed, dropped = self.arena.inventory if self.arena is not None else ((), [], [])
        offer, descriptors = self._offered(ends, segments)
        outputs = [
            ReattachedStage(
                route=route, epoch=producer.epoch, linked=producer.linked, resume=self.resumes.get(route, 0)
            )
            for route, producer in self.producers.items()
        ]
        left = {key: end for key, end in self.done.items() if key[0] in self.producers}
        outputs += [
            ReattachedStage(route=route, epoch=epoch, linked=end.linked) for (route, epoch), end in left.items()
        ]
        at = len(offer.rings)
        descriptors[at:at] = [end.fd for end in left.values()]
        inputs = self.stages.described(ends)
        return Inventory(outputs, inputs, offer.segments, unconfirmed, dropped), descriptors

    def offer(self) -> tuple[Offer, list[int]]:
        """What the daemon hands to the peers, and the descriptors that go with it."""
        return self._offered(self.stages.all(), self.arena.segments if self.arena is not None else ())

    def extend(self, message: Extend) -> tuple[Offer, list[int]]:
        """Make the ends of further inputs, of their next stages and of taps, as :meth:`offer`; whoever waits on a stage
        that ends is woken. What else there is of outputs is for :meth:`reroute`.

        Raises ValueError or PeerFault for a stage that cannot follow, OSError when there is no memory."""
        taps = [self._tap(port) for port in message.outputs]
        ends = [self.stages.extend(port) for port in message.inputs]
        self.bell.ring()
        offer = Offer(rings=[tap.route for tap in taps], credits=[end.route for end in ends])
        return offer, [*(tap.fd for tap in taps), *(end.fd for end in ends)]

    def busy(self, message: Extend) -> bool:
        """A frame is being filled that goes to an output which the message ends: it has to be committed before."""
        ended = {*message.leave, *(port.route for port in message.outputs)}
        return any(self.producers[route].loans for route in ended if route in self.producers)

    def reroute(self, message: Extend, ports: Sequence[Port], item: int) -> tuple[list[Port], Offer, list[int]]:
        """Between two frames: outputs that are added, that go on with their next stage, and that are left. ``ports``
        are those of the node's outputs, ``item`` the number of a source's last item; what the ports are now, and the
        offer. From the plugin's thread. Raises ValueError for what does not fit, OSError when there is no memory."""
        if self.arena is None:
            raise ValueError(f"node {self.node!r} had no outputs and cannot get some while it runs")
        sent = max(item, *self.resumes.values()) if self.is_source and self.resumes else 0
        for route in message.leave:
            self._done(route).close()
            self.resumes.pop(route, None)
        after = {port.route: port for port in ports if port.route not in message.leave}
        for port in message.outputs:
            base = port.base_seq
            if port.route in after:
                earlier = self._done(port.route)
                if port.epoch <= earlier.epoch:
                    raise ValueError(f"epoch {port.epoch} of output {port.route!r} is not behind {earlier.epoch}")
                base = earlier.position
            resume = max(item, self.resumes[port.route]) if self.is_source and port.route in after else sent
            after[port.route] = made = msgspec.structs.replace(port, base_seq=base, resume=resume)
            self.resumes[port.route] = resume
            self.producers[port.route] = _produce(made, self.arena, self.is_source, self.on_gave_up, later=True)
        rings = [port.route for port in message.outputs]
        return list(after.values()), Offer(rings=rings), [self.producers[r].fd for r in rings]

    def _done(self, route: str) -> Producer:
        producer = self.producers.pop(route, None)
        if producer is None:
            raise ValueError(f"node {self.node!r} has no output {route!r} that it could leave")
        self.done[route, producer.epoch] = producer
        return producer

    def drained(self, message: Drained) -> None:
        """A stage that was left is over: what is in it will not come back."""
        self.done.pop((message.route, message.epoch), None)
        self.bell.ring()

    def conclude(self, message: Conclude) -> None:
        """An input ends for good. Raises PeerFault when more than that was taken."""
        self.stages.conclude(message.route, message.seq)
        self.bell.ring()

    def link(self, message: Link, descriptors: Sequence[int]) -> list[str]:
        """Map what the peers offered, which for an output that is linked already is its consumer's successor's; the
        routes. Raises PeerFault or ValueError for what does not fit, ChronetixError for a route that is not ours. The
        descriptors are closed in any case."""
        try:
            rest = iter(descriptors)
            for at, route in enumerate(message.outputs):
                producer = self._meant(route, message.epochs[at]) if message.epochs else self._producer(route)
                credit, line = next(rest), next(rest)
                if producer is None:
                    continue
                attach = producer.relink if producer.linked else producer.link
                attach(credit, line, self.bell)
                if route in self.taps and self.outputs is not None:
                    self.outputs.add_tap(self.taps[route][0], producer)
            for link in message.inputs:
                self.stages.link(link, [next(rest) for _ in range(2 + len(link.segments) + link.predecessor)])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self.bell.ring()
        return [*message.outputs, *(link.route for link in message.inputs)]

    def check_linked(self) -> None:
        """Raises ChronetixError for an output that the daemon has left out. An input may be linked later, or be
        concluded without ever having been made."""
        for end in self.producers.values():
            if not end.linked:
                raise error("route-detached", route=end.route, reason="the daemon's link message left it out")

    def map_segment(self, message: Segment, descriptor: int) -> SegmentMapped:
        """Follow a producer that grew. The answer for the daemon; the descriptor is closed."""
        try:
            self.stages.map_segment(message.route, message.epoch, message.index, descriptor)
        finally:
            os.close(descriptor)
        return SegmentMapped(index=message.index, route=message.route, epoch=message.epoch)

    def confirm(self, message: SegmentMapped) -> None:
        """Every consumer follows: the arena may use the segment, and whoever waits for room is woken."""
        if self.arena is not None:
            self.arena.confirm(message.index)
        self.bell.ring()

    def drop_segment(self, message: SegmentDropped) -> SegmentDropped | None:
        """Follow a producer that gave a segment back. The answer for the daemon, None if the producer lies: then the
        next take says so."""
        dropped = self.stages.drop_segment(message.route, message.epoch, message.index)
        if not dropped:
            self.bell.ring()
        return message if dropped else None

    def forget(self, message: SegmentDropped) -> None:
        """No consumer maps it any more: its index may be used again."""
        if self.arena is not None:
            self.arena.forget(message.index)

    def detach(self, message: Detach) -> None:
        """Nobody takes from this route any more: whoever waits for its credits is woken and gets RouteClosed."""
        if message.route in self.producers or not any(route == message.route for route, _ in self.done):
            self._producer(message.route).close()
        self.bell.ring()

    def retract(self, message: Retract) -> None:
        """A listener has gone, or nobody takes any more from an output that is about to be left; one that is gone
        already is no news."""
        if message.route in self.producers:
            self.producers[message.route].leave()
            self.bell.ring()
        _, tap = self.taps.pop(message.route, ("", None))
        if tap is not None and self.outputs is not None:
            self.outputs.drop_tap(tap)

    def epoch(self, route: str) -> int | None:
        """The stage of ``route`` that is worked on: of an input the oldest that is left. None for a route that is not
        ours."""
        if route in self.producers:
            return self.producers[route].epoch
        return next((end.epoch for end in self.stages.all() if end.route == route), None)

    def inlet(self) -> Inlet:
        """Takes from every input."""
        return self.stages.inlet

    def outlet(self, producers: Sequence[Producer]) -> Outlet:
        """Sends to ``producers``."""
        return Outlet(producers, self.bell, budget_ns=self.budget_ns)

    def close(self) -> None:
        """Give back every mapping and descriptor. Peers see the end of the stream, or a closed route."""
        for producer in (*self.producers.values(), *(tap for _, tap in self.taps.values())):
            producer.close()
        self.taps.clear()
        self.stages.close()
        if self.arena is not None:
            self.arena.close()

    def abandon(self) -> None:
        """Leave what a death leaves: peers wait for a successor, or for word that there is none."""
        self.stages.abandon()
        if self.arena is not None:
            self.arena.close()

    def _offered(self, ends: Sequence[Consumer], segments: Sequence[tuple[int, int, int]]) -> tuple[Offer, list[int]]:
        rings = self.producers.values()
        descriptors = [*(p.fd for p in rings), *(c.fd for c in ends), *(s[1] for s in segments)]
        routes = [end.route for end in ends]
        return Offer(rings=list(self.producers), credits=routes, segments=[s[0] for s in segments]), descriptors

    def _tap(self, port: Port) -> Producer:
        """The end of an output that is added while the node runs."""
        if self.arena is None or port.tap_of not in self.producers:
            raise ValueError(f"node {self.node!r} has no output {port.tap_of!r} that could be listened to")
        if port.route in self.producers or port.route in self.taps:
            raise ValueError(f"node {self.node!r} has an output {port.route!r} already")
        tap = Producer(self.arena, port.route, credits=port.credits, policy="latest", base_seq=port.base_seq, tap=True)
        self.taps[port.route] = (port.tap_of, tap)
        return tap

    def _meant(self, route: str, epoch: int) -> Producer | None:
        """The end of that stage of an output; None for one that is over."""
        present = self.producers.get(route)
        return present if present is not None and present.epoch == epoch else self.done.get((route, epoch))

    def _producer(self, route: str) -> Producer:
        if route in self.taps:
            return self.taps[route][1]
        if route not in self.producers:
            raise error("route-unknown", route=route, node=self.node)
        return self.producers[route]


def _unheard(_route: str, _epoch: int) -> None:
    """Where producers live and die with their consumers, nobody waits for a stage to be empty."""


def build(
    config: Configure,
    on_grow: Grow,
    on_drop: Drop,
    bell: Doorbell | None = None,
    on_emptied: OnEmptied = _unheard,
    on_gave_up: OnGaveUp | None = None,
) -> Wiring:
    """Make the shared memory of the node of ``config``. Raises OSError when there is none."""
    bell = bell or Doorbell()
    arena = None
    if config.outputs:
        first = min(FIRST_SEGMENT, config.arena_limit)
        arena = Arena(config.arena_limit, first=first, on_grow=on_grow, on_drop=on_drop, hugepages=config.hugepages)
    is_source = not config.inputs
    return Wiring(
        node=config.node,
        bell=bell,
        arena=arena,
        producers={
            port.route: _produce(port, arena, is_source, on_gave_up) for port in config.outputs if arena is not None
        },
        stages=Stages(config.node, config.inputs, bell, on_emptied),
        budget_ns=config.budget_ns,
        on_gave_up=on_gave_up,
        resumes={port.route: port.resume for port in config.outputs},
        is_source=is_source,
    )


def _produce(
    port: Port, arena: Arena, is_source: bool, on_gave_up: OnGaveUp | None, *, later: bool = False
) -> Producer:
    return Producer(
        arena,
        port.route,
        credits=port.credits,
        watermark=port.watermark,
        credit_low=port.credit_low,
        policy=port.policy,
        epoch=port.epoch,
        base_seq=port.base_seq,
        resume=port.resume if is_source else 0,
        limit_ns=port.limit_ns,
        on_give_up=on_gave_up,
        later=later,
    )
