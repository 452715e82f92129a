"""What the daemon keeps of the workers' shared memory: who made it, which stage of which route it belongs to.

A route is a chain of stages, one for each RING that it has had; the last one is the present. Every descriptor here is
ours, was checked when it came, and is closed when the last stage that needs it is given up.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import shm
from chronetixd.counters import Counters
from protocol.errors import error

if TYPE_CHECKING:
    from protocol.messages import Port
    from shm._native import RouteSnapshot


class DataRoute(NamedTuple):
    """A data route: its id, the nodes at its ends, and whether one waits for the other."""

    id: str
    source: str
    target: str
    policy: str = "block"


MAX_SEGMENTS = 64
"""Of one arena. It doubles by segments, so that one that is as large as can be has fewer than twenty; each is a
descriptor of the daemon's, and of every consumer's."""


@dataclass(slots=True, eq=False)
class Memory:
    """What one process offered beside its ends of routes: its doorbell, and the arena that its RINGs point into."""

    doorbell: shm.Doorbell
    segments: dict[int, int] = field(default_factory=dict)
    unmapped: dict[int, set[Stage]] = field(default_factory=dict)
    """Segments that it may not use yet, and the stages whose consumer cannot follow descriptors into them."""
    undropped: dict[int, set[Stage]] = field(default_factory=dict)
    """Segments that it has given back, and the stages whose consumer maps them still."""
    stages: int = 0
    """Stages whose RING points into the arena."""
    incarnation: int = 0
    """Of its node, when it made this."""
    shown_so: set[int] = field(default_factory=set)
    """Segments that were new or given back when a worker came back: what it said of them may come still."""
    dead: bool = False

    def settle(self, stage: Stage, index: int) -> bool:
        """The stage's consumer has mapped it, or never has to; True when that was the last one."""
        waiting = self.unmapped.get(index)
        if waiting is None or stage not in waiting:
            return False
        waiting.discard(stage)
        if waiting:
            return False
        del self.unmapped[index]
        return True

    def close_if_unused(self) -> None:
        """Give it back once its process is dead and nothing points into it. Idempotent."""
        if self.dead and self.stages == 0:
            self.doorbell.close()
            for fd in self.segments.values():
                os.close(fd)
            self.segments.clear()


@dataclass(slots=True, eq=False)
class Stage:
    """A route's time with one RING. Either end is None as long as it was not offered."""

    route: DataRoute
    epoch: int = 0
    base_seq: int = 0
    resume: int = 0
    ring: int | None = None
    producer: Memory | None = None
    """Of the RING's maker, which may be dead."""
    credit: int | None = None
    consumer: Memory | None = None
    consumer_incarnation: int = 0
    """Of its node, when the CREDIT was made: the name under which a supervisor keeps it."""
    predecessor: int | None = None
    """CREDIT of the last consumer that ran on this stage and died."""
    predecessor_incarnation: int = 0
    told_producer: bool = False
    """The producer was linked."""
    relink: bool = False
    """The producer was linked, but to a consumer before the present one."""
    told_consumer: bool = False
    """The present consumer was linked."""
    by_link: set[int] = field(default_factory=set)
    """Segments that came with the present consumer's link; mapped when it answers."""
    sent: set[int] = field(default_factory=set)
    """All segments that the present consumer was sent."""
    dropping: set[int] = field(default_factory=set)
    """Of those, what it was told to unmap and has not said to have unmapped."""
    ended: bool = False
    """Its producer is dead: nothing more comes."""
    view: shm.RouteView | None = None
    port: Port | None = None
    """As its consumer was told of it, where the route is another one by now."""
    passed: int = 0
    """Positions below it a consumer before the present one has passed; what was overwritten there is counted."""
    held: bool = False
    """Its consumer is linked when what it loses is drained, so that order is kept."""

    @property
    def complete(self) -> bool:
        """Both ends were offered."""
        return self.ring is not None and self.credit is not None

    @property
    def lived(self) -> bool:
        """An end was linked: it may hold frames."""
        return self.told_producer or self.told_consumer or self.predecessor is not None

    def snapshot(self) -> RouteSnapshot | None:
        """Its counters, the consuming end's since its predecessor's were kept; None before both ends were there, when
        one has spoilt its header, or for want of memory."""
        view = self.open_view()
        return self._of_present(view.snapshot()) if view is not None else None

    def _of_present(self, seen: RouteSnapshot) -> RouteSnapshot:
        drops = seen["drops"]
        found = drops["overwritten"] - seen["unseen"]
        if not self._has_consumer:
            seen["taken"] = seen["again"] = seen["consumer_sleeps"] = seen["consumer_wakes"] = found = 0
        unseen = max(0, seen["unseen"] - max(0, self.passed - seen["next"]))
        seen["dropped"] += found + unseen - drops["overwritten"]
        drops["overwritten"], seen["unseen"] = found + unseen, unseen
        return seen

    @property
    def _has_consumer(self) -> bool:
        """Its present consumer was told of it, or there was none before."""
        return self.told_consumer or self.predecessor is None

    def open_view(self) -> shm.RouteView | None:
        """What it looks like, with the last consumer that may have done something; None as for ``snapshot``."""
        if self.view is None:
            credit = self.credit if self._has_consumer else self.predecessor
            if self.ring is None or credit is None:
                return None
            try:
                self.view = shm.RouteView(self.ring, credit)
            except (shm.PeerFault, ValueError, MemoryError):
                return None
        return self.view

    def told_to_drop(self, index: int) -> None:
        """Its consumer is told that a segment is gone."""
        self.sent.discard(index)
        self.by_link.discard(index)
        self.dropping.add(index)

    def close_view(self) -> None:
        """The ends have changed, or it is over."""
        if self.view is not None:
            self.view.close()
            self.view = None

    def consumer_died(self, counters: Counters, *, ran: bool) -> None:
        """What a successor may need of the end that ``ran`` is kept; one that never did changes nothing."""
        if ran and self.told_consumer:
            seen = self.snapshot()
            counters.keep_consumer(seen)
            self.passed = max(self.passed, seen["next"] if seen is not None else 0)
            _close(self.predecessor)
            self.predecessor, self.credit = self.credit, None
            self.predecessor_incarnation = self.consumer_incarnation
        self.close_view()
        _close(self.credit)
        self.credit = None
        self.consumer = None
        self.relink = self.told_producer
        self.told_consumer = False
        self.by_link.clear()
        self.sent.clear()

    def forget_ring(self) -> None:
        """Its maker died before anybody was linked to it: the next one makes this stage's ring."""
        self.close_view()
        _close(self.ring)
        self.ring = self.port = None
        self._leave_producer()

    def close(self, counters: Counters) -> None:
        """It is over: add up what it counted and give its memory back."""
        counters.keep(self.snapshot())
        self.close_view()
        for fd in (self.ring, self.credit, self.predecessor):
            _close(fd)
        self.ring = self.credit = self.predecessor = None
        self._leave_producer()

    def _leave_producer(self) -> None:
        if self.producer is not None:
            self.producer.stages -= 1
            self.producer.close_if_unused()
            self.producer = None


