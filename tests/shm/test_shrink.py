"""Memory of a burst goes back to the machine: whole segments, once every frame of them has come back everywhere."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronetix import shm
from tests.shm.lines import attach, join

MIB = 1 << 20


class Pair:
    """A route in this process whose consumer follows an arena that grows and shrinks, or not yet."""

    def __init__(self, *, limit: int = 64 * MIB, first: int = 1 << 18, credits: int = 64, follows: bool = True) -> None:
        self.dropped: list[int] = []
        self.follows = follows
        self.bell = shm.Doorbell()
        self.consumer = shm.Consumer("r", credits=credits)
        self.arena = shm.Arena(limit, first=first, on_grow=self.grow, on_drop=self.drop)
        self.producer = shm.Producer(self.arena, "r", credits=credits)
        join(self.producer, self.bell, self.consumer, self.bell)
        for index, fd, _ in self.arena.segments:
            self.consumer.add_segment(index, fd)
        self.outlet, self.inlet = shm.Outlet([self.producer], self.bell), shm.Inlet([self.consumer], self.bell)

    def grow(self, index: int, fd: int, _size: int) -> None:
        self.consumer.add_segment(index, fd)
        self.arena.confirm(index)

    def drop(self, index: int) -> None:
        self.dropped.append(index)
        if self.follows:
            self.consumer.drop_segment(index)
            self.arena.forget(index)

    def take(self) -> shm.Frame:
        frame = self.inlet.take(0)
        assert frame is not None
        return frame

    def burst(self, count: int = 8, size: int = MIB) -> None:
        """So many frames on their way at once, and back."""
        for number in range(count):
            self.outlet.send(np.full(size, number, np.uint8))
        for number in range(count):
            assert (self.take().numpy() == number).all()

    @property
    def sizes(self) -> dict[int, int]:
        return {index: size for index, _, size in self.arena.segments}


@pytest.fixture
def pair():
    made = Pair()
    yield made
    made.__dict__.clear()


def mapped() -> int:
    """Bytes of arenas that this process has mapped, writable and read-only."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if "chronetix-arena" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


def test_the_memory_of_a_burst_is_given_back(pair):
    before, open_before = mapped(), len(os.listdir("/proc/self/fd"))
    pair.burst()
    assert pair.arena.size > 8 * MIB
    assert pair.arena.shrink(1 << 18) > 8 * MIB
    assert pair.arena.size == 1 << 18
    assert mapped() == before
    assert len(os.listdir("/proc/self/fd")) == open_before
    pair.burst()


def test_as_much_stays_as_is_asked_for(pair):
    pair.burst()
    whole = pair.arena.size
    assert pair.arena.shrink(whole) == 0
    pair.arena.shrink(4 * MIB)
    assert 4 * MIB <= pair.arena.size < whole


def test_the_first_segment_is_the_last_to_go(pair):
    for keep in (8 * MIB, 4 * MIB, 2 * MIB, 1 << 18):
        pair.burst()
        pair.arena.shrink(keep)
    assert pair.sizes == {0: 1 << 18}


def test_an_arena_that_cannot_tell_its_consumers_keeps_what_it_has():
    arena = shm.Arena(MIB, first=1 << 18)
    assert arena.shrink(0) == 0
    assert arena.size == 1 << 18


def test_a_segment_goes_when_the_last_frame_of_it_is_back(pair):
    pair.outlet.send(bytes(MIB))
    held = pair.take()
    assert pair.arena.shrink(0) == 1 << 18
    assert pair.arena.shrink(0) == 0
    assert bytes(held) == bytes(MIB)
    held.release()
    assert pair.arena.shrink(0) == MIB
    assert (pair.arena.size, pair.arena.used) == (0, 0)
    pair.outlet.send(b"and again")
    assert bytes(pair.take()) == b"and again"


