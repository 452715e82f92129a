"""Several threads on the same ends: whoever copies keeps what it copies from mapped, whatever the others do meanwhile;
the last one that leaves gives it up."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronetix import shm
from tests.shm.lines import attach, join

BIG = 12 << 20  # bytes; long enough for others to run while it is copied
ROUNDS = 4


class Latest:
    """A route of policy latest in this process, whose memory holds one big frame beside small ones."""

    def __init__(self, *, credits: int = 4, room: int = BIG + (2 << 20), small: int = 1 << 18) -> None:
        self.bell = shm.Doorbell()
        self.arena = shm.Arena(4 * room, first=small, on_grow=self.grow, on_drop=self.drop)
        self.credits = credits
        self.producer = shm.Producer(self.arena, "r", credits=credits, policy="latest")
        self.consumer: shm.Consumer | None = shm.Consumer("r", credits=credits)
        join(self.producer, self.bell, self.consumer, self.bell)
        for index, fd, _ in self.arena.segments:
            self.consumer.add_segment(index, fd)
        self.outlet, self.inlet = shm.Outlet([self.producer], self.bell), shm.Inlet([self.consumer], self.bell)
        self.drained: list[int] = []

    def grow(self, index: int, fd: int, _size: int) -> None:
        if self.consumer is not None:
            self.consumer.add_segment(index, fd)
        self.arena.confirm(index)

    def drop(self, index: int) -> None:
        if self.consumer is not None:
            self.consumer.drop_segment(index)
        self.arena.forget(index)

    def succeed(self, base_seq: int) -> shm.Consumer:
        """The next stage, which is never linked."""
        assert self.consumer is not None
        after = shm.Consumer("r", credits=self.credits, epoch=1, base_seq=base_seq)
        self.consumer.succeed(after, lambda: self.drained.append(base_seq))
        return after


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def mapped(name: str) -> int:
    """How often memory of this name is mapped here."""
    with open("/proc/self/maps") as maps:
        return sum(f"/memfd:{name}" in line for line in maps)


@pytest.mark.parametrize("known", [True, False], ids=["known", "known-to-the-inlet-only"])
def test_a_stage_that_is_left_while_a_frame_of_it_is_copied_stays_until_the_copy_is_made(pool, known):
    for _ in range(ROUNDS):
        route = Latest()
        route.outlet.send(b"\1" * BIG)
        after = route.succeed(1)
        rings = mapped("chronetix-ring")
        if not known:
            route.consumer = None
        first = pool.submit(route.inlet.take, 0)
        found = []
        while route.inlet.consumers != (after,):
            found.append(route.inlet.take(0))
        frames = [frame for frame in (first.result(), *found) if frame is not None]
        assert [(frame.seq, len(frame)) for frame in frames] == [(0, BIG)]
        assert (frames[0].numpy() == 1).all()
        assert route.drained == [1], "it was left once, and told once"
        if route.consumer is not None:
            assert (route.consumer.held, route.consumer.lost, route.consumer.linked) == (0, 0, True)
        assert mapped("chronetix-ring") == rings - 1, "only its producer still has it mapped"
        del route, after, first, frames, found


def test_a_batch_that_is_being_copied_keeps_its_stage_too(pool):
    for _ in range(ROUNDS):
        route = Latest(small=BIG + (1 << 20))
        sent = [bytes([number]) * (BIG // 4) for number in range(1, 4)]
        for data in sent:
            route.outlet.send(data)
        after = route.succeed(3)
        batch = pool.submit(route.inlet.take_many, 3, 0)
        found = []
        while route.inlet.consumers != (after,):
            found.append(route.inlet.take(0))
        whole = [(frame.seq, bytes(frame)) for frame in batch.result() or ()]
        whole += [(frame.seq, bytes(frame)) for frame in found if frame is not None]
        assert sorted(whole) == list(enumerate(sent))
        assert route.drained == [3]


def test_a_route_is_not_forgotten_while_a_frame_of_it_is_copied(pool):
    """The inlet has one route, its only owner, and another thread forgets it as soon as it has ended."""
    for _ in range(ROUNDS):
        route = Latest()
        route.outlet.send(b"\2" * BIG)
        route.producer.close()
        inlet, consumer, route.consumer = route.inlet, route.consumer, None
        copied = pool.submit(inlet.take, 0)
        others = [inlet.take(0)]
        while inlet.consumers:
            try:
                inlet.remove(consumer)
            except ValueError:
                others.append(inlet.take(0))
        consumer = None
        gc.collect()
        (frame,) = [frame for frame in (copied.result(), *others) if frame is not None]
        assert (frame.numpy() == 2).all()


def test_a_segment_goes_only_when_nobody_copies_from_it(pool):
    for _ in range(ROUNDS):
        route = Latest(credits=1)
        route.outlet.send(b"\3" * BIG)
        copied = pool.submit(route.inlet.take, 0)
        for number in range(4):
            route.outlet.send(b"%d" % number)  # takes the big one back, read or not
        while route.arena.shrink(0) == 0:
            pass
        assert route.arena.size < BIG
        frame = copied.result()
        assert frame is None or bytes(frame) == b"3" or (len(frame) == BIG and (frame.numpy() == 3).all())
        del copied, frame


def test_an_empty_frame_does_not_hide_one_that_is_copied(pool):
    """Both in one slot: what is noted of the first stays noted when the second is taken."""
    for _ in range(ROUNDS):
        route = Latest(credits=1)  # 8 slots
        route.outlet.send(b"\4" * BIG)
        copied = pool.submit(route.inlet.take, 0)
        for _ in range(8):
            route.outlet.send(b"")
            route.inlet.take(0)
        while route.arena.shrink(0) == 0:
            pass
        frame = copied.result()
        assert frame is None or len(frame) == 0 or (frame.numpy() == 4).all()
        del copied, frame


def test_detaching_and_mapping_more_does_not_disturb_a_copy(pool):
    for _ in range(ROUNDS):
        route = Latest()
        route.outlet.send(b"\5" * BIG)
        copied = pool.submit(route.inlet.take, 0)
        spare = shm.Arena(1 << 20)
        for index in range(8, 40):
            route.consumer.add_segment(index, spare.segments[0][1])
        frame = route.inlet.take(0)
        route.consumer.close()
        (frame,) = [found for found in (frame, copied.result()) if found is not None]
        assert (frame.numpy() == 5).all()
        assert route.consumer.ended


@given(st.data())
@settings(max_examples=12)
def test_whatever_happens_to_a_route_every_frame_is_whole_and_accounted_for(data):
    """Two threads take, one sends; memory comes and goes, and at the end the route goes on to a next stage."""
    sizes = data.draw(st.lists(st.sampled_from([0, 8, 4096, 100_000, 1 << 20]), min_size=5, max_size=60))
    limit = data.draw(st.integers(0, 5))
    shrinks = data.draw(st.sets(st.integers(0, 60)))
    route = Latest(credits=data.draw(st.integers(1, 6)), room=8 << 20, small=1 << 16)
    after = shm.Consumer("r", credits=route.credits, epoch=1, base_seq=len(sizes))

    def take() -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        while route.inlet.consumers != (after,):
            got = route.inlet.take_many(limit, 0) if limit else route.inlet.take(0)
            frames = () if got is None else got if isinstance(got, shm.Batch) else (got,)
            found += [(frame.seq, bytes(frame)) for frame in frames]
        return found

    with ThreadPoolExecutor(2) as pool:
        takers = [pool.submit(take) for _ in range(2)]
        for number, size in enumerate(sizes):
            route.outlet.send(bytes([number]) * size)
            if number in shrinks:
                route.arena.shrink(0)
        assert route.consumer is not None
        route.consumer.succeed(after, lambda: route.drained.append(1))
        found = sorted(frame for taker in takers for frame in taker.result())
    assert found == sorted({seq: (seq, data) for seq, data in found}.values()), "none comes twice"
    assert all(data == bytes([seq]) * sizes[seq] for seq, data in found)
    assert len(found) + route.consumer.lost == len(sizes)
    assert route.drained == [1]


def drained(latest: bool) -> tuple[shm.Consumer, Latest]:
    route = Latest()
    consumer = route.consumer
    assert consumer is not None
    if not latest:
        arena = shm.Arena()
        producer, consumer = shm.Producer(arena, "r", credits=4), shm.Consumer("r", credits=4)
        join(producer, route.bell, consumer, route.bell)
        route.arena, route.producer, route.consumer = arena, producer, consumer
        for index, fd, _ in arena.segments:
            consumer.add_segment(index, fd)
        route.outlet, route.inlet = shm.Outlet([producer], route.bell), shm.Inlet([consumer], route.bell)
    route.outlet.send(b"one")
    route.succeed(1)
    frame = route.inlet.take(0)
    assert frame is not None
    frame.release()
    assert route.inlet.take(0) is None
    assert route.drained == [1]
    return consumer, route


@pytest.mark.parametrize("latest", [True, False])
def test_a_drained_stage_answers_everything_that_it_can_be_asked(latest):
    consumer, route = drained(latest)
    assert (consumer.route, consumer.epoch, consumer.held, consumer.lost) == ("r", 0, 0, 0)
    assert consumer.fd >= 0, "somebody may be about to send it"
    assert (consumer.linked, consumer.ended) == (True, False), "it has a next stage"
    for index, fd, _ in route.arena.segments:
        consumer.add_segment(index, fd)
        consumer.add_segment(index, fd)
        consumer.drop_segment(index)
    consumer.drop_segment(4000)
    consumer.close()
    consumer.abandon()
    with pytest.raises(ValueError, match="linked or closed already"):
        attach(consumer.link, route.producer.fd, route.bell)
    with pytest.raises(ValueError, match="has a next one already"):
        consumer.succeed(shm.Consumer("r", credits=4, epoch=2, base_seq=2))


@pytest.mark.parametrize("latest", [True, False])
def test_a_drained_stage_in_a_second_inlet_has_ended_there_too(latest):
    consumer, route = drained(latest)
    other = shm.Inlet([consumer], route.bell)
    route.bell.ring()
    assert other.take(0) is None
    assert other.take(1) is None, "nor does it arm what is gone"
    assert other.consumers == route.inlet.consumers


def test_losses_of_a_drained_stage_can_still_be_asked_for():
    route = Latest(credits=2)
    for number in range(5):
        route.outlet.send(b"%d" % number)
    route.succeed(5)
    while route.inlet.take(0) is not None:
        pass
    assert route.drained == [5]
    assert route.consumer is not None
    assert route.consumer.lost == 3


def test_a_closed_arena_has_no_segments(route):
    route.arena.close()
    assert route.arena.segments == ()
    assert route.arena.inventory == ((), [], [])
    assert route.arena.used == 0
    with pytest.raises(ValueError, match="closed"):
        route.outlet.send(b"x")


def test_an_observer_that_is_closed_while_it_looks_looks_to_the_end(route):
    """Garbage is collected when the answer is made, and what runs then closes it."""
    view = shm.RouteView(route.producer.fd, route.consumer.fd)
    closed = threading.Event()

    def close(phase: str, info: object) -> None:
        view.close()
        closed.set()

    threshold = gc.get_threshold()
    gc.callbacks.append(close)
    gc.set_threshold(1)
    try:
        kept = []
        while not closed.is_set():
            kept.append([view.snapshot()])
        assert kept[-1][0]["credits"] == 8
        with pytest.raises(ValueError, match="closed"):
            view.snapshot()
    finally:
        gc.callbacks.remove(close)
        gc.set_threshold(*threshold)


def test_routes_keep_their_places_while_a_frame_is_claimed():
    """What is called to make room lets go of taps that have ended, as any other thread may then."""

    def grow(index: int, fd: int, size: int) -> None:
        consumers[0].close()
        consumers[1].close()
        with pytest.raises(shm.WouldBlock):
            outlet.loan(1 << 20, 0)  # finds out that they have
        outlet.sweep()
        assert len(outlet.producers) == 3
        arena.confirm(index)

    bell, arena = shm.Doorbell(), shm.Arena(1 << 24, first=1 << 16, on_grow=grow)
    consumers = [shm.Consumer(f"r{i}", credits=4) for i in range(3)]
    tap = {"policy": "latest", "tap": True}
    producers = [shm.Producer(arena, f"r{i}", credits=4, **(tap if i < 2 else {})) for i in range(3)]
    for producer, consumer in zip(producers, consumers, strict=True):
        join(producer, bell, consumer, bell)
    outlet = shm.Outlet(producers, bell)
    outlet.send(bytes(1 << 20), 0)
    assert [producer.loans for producer in producers] == [0, 0, 0]
    assert [producer.outstanding for producer in producers] == [0, 0, 1]
    outlet.sweep()
    assert outlet.producers == (producers[2],)


def test_an_outlet_whose_last_tap_has_ended_says_so():
    bell, arena, consumer = shm.Doorbell(), shm.Arena(), shm.Consumer("tap", credits=4)
    producer = shm.Producer(arena, "tap", credits=4, policy="latest", tap=True)
    attach(producer.link, consumer.fd, bell)
    outlet = shm.Outlet([producer], bell)
    consumer.close()
    del producer
    for _ in range(2):
        with pytest.raises(shm.RouteClosed):
            outlet.send(np.zeros(4))
        outlet.sweep()
    assert len(outlet.producers) == 1