class Ends(NamedTuple):
    """What a node has to offer: RINGs of these stages, CREDITs of those. ``leave``: outputs that it closes by then."""

    rings: list[Stage]
    credits: list[Stage]
    leave: tuple[str, ...] = ()
    changes: bool = False
    """Its routes become others: outputs only when all inputs have, or one that loses its last input would end."""


@dataclass(slots=True, eq=False)
class Place:
    """One node, with what its present incarnation was told and has said."""

    node: str
    outputs: list[DataRoute] = field(default_factory=list)
    inputs: list[DataRoute] = field(default_factory=list)
    memory: Memory | None = None
    incarnation: int = 0
    configured: bool = False
    linked: bool = False
    ready: bool = False
    started: bool = False
    gone: bool = False
    """For good."""
    came_back: bool = False
    """It was started by an earlier daemon: what it said to that one may come still."""
    due: deque[Ends] = field(default_factory=deque)
    """What it was asked for and has not offered yet."""
    later: list[Stage] = field(default_factory=list)
    """Stages of inputs that it is told of as soon as it is ready."""
    answers: deque[Ends] = field(default_factory=deque)
    """Links that it has not answered yet."""
    relinking: set[Stage] = field(default_factory=set)
    """Stages of its inputs whose producer has to be linked to it before it may start."""
    asked_relink: bool = False
    """It is ready, and nobody was told yet that they all are."""
    source: bool = False
    """Its present incarnation has no inputs: its frames carry the numbers of their items."""
    sent: int = 0
    """The last item of a source that is known to have gone out on any of its outputs."""

    def reset(self) -> None:
        """It is dead; its successor is told everything anew."""
        self.configured = self.linked = self.ready = self.started = self.asked_relink = self.came_back = False
        self.due.clear()
        self.later.clear()
        self.answers.clear()
        self.relinking.clear()
        if self.memory is not None:
            self.memory.dead = True
            self.memory.unmapped.clear()
            self.memory.close_if_unused()
            self.memory = None
        self.incarnation += 1


def check_count(node: str, count: int) -> None:
    """Raises ProtocolError ``quota-exceeded`` when an arena of ``node`` may not have ``count`` segments."""
    if count > MAX_SEGMENTS:
        raise error("quota-exceeded", what=f"another segment of node {node!r}", limit=MAX_SEGMENTS)


def checked(fd: int, kind: str, what: str) -> int:
    """``fd`` if it holds what it should. Raises ProtocolError ``descriptor-refused``."""
    try:
        shm.check(fd, kind)  # type: ignore[arg-type]
    except (OSError, ValueError, shm.PeerFault) as reason:
        raise error("descriptor-refused", what=what, reason=str(reason.args[0] if reason.args else reason)) from None
    return fd


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