def test_of_a_leaving_segment_nothing_is_handed_out_while_another_has_room():
    pair = Pair(first=2 * MIB)
    pair.outlet.send(bytes(5 * MIB))
    large = pair.take()
    pair.outlet.send(bytes(100))
    pair.take().release()
    assert pair.arena.shrink(2 * MIB) == 0
    pair.outlet.send(np.full(MIB, 3, np.uint8))
    large.release()
    assert pair.arena.shrink(2 * MIB) == 5 * MIB
    assert pair.sizes == {0: 2 * MIB}
    assert (pair.take().numpy() == 3).all()
    pair.__dict__.clear()


def test_a_leaving_segment_stays_when_it_is_needed_after_all():
    pair = Pair(first=4 * MIB)
    pair.outlet.send(bytes(MIB))
    held = pair.take()
    assert pair.arena.shrink(0) == 0
    pair.outlet.send(bytes(MIB))
    assert pair.sizes == {0: 4 * MIB}
    held.release()
    pair.take().release()
    assert pair.arena.shrink(0) == 4 * MIB
    pair.__dict__.clear()


@pytest.mark.parametrize("size", [64, 3000])
def test_slabs_of_a_leaving_segment_empty_themselves(pair, size):
    held = []
    for _ in range(40):
        pair.outlet.send(bytes(size))
        held.append(pair.take())
    assert pair.arena.shrink(0) == 0
    for frame in held[::2] + held[1::2]:
        frame.release()
    assert pair.arena.shrink(0) > 0
    assert pair.arena.size == 0


def test_a_number_is_used_again_only_when_every_consumer_has_forgotten_its_segment():
    pair = Pair(follows=False)
    pair.burst(4)
    pair.arena.shrink(0)
    gone = set(pair.dropped)
    assert gone
    for index in gone:
        pair.consumer.drop_segment(index)
    pair.burst(4)
    assert not gone & set(pair.sizes)
    for index in gone:
        pair.arena.forget(index)
    with pytest.raises(ValueError, match="does not exist"):
        pair.arena.forget(min(gone))
    with pytest.raises(ValueError, match="was not dropped"):
        pair.arena.forget(max(pair.sizes))
    pair.arena.shrink(0)
    pair.dropped.clear()
    pair.burst(1)
    assert set(pair.sizes) <= gone
    pair.__dict__.clear()


def test_a_segment_that_is_dropped_under_a_held_frame_costs_the_producer_its_route(pair):
    pair.outlet.send(b"held")
    held = pair.take()
    with pytest.raises(shm.PeerFault, match="segment 0 was dropped while a frame of it is held"):
        pair.consumer.drop_segment(0)
    assert bytes(held) == b"held"
    with pytest.raises(shm.PeerFault, match="dropped while"):
        pair.inlet.take(0)
    with pytest.raises(shm.RouteClosed):
        pair.outlet.send(b"more")


@pytest.mark.parametrize("index", [1, 65_534, 1 << 40])
def test_a_segment_that_was_never_there_cannot_be_dropped(pair, index):
    with pytest.raises(shm.PeerFault, match="not mapped"):
        pair.consumer.drop_segment(index)


def test_frames_that_came_back_are_not_held(pair):
    for _ in range(3):
        pair.outlet.send_many(bytes(64 * 20), 64)
        batch = pair.inlet.take_many(20, 0)
        assert batch is not None
        batch.release()
    pair.outlet.send(b"")
    empty = pair.take()
    pair.consumer.drop_segment(0)
    empty.release()


def test_a_frame_as_large_as_the_limit_takes_the_place_of_what_is_empty():
    pair = Pair(limit=8 * MIB)
    pair.burst(4)
    pair.outlet.send(np.full(8 * MIB, 7, np.uint8), 0)
    assert list(pair.sizes.values()) == [8 * MIB]
    assert (pair.take().numpy() == 7).all()
    with pytest.raises(shm.FrameTooLarge, match=r"raise resource_claims\.arena_bytes"):
        pair.outlet.send(bytes(8 * MIB + 1), 0)
    pair.burst(4)
    pair.__dict__.clear()


