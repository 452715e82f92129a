"""Rebuilds the wiring of a flow from what its workers offer when they reattach, for a daemon that has none of the
memory.

Each worker that reattaches offers all of its own memory, which is checked like any offer. The memory of a dead worker
exists only in its peers' mappings, unless the service manager has stored it (``kept``; :func:`memories` lists what it
has to store). Rules: a stage is what both of its ends agree on. What a living worker offers is newer than what was
stored. If an end of a dead node is missing that a successor would need, the flow cannot continue, and the missing end
is reported.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from chronetix import shm
from chronetix.protocol.errors import error
from chronetix.protocol.messages import Reattach, ReattachedStage
from chronetix.shm import layout
from chronetixd.core.wiring.stages import DataRoute, Handle, Memory, NodeEnds, Stage, check_count
from chronetixd.core.wiring.states import ConsumerEnd, MemoryState, ProducerEnd
from chronetixd.dataplane.checked import checked
from chronetixd.dataplane.recovered import RecoveredMemory
from chronetixd.store.descriptor_keys import Key


@dataclass(slots=True)
class ReattachedMemory:
    """The memory of one node, as its worker offered it when it reattached."""

    memory: Memory
    rings: dict[tuple[str, int], tuple[int, ReattachedStage]] = field(default_factory=dict)
    credits: dict[tuple[str, int], tuple[int, ReattachedStage]] = field(default_factory=dict)
    unconfirmed: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    incarnation: int = 0


def reattached(
    node: str, outputs: Iterable[DataRoute], inputs: Iterable[DataRoute], message: Reattach, descriptors: list[int]
) -> ReattachedMemory:
    """Check the memory that ``node`` offers; takes ``descriptors`` over and empties the list.

    Raises ProtocolError ``descriptor-refused`` or ``malformed-message``, and then has kept nothing.
    """
    check_count(node, len(message.segments))
    _check_routes(node, "outputs", message.outputs, {route.id for route in outputs})
    _check_routes(node, "inputs", message.inputs, {route.id for route in inputs})
    if not _fit(message):
        told = f"segments {message.segments}, unconfirmed {message.unconfirmed}, dropped {message.dropped}"
        reason = f"{told}: each once, the second of the first, and the third not"
        raise error("malformed-message", type="reattach", reason=reason)
    fds = iter(descriptors)
    memory = Memory(reported_segments={*message.unconfirmed, *message.dropped})
    found = ReattachedMemory(
        memory,
        unconfirmed=tuple(message.unconfirmed),
        dropped=tuple(message.dropped),
        incarnation=message.incarnation,
    )
    for stage in message.outputs:
        fd = checked(next(fds), "ring", f"the ring of route {stage.route!r}")
        found.rings[stage.route, stage.epoch] = fd, stage
    for stage in message.inputs:
        fd = checked(next(fds), "credit", f"the credits of route {stage.route!r}")
        found.credits[stage.route, stage.epoch] = fd, stage
    for index in message.segments:
        found.memory.segments[index] = checked(next(fds), "segment", f"segment {index} of node {node!r}")
    descriptors.clear()
    return found


def _fit(message: Reattach) -> bool:
    """Return whether what the message says of its segments is consistent."""
    there, dropped = set(message.segments), set(message.dropped)
    once = len(there) == len(message.segments) and len(dropped) == len(message.dropped)
    return once and set(message.unconfirmed) <= there and not dropped & there


def _check_routes(node: str, what: str, told: list[ReattachedStage], known: set[str]) -> None:
    keys = [(stage.route, stage.epoch) for stage in told]
    strange = {stage.route for stage in told} - known
    if strange or len(set(keys)) != len(keys):
        reason = f"{what} of node {node!r} are {sorted(keys)}, but its routes are {sorted(known)}"
        raise error("malformed-message", type="reattach", reason=reason)


def chain(
    route: DataRoute,
    producer: ReattachedMemory | None,
    consumer: ReattachedMemory | None,
    kept: RecoveredMemory,
    dead: Container[str],
) -> list[Stage]:
    """Return the stages of ``route``, oldest first, from what its two nodes have offered, or from what was stored.
    ``dead`` nodes are to have successors."""
    rings = {epoch for name, epoch in producer.rings if name == route.id} if producer is not None else set()
    credits = {epoch for name, epoch in consumer.credits if name == route.id} if consumer is not None else set()
    known = kept.epochs(route.id)
    if credits:
        known = {epoch for epoch in known if epoch >= min(credits)}  # the consumer has drained the earlier ones
    epochs = sorted(rings | credits | known)
    stages = [_stage(route, epoch, producer, consumer, kept, dead) for epoch in epochs or [0]]
    for earlier in stages[:-1]:
        earlier.ended = True
    return stages


def _stage(
    route: DataRoute,
    epoch: int,
    producer: ReattachedMemory | None,
    consumer: ReattachedMemory | None,
    kept: RecoveredMemory,
    dead: Container[str],
) -> Stage:
    stage = Stage(route, epoch)
    told_producer = told_consumer = False
    shown_ring = producer.rings.get((route.id, epoch)) if producer is not None else None
    shown_credit = consumer.credits.get((route.id, epoch)) if consumer is not None else None
    kept_ring = kept.ring(route.id, epoch) if shown_ring is None else None
    kept_credit = kept.credit(route.id, epoch) if consumer is None and route.target in dead else None
    if shown_ring is not None and producer is not None:
        ring, told = shown_ring
        stage.ring, stage.producer, stage.resume = Handle(ring), producer.memory, told.resume
        told_producer = told.linked
    elif kept_ring is not None:
        key, ring, stage.producer = kept_ring
        stage.ring, stage.resume = Handle(ring), key.resume
    if shown_credit is not None and consumer is not None:
        credit, told = shown_credit
        stage.credit, stage.consumer, stage.sent = Handle(credit), consumer.memory, set(told.segments)
        told_consumer = told.linked
        stage.consumer_incarnation = consumer.incarnation
        stage.resume = max(stage.resume, told.resume)
    elif kept_credit is not None:
        stage.credit, stage.consumer = Handle(kept_credit[1]), kept.memory(route.target)
        stage.consumer_incarnation = kept_credit[0].incarnation
        told_consumer = stage.ring is not None  # each end was stored before the other worker was told of it
        stage.resume = max(stage.resume, kept_credit[0].resume)
    if kept_ring is not None:
        told_producer = told_consumer or _has_frames(kept_ring[1])
    elif stage.ring is None and route.source in dead:
        told_producer = told_consumer
    if stage.ring is not None or told_producer:
        stage.producer_end = ProducerEnd.LINKED if told_producer else ProducerEnd.OFFERED
        if told_producer and shown_credit is not None and not told_consumer:
            stage.producer_end = ProducerEnd.STALE  # the consumer's end of their wake-up line died with the daemon
    if stage.credit is not None or told_consumer:
        stage.consumer_end = ConsumerEnd.LINKED if told_consumer else ConsumerEnd.OFFERED
    if stage.producer is not None:
        stage.producer.stages += 1
    for fd in (stage.ring, stage.credit):
        if fd is not None:
            stage.base_seq = layout.base_seq(fd)
    return stage


def _has_frames(ring: int) -> bool:
    """Return whether the dead producer of this RING has sent anything. A corrupt RING counts as if it had."""
    try:
        return shm.remains(ring)[0] > 0
    except shm.PeerFault:
        return True  # the error is reported when a successor continues from it


def missing_memory(
    stages: Iterable[Stage], dead: Container[str], kept: RecoveredMemory, late: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield what the successor of a dead node would need and does not exist: (node, predicate of a sentence about it).
    ``late`` tells how workers died that died under this daemon."""

    def lost(node: str, what: str) -> tuple[str, str]:
        return node, f"{late.get(node, 'died while no daemon was there')}, and {what}"

    for stage in stages:
        name = stage.route.id
        if stage.route.source in dead and not stage.ended and stage.told_consumer and stage.ring is None:
            yield lost(stage.route.source, f"where its route {name!r} ended is lost")
        if stage.route.target not in dead:
            continue
        if stage.route.source in dead and stage.ring is None and stage.credit is None and not kept.whole:
            yield lost(stage.route.source, f"what it had sent on {name!r} is lost")
        if stage.told_producer and stage.credit is None and not kept.whole:
            yield lost(stage.route.target, f"what it had returned on {name!r} is lost")
        if stage.told_consumer and stage.ring is None and stage.ended:
            yield lost(stage.route.target, f"what it had to drain of {name!r} is lost")


