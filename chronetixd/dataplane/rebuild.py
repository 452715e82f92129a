"""The shared memory of a flow put together again from what its workers show: for a daemon that has outlived none of it.

Each worker that comes back shows all of its own memory; checked like any offer. What belonged to one that is dead was
kept by nobody but its peers' mappings, unless the supervisor kept it (``kept``, which :func:`memories` asks it to).
Rules: a stage is what its two ends agree on; what a living worker shows is newer than what was kept; where the end of a
dead node is missing that a successor would need, the flow cannot go on, and that is told.
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
    """What one node has: of its own showing, or kept for one that is dead."""

    memory: Memory
    rings: dict[tuple[str, int], tuple[int, ReattachedStage]] = field(default_factory=dict)
    credits: dict[tuple[str, int], tuple[int, ReattachedStage]] = field(default_factory=dict)
    unconfirmed: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    incarnation: int = 0


def shown(
    node: str, outputs: Iterable[DataRoute], inputs: Iterable[DataRoute], message: Reattach, descriptors: list[int]
) -> ReattachedMemory:
    """Check what ``node`` shows; takes ``descriptors`` over (empties the list).

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
    """What it says of its segments can be."""
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
    """The stages of ``route``, oldest first, from what its two nodes have, or what was kept of it. ``dead`` nodes are
    to have successors."""
    rings = {epoch for name, epoch in producer.rings if name == route.id} if producer is not None else set()
    credits = {epoch for name, epoch in consumer.credits if name == route.id} if consumer is not None else set()
    known = kept.epochs(route.id)
    if credits:
        known = {epoch for epoch in known if epoch >= min(credits)}  # the others it has drained
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
        told_consumer = stage.ring is not None  # each was kept before anybody was told of the other
        stage.resume = max(stage.resume, kept_credit[0].resume)
    if kept_ring is not None:
        told_producer = told_consumer or _has_frames(kept_ring[1])
    elif stage.ring is None and route.source in dead:
        told_producer = told_consumer
    if stage.ring is not None or told_producer:
        stage.producer_end = ProducerEnd.LINKED if told_producer else ProducerEnd.OFFERED
        if told_producer and shown_credit is not None and not told_consumer:
            stage.producer_end = ProducerEnd.STALE  # the consumer's end of their line has gone with the daemon
    if stage.credit is not None or told_consumer:
        stage.consumer_end = ConsumerEnd.LINKED if told_consumer else ConsumerEnd.OFFERED
    if stage.producer is not None:
        stage.producer.stages += 1
    for fd in (stage.ring, stage.credit):
        if fd is not None:
            stage.base_seq = layout.base_seq(fd)
    return stage


def _has_frames(ring: int) -> bool:
    """Something was sent by its maker, who is dead."""
    try:
        return shm.remains(ring)[0] > 0
    except shm.PeerFault:
        return True  # whoever goes on from it will be told


def missing(
    stages: Iterable[Stage], dead: Container[str], kept: RecoveredMemory, late: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """What the successor of a dead node would need and nobody has: (node, the rest of a sentence about it). ``late``
    says of those that died under this daemon how."""

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
    """A node as it was before the daemon died; ``over`` if it had come to its end."""
    found = NodeEnds(node, list(outputs), list(inputs), source=not inputs)
    if had is not None:
        found.memory = had.memory
        found.memory.incarnation = found.incarnation = had.incarnation
        found.state, found.reattached = MemoryState.STARTED, True
    if over:
        found.state = MemoryState.GONE
    return found


def bury(node_ends: NodeEnds, kept: RecoveredMemory, incarnation: int) -> None:
    """Its worker is dead: what there is of it was kept."""
    node_ends.memory = kept.memory(node_ends.node)
    node_ends.incarnation = incarnation
    if not node_ends.gone:
        node_ends.state = MemoryState.STARTED


def memories(stages: Iterable[Stage], places: Mapping[str, NodeEnds]) -> dict[Key, int]:
    """What has to outlive the daemon and the workers of these stages: every RING with its arena; of each stage the
    CREDIT of its consumer, and the predecessor's until that one has started."""
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
        ran = stage.told_consumer and places[route.target].started
        if stage.predecessor is not None and not ran:
            incarnation = stage.predecessor_incarnation
            found[Key(route.target, "credit", incarnation, route.id, epoch, stage.resume)] = stage.predecessor
    return found
