"""A snapshot is what was written or is refused, and everything that has state is in it."""

from __future__ import annotations

import dataclasses
import enum
import fcntl
import os
import socket
import types
import typing
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronetix.protocol.errors import ChronetixError
from chronetixd.core import packed as core_packed
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.packed import PackedFlow, PackedWorker
from chronetixd.core.router import Router, topic_of
from chronetixd.core.timers import Timers
from chronetixd.core.wiring.stages import DataRoute, Memory, NodeEnds, Stage
from chronetixd.core.wiring.states import ConsumerEnd, MemoryState, ProducerEnd
from chronetixd.core.worker import WorkerMachine
from chronetixd.dataplane.lines import Lines
from chronetixd.dataplane.pack import (
    PackedMemory,
    PackedNodeEnds,
    PackedStage,
    Packer,
    Unpacker,
    consumer_end,
    producer_end,
)
from chronetixd.flows.pack import PackedRun
from chronetixd.flows.registry import PackedFlows, PackedListed
from chronetixd.packing import Bag, Packed, Unbag
from chronetixd.settings import Settings
from chronetixd.upgrade import snapshot as snapshots
from chronetixd.upgrade.snapshot import Snapshot, read, write
from tests.shm.lines import is_shut

WHOLE = {PackedRun, PackedListed, PackedFlows}
"""So much at once that nothing is found out by trying them at random."""

PARTS = [
    kind
    for kind in (*Packed.__subclasses__(), *vars(core_packed).values())
    if getattr(kind, "__name__", "").startswith("Packed") and kind not in WHOLE
]

PLAIN = {
    int: st.integers(-(1 << 63), (1 << 64) - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=5),
    bytes: st.binary(max_size=5),
    bool: st.booleans(),
    type(None): st.none(),
    Any: st.none() | st.integers(0, 9) | st.text(max_size=3) | st.lists(st.booleans(), max_size=1),
}


def of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type as it stands in a snapshot."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if kind is Settings:
        return st.just(Settings(socket="/s", state_dir="/d"))
    if origin is Annotated:
        return st.integers(0, 1000) if args[0] is int else of(args[0])
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([of(arg) for arg in args])
    if origin is list:
        return st.lists(of(args[0]), max_size=1)
    if origin is dict:
        return st.dictionaries(of(args[0]), of(args[1]), max_size=1)
    if origin is tuple:
        return st.lists(of(args[0]), max_size=1).map(tuple) if args[-1] is ... else st.tuples(*map(of, args))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(list(kind))
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{name: of(hints[name]) for name in names_of(kind)})


def names_of(kind: Any) -> list[str]:
    """The fields of a struct, named tuple or dataclass."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    names = list(getattr(kind, "_fields", None) or getattr(kind, "__struct_fields__", ()))
    assert names, f"{kind} cannot be made"
    return names


@contextmanager
def memfd(data: bytes, seal: bool = True) -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, data)
        if seal:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield fd
    finally:
        os.close(fd)


def content(snapshot: Snapshot) -> bytes:
    fd = write(snapshot)
    try:
        assert read(fd) == snapshot
        return os.pread(fd, 1 << 30, 0)
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def daemon() -> Snapshot:
    """One of a daemon that has one of everything."""
    snapshot = made_of(Snapshot)
    assert isinstance(snapshot, Snapshot)
    return snapshot


def made_of(kind: Any) -> Any:
    """A value with one of everything in it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind in PLAIN:
        return {int: 3, float: 0.5, str: "text", bytes: b"bytes", bool: True, Any: {"any": 1}}.get(kind)
    if kind is Settings:
        return Settings(socket="/s", state_dir="/d")
    if origin is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return (args or list(kind))[0]
    if origin in (Annotated, typing.Union, types.UnionType):
        return made_of(args[0])
    if origin is list:
        return [made_of(args[0])]
    if origin is dict:
        return {made_of(args[0]): made_of(args[1])}
    if origin is tuple:
        return tuple(made_of(arg) for arg in args if arg is not ...)
    hints = typing.get_type_hints(kind, include_extras=True)
    return kind(**{name: made_of(hints[name]) for name in names_of(kind)})


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_every_part_is_read_as_it_was_written(kind: Any) -> None:
    @settings(max_examples=25)
    @given(of(kind))
    def check(part: Any) -> None:
        written = msgspec.msgpack.encode(part)
        assert msgspec.msgpack.encode(msgspec.msgpack.decode(written, type=kind)) == written

    check()


