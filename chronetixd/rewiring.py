"""The shared memory of a flow put together again from what its workers show: for a daemon that has outlived none of it.

Each worker that comes back shows all of its own memory; checked like any offer. What belonged to one that is dead was
kept by nobody but its peers' mappings, unless the supervisor kept it (``kept``). Rules: a stage is what its two ends
agree on; where the end of a dead node is missing that a successor would need, the flow cannot go on, and that is told.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import shm
from chronetixd.stages import DataRoute, Memory, Place, Stage, checked
from protocol.errors import error
from protocol.messages import Reattach
from protocol.messages import Stage as ShownStage


class LostMemory(Exception):
    """``node`` cannot be continued; ``what`` is the rest of a sentence about it."""

    def __init__(self, node: str, what: str) -> None:
        super().__init__(node, what)
        self.node = node
        self.what = what


class Key(NamedTuple):
    """Whose memory it is. ``number`` is the epoch of a ring or credit, or the index of a segment."""

    node: str
    kind: Literal["ring", "credit", "segment"]
    route: str
    number: int


@dataclass(slots=True)
class Shown:
    """What one node has: of its own showing, or kept for one that is dead."""

    memory: Memory
    rings: dict[tuple[str, int], tuple[int, ShownStage]] = field(default_factory=dict)
    credits: dict[tuple[str, int], tuple[int, ShownStage]] = field(default_factory=dict)
    unconfirmed: tuple[int, ...] = ()
    incarnation: int = 0


def shown(
    node: str, outputs: Iterable[DataRoute], inputs: Iterable[DataRoute], message: Reattach, descriptors: list[int]
) -> Shown:
    """Check what ``node`` shows; takes ``descriptors`` over (empties the list).

    Raises ProtocolError ``descriptor-refused`` or ``malformed-message``, and then has kept nothing.
    """
    _check_routes(node, "outputs", message.outputs, {route.id for route in outputs})
    _check_routes(node, "inputs", message.inputs, {route.id for route in inputs})
    if len(set(message.segments)) != len(message.segments) or not set(message.unconfirmed) <= set(message.segments):
        reason = (
            f"segments {message.segments}, unconfirmed {message.unconfirmed}: each once, and the second of the first"
        )
        raise error("malformed-message", type="reattach", reason=reason)
    fds = iter(descriptors)
    try:
        bell = shm.Doorbell(next(fds))
    except (OSError, ValueError, shm.PeerFault) as reason:
        raise error("descriptor-refused", what=f"the doorbell of node {node!r}", reason=str(reason)) from None
    found = Shown(Memory(bell), unconfirmed=tuple(message.unconfirmed), incarnation=message.incarnation)
    try:
        for stage in message.outputs:
            fd = checked(next(fds), "ring", f"the ring of route {stage.route!r}")
            found.rings[stage.route, stage.epoch] = fd, stage
        for stage in message.inputs:
            fd = checked(next(fds), "credit", f"the credits of route {stage.route!r}")
            found.credits[stage.route, stage.epoch] = fd, stage
        for index in message.segments:
            found.memory.segments[index] = checked(next(fds), "segment", f"segment {index} of node {node!r}")
    except BaseException:
        bell.close()
        raise
    os.close(descriptors[0])
    descriptors.clear()
    return found


def _check_routes(node: str, what: str, told: list[ShownStage], known: set[str]) -> None:
    keys = [(stage.route, stage.epoch) for stage in told]
    strange = {stage.route for stage in told} - known
    if strange or len(set(keys)) != len(keys):
        reason = f"{what} of node {node!r} are {sorted(keys)}, but its routes are {sorted(known)}"
        raise error("malformed-message", type="reattach", reason=reason)


def kept_of(node: str, kept: Mapping[Key, int], incarnation: int) -> Shown | None:
    """The memory of ``node``, which is dead, from what the supervisor kept; None when that is nothing.

    Descriptors that do not hold what they should are passed over: they stay the caller's, as do those of other nodes.
    """
    mine = {key: fd for key, fd in kept.items() if key.node == node}
    if not mine:
        return None
    bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # nobody listens any more
    found = Shown(Memory(shm.Doorbell(bell)), incarnation=incarnation)
    os.close(bell)
    for key, fd in mine.items():
        try:
            own = os.dup(checked(fd, key.kind, f"what was kept of {key}"))
        except Exception:
            continue
        if key.kind == "segment":
            found.memory.segments[key.number] = own
        else:
            ends = found.rings if key.kind == "ring" else found.credits
            ends[key.route, key.number] = own, ShownStage(route=key.route, epoch=key.number)
    return found


def chain(route: DataRoute, producer: Shown | None, consumer: Shown | None, dead: set[str]) -> list[Stage]:
    """The stages of ``route``, oldest first, from what its two nodes have. ``dead`` nodes are to have successors."""
    rings = producer.rings if producer is not None else {}
    credits = consumer.credits if consumer is not None else {}
    epochs = sorted({epoch for name, epoch in (*rings, *credits) if name == route.id})
    stages = [_stage(route, epoch, producer, consumer, dead) for epoch in epochs or [0]]
    for earlier in stages[:-1]:
        earlier.ended = True
    return stages


def _stage(route: DataRoute, epoch: int, producer: Shown | None, consumer: Shown | None, dead: set[str]) -> Stage:
    stage = Stage(route, epoch)
    if producer is not None and (route.id, epoch) in producer.rings:
        stage.ring, told = producer.rings[route.id, epoch]
        stage.producer = producer.memory
        producer.memory.stages += 1
        stage.resume = told.resume
        stage.told_producer = told.linked
        stage.base_seq = _base_seq(stage.ring)
    if consumer is not None and (route.id, epoch) in consumer.credits:
        fd, told = consumer.credits[route.id, epoch]
        stage.base_seq = _base_seq(fd)
        stage.credit, stage.consumer = fd, consumer.memory
        stage.told_consumer = told.linked
        stage.sent = set(told.segments)
    if route.source in dead and stage.told_consumer:
        stage.told_producer = True
    return stage


def _base_seq(fd: int) -> int:
    """From the header of a RING or CREDIT, which was checked."""
    (value,) = struct.unpack_from("<Q", os.pread(fd, 64, 0), 24)
    return int(value)


def missing(stages: Iterable[Stage], dead: set[str]) -> Iterator[tuple[str, str]]:
    """What the successor of a dead node would need and nobody has: (node, the rest of a sentence about it)."""
    for stage in stages:
        name = stage.route.id
        if stage.route.source in dead and not stage.ended and stage.told_consumer and stage.ring is None:
            yield stage.route.source, f"died while no daemon was there, and where its route {name!r} ended is lost"
        if stage.route.target in dead and stage.told_producer and stage.credit is None:
            yield stage.route.target, f"died while no daemon was there, and what it had returned on {name!r} is lost"


def place(node: str, had: Shown | None, outputs: list[DataRoute], inputs: list[DataRoute]) -> Place:
    """A node as it was before the daemon died."""
    found = Place(node, list(outputs), list(inputs))
    if had is not None:
        found.memory = had.memory
        found.incarnation = had.incarnation
        found.configured = found.linked = found.ready = found.started = True
    return found