def test_a_large_frame_waits_for_the_place_of_what_is_still_on_its_way():
    pair = Pair(limit=8 * MIB)
    pair.outlet.send(b"small")
    held = pair.take()
    with pytest.raises(shm.WouldBlock, match="no room"):
        pair.outlet.send(bytes(8 * MIB), 0)
    assert not pair.outlet.wait(0)
    held.release()
    assert pair.outlet.wait(0)
    pair.outlet.send(bytes(8 * MIB), 0)
    pair.__dict__.clear()


def test_an_announcement_that_fails_is_made_again(pair):
    pair.burst()
    tell, pair.follows = pair.drop, False
    failures = [OSError("the daemon is gone")]

    def once(index: int) -> None:
        if failures:
            raise failures.pop()
        tell(index)

    arena = shm.Arena(8 * MIB, first=1 << 18, on_drop=once)
    with pytest.raises(OSError, match="the daemon is gone"):
        arena.shrink(0)
    arena.shrink(0)
    assert pair.dropped == [0]


def test_peaks_are_what_was_used_at_most_since_the_last_look(pair):
    pair.burst(2)
    assert 2 * MIB <= pair.arena.take_peak() < 3 * MIB
    assert pair.arena.take_peak() == 0
    pair.outlet.send(bytes(4096))
    held = pair.take()
    pair.arena.take_peak()
    assert pair.arena.take_peak() == 4096
    held.release()


STEPS = st.lists(
    st.one_of(
        st.integers(0, 600_000).map(lambda n: ("send", n)),
        st.integers(0, 200).map(lambda n: ("send", n)),
        st.integers(0, 30).map(lambda i: ("release", i)),
        st.integers(0, 30).map(lambda i: ("release", i)),
        st.integers(0, 2 * MIB).map(lambda n: ("shrink", n)),
    ),
    max_size=80,
)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_frames_stay_whole_whatever_comes_and_goes(steps):
    pair = Pair(limit=4 * MIB, first=1 << 16, credits=32)
    held: list[tuple[shm.Frame, int, int]] = []
    frame: shm.Frame | None = None
    for number, (what, value) in enumerate(steps):
        if what == "send":
            try:
                pair.outlet.send(np.full(value, number & 0xFF, np.uint8), 0)
            except shm.WouldBlock:
                continue
            held.append((pair.take(), number & 0xFF, value))
        elif what == "shrink":
            pair.arena.shrink(value)
        elif held:
            frame, mark, size = held.pop(value % len(held))
            assert len(frame) == size
            assert (frame.numpy() == mark).all()
            del frame
    for frame, mark, size in held:
        assert len(frame) == size
        assert (frame.numpy() == mark).all()
    frame = None
    held.clear()
    pair.arena.shrink(0)
    assert (pair.arena.used, pair.arena.size) == (0, 0)
    pair.__dict__.clear()


def test_a_machine_without_memory_for_twice_as_much_gives_what_is_needed(spawn):
    def child(end) -> None:
        arena, consumer = shm.Arena(1 << 30, first=64 * MIB), shm.Consumer("r", credits=200)
        producer = shm.Producer(arena, "r", credits=200)
        attach(producer.link, consumer.fd, end.bell)
        outlet = shm.Outlet([producer], end.bell)
        for _ in range(63):
            outlet.send(bytes(MIB))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 32 * MIB, resource.RLIM_INFINITY))
        with pytest.raises(MemoryError, match="cannot reserve"):
            outlet.loan(100 * MIB, 0)
        with pytest.raises(shm.WouldBlock, match="no room"):
            outlet.loan(48 * MIB, 0)  # there will be room for it
        outlet.loan(4 * MIB, 0).cancel()
        assert [size for _, _, size in arena.segments] == [64 * MIB, 4 * MIB]
        end.say()

    other = spawn(child)
    other.end.hear()
    other.join()