def node_ends(
    node: str, had: ReattachedMemory | None, outputs: list[DataRoute], inputs: list[DataRoute], *, over: bool
) -> NodeEnds:
    """Return a node in the state that it had before the daemon died; ``over`` if its worker had finished."""
    found = NodeEnds(node, list(outputs), list(inputs), source=not inputs)
    if had is not None:
        found.memory = had.memory
        found.memory.incarnation = found.incarnation = had.incarnation
        found.state, found.reattached = MemoryState.STARTED, True
    if over:
        found.state = MemoryState.GONE
    return found


def attach_recovered(node_ends: NodeEnds, kept: RecoveredMemory, incarnation: int) -> None:
    """Give ``node_ends``, whose worker is dead, the memory that was stored for it."""
    node_ends.memory = kept.memory(node_ends.node)
    node_ends.incarnation = incarnation
    if not node_ends.gone:
        node_ends.state = MemoryState.STARTED


def memories(stages: Iterable[Stage], nodes: Mapping[str, NodeEnds]) -> dict[Key, int]:
    """Return the memory that has to outlive the daemon and the workers of these stages: every RING with its arena, and
    of each stage the CREDIT of its consumer, and the predecessor's until that consumer has started."""
    found: dict[Key, int] = {}
    for stage in stages:
        route, epoch = stage.route, stage.epoch
        if stage.ring is not None and stage.producer is not None:
            incarnation = stage.producer.incarnation
            found[Key(route.source, "ring", incarnation, route.id, epoch, stage.resume)] = stage.ring
            for index, fd in stage.producer.segments.items():
                found[Key(route.source, "segment", incarnation, "", index)] = fd
        if stage.credit is not None:
            incarnation = stage.consumer_incarnation
            found[Key(route.target, "credit", incarnation, route.id, epoch, stage.resume)] = stage.credit
        ran = stage.told_consumer and nodes[route.target].started
        if stage.predecessor is not None and not ran:
            incarnation = stage.predecessor_incarnation
            found[Key(route.target, "credit", incarnation, route.id, epoch, stage.resume)] = stage.predecessor
    return found