def test_what_is_written_is_what_is_read(daemon: Snapshot) -> None:
    with memfd(content(daemon)) as fd:
        assert content(read(fd)) == os.pread(fd, 1 << 30, 0)


@given(st.data())
def test_a_byte_that_is_not_what_was_written_is_noticed(daemon: Snapshot, data: st.DataObject) -> None:
    whole = bytearray(content(daemon))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with memfd(bytes(whole)) as fd, pytest.raises(ChronetixError, match="snapshot-unreadable"):
        read(fd)


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda rest: snapshots.MAGIC + rest))
def test_garbage_is_refused(garbage: bytes) -> None:
    with memfd(garbage) as fd, pytest.raises(ChronetixError, match="snapshot-unreadable"):
        read(fd)


@given(st.binary(max_size=100))
def test_so_is_garbage_in_a_frame_that_is_right(garbage: bytes) -> None:
    head = snapshots._HEAD.pack(snapshots.MAGIC, snapshots.FORMAT, zlib.crc32(garbage), len(garbage))
    with memfd(head + garbage) as fd, pytest.raises(ChronetixError, match="snapshot-unreadable"):
        read(fd)


def test_what_can_still_be_written_to_is_refused() -> None:
    with memfd(b"", seal=False) as fd, pytest.raises(ChronetixError, match="not sealed"):
        read(fd)


def test_what_is_no_memfd_is_refused() -> None:
    read_end, write_end = os.pipe()
    with pytest.raises(ChronetixError, match="not a memfd"):
        read(read_end)
    os.close(read_end)
    os.close(write_end)


def test_a_newer_format_is_refused_and_named() -> None:
    head = snapshots._HEAD.pack(snapshots.MAGIC, 7, 0, 0)
    with memfd(head) as fd, pytest.raises(ChronetixError, match="format 7, this release reads 2"):
        read(fd)


def test_a_field_that_this_release_does_not_know_is_refused() -> None:
    class Newer(PackedMemory, frozen=True):
        important: int = 1

    with pytest.raises(msgspec.ValidationError, match="important"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(Newer()), type=PackedMemory)


NOT_OF_A_FLOW = {"name", "edges", "peers", "consumers", "restart_state", "sources", "tally", "waves"} | {
    "fed",
    "leaving",
    "overdue",
    "retired",
    "retiring",
}
"""What follows from the flow, and what there is only while a roll-out is under way: then it is not handed over."""


class TestEverythingIsInIt:
    """Who adds state to one of these has to say what becomes of it in an upgrade."""

    @pytest.mark.parametrize(
        ("kind", "struct", "elsewhere", "states"),
        [
            (
                Stage,
                PackedStage,
                {"held", "producer_end", "consumer_end"},
                {"told_producer", "relink", "told_consumer", "line"},
            ),
            (Memory, PackedMemory, {"closed"}, set()),
            (
                NodeEnds,
                PackedNodeEnds,
                {"node", "outputs", "inputs", "state"},
                {"configured", "linked", "ready", "started", "gone"},
            ),
        ],
        ids=["stage", "memory", "node"],
    )
    def test_of_shared_memory(
        self, kind: type, struct: type[msgspec.Struct], elsewhere: set[str], states: set[str]
    ) -> None:
        """``states`` are what the snapshot has in place of a state."""
        assert set(kind.__slots__) - elsewhere | states == set(struct.__struct_fields__)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("state", MemoryState)
    def test_a_node_is_in_the_state_that_it_was_in(self, state: MemoryState) -> None:
        before, after = NodeEnds("n", state=state), NodeEnds("n")
        if state in range(MemoryState.OFFERED, MemoryState.GONE):
            before.memory = Memory()
        packer = Packer(Bag(), Lines())
        packed = packer.node_ends(before)
        Unpacker(*packer.all(), (), Unbag([]), Lines()).node_ends(after, packed)
        assert after.state is state

    @pytest.mark.parametrize("first", [0, 1])
    def test_the_end_of_a_line_that_is_still_to_be_given_is_handed_over(self, first: int) -> None:
        """Each is that of the end it is for: a consumer rings a producer by a byte, and not the other way round."""
        route, bag, before, after = DataRoute("r", "a", "b"), Bag(), Lines(), Lines()
        stage = Stage(route, lines=3)
        given = before.take(stage.line[first])
        packer = Packer(bag, before)
        packer.stages([stage])
        unpacker = Unpacker(*packer.all(), [route], Unbag(bag.descriptors), after)
        (again,) = unpacker.stages([0])
        with socket.socket(fileno=given) as one, socket.socket(fileno=after.take(again.line[1 - first])) as other:
            producer, consumer = (one, other) if again.line[first].end == "producer" else (other, one)
            consumer.send(b"x")
            assert producer.recv(8) == b"x"
            assert not is_shut(consumer)
        before.close(stage.line[1 - first])

    @pytest.mark.parametrize("producer", ProducerEnd)
    @pytest.mark.parametrize("consumer", ConsumerEnd)
    def test_a_stage_is_in_the_states_that_it_was_in(self, producer: ProducerEnd, consumer: ConsumerEnd) -> None:
        there = {"ring": 0 if producer is not ProducerEnd.AWAITED else None}
        there["credit"] = 0 if consumer is not ConsumerEnd.AWAITED else None
        route = DataRoute("r", "a", "b")
        stage = Stage(route, producer_end=producer, consumer_end=consumer, **there)  # type: ignore[arg-type]
        packer = Packer(Bag(), Lines())
        packer.stages([stage])
        (packed,), _ = packer.all()
        assert (producer_end(packed), consumer_end(packed)) == (producer, consumer)

    @pytest.mark.parametrize(
        ("kind", "struct", "elsewhere"),
        [
            (FlowMachine, PackedFlow, NOT_OF_A_FLOW),
            (WorkerMachine, PackedWorker, {"node", "tally", "_state"}),
        ],
        ids=["flow", "worker"],
    )
    def test_of_machines(self, kind: type, struct: type[msgspec.Struct], elsewhere: set[str]) -> None:
        in_parts = {"deaths", "groups", "parked"} if kind is FlowMachine else {"state"}
        assert set(kind.__slots__) - elsewhere | in_parts == set(struct.__struct_fields__)  # type: ignore[attr-defined]


class TestTheBus:
    def test_requests_subscriptions_and_turns_go_on(self) -> None:
        router, following, shared = Router(), Router(), topic_of("", "/t")
        for peer in (("f", "a"), ("f", "b"), ("g", "c")):
            router.subscribe(peer, shared)
            router.subscribe(peer, topic_of(peer[0], "own"))
        router.request(("f", "x"), shared, {"topic": "/t", "corr_id": "1"}, b"", 100, 1000)
        router.request(("f", "x"), shared, {"topic": "/t", "corr_id": "2"}, b"", 50, 1000)
        packed = router.packed(lambda peer: peer)  # type: ignore[arg-type, return-value]
        following.unpack(msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=type(packed)), lambda key: key)
        assert following.packed(lambda peer: peer) == packed  # type: ignore[arg-type, return-value]
        for each in (router, following):
            ended = each.expire(1060)
            assert [(end.to, end.corr_id, end.reason) for end in ended] == [(("f", "x"), "2", "timeout")]
            answer = each.reply(("f", "a"), "r1", b"yes", "text/plain")
            assert answer is not None
            assert (answer.to, answer.corr_id) == (("f", "x"), "1")
            asked = each.request(("f", "x"), shared, {"topic": "/t", "corr_id": "3"}, b"", 50, 2000)
            assert asked.to == ("g", "c"), "whose turn it is"
            told = [delivery.to for delivery in each.publish(topic_of("f", "own"), {}, b"")]
            assert told == [("f", "a"), ("f", "b")], "a topic belongs to its flow in the next image, too"

    @given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 200)), min_size=1, max_size=5), st.integers(0, 300))
    def test_ticks_are_due_as_they_were(self, made: list[tuple[int, int]], looked: int) -> None:
        timers, following = Timers(), Timers()
        for number, (interval, at) in enumerate(made):
            timers.add(("f", "n"), str(number), interval, at)
        for due in timers.due(looked)[::2]:
            timers.withhold(due)
        packed = timers.packed(lambda owner: owner)  # type: ignore[arg-type, return-value]
        following.unpack(packed, lambda key: key)
        assert following.packed(lambda owner: owner) == packed  # type: ignore[arg-type, return-value]
        assert following.next_ns() == timers.next_ns()
        assert following.due(looked + 77) == timers.due(looked + 77)
