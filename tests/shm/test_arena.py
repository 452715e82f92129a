"""The allocator, seen from outside: extents never overlap, all memory comes back, and growth follows its rules."""

from __future__ import annotations

import resource
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronetix import shm
from tests.shm.lines import attach, join

SMALL_MAX, SLAB_BYTES = 3584, 8 * 4096
"""As in arena.h: what is larger has pages of its own; where what is smaller lies together with its like."""


def address(buffer: object) -> int:
    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])


def alone(limit: int, first: int, credits: int = 1000) -> tuple[shm.Arena, shm.Outlet, shm.Consumer]:
    """An arena that grows by itself, with one route nobody reads from."""
    arena, bell = shm.Arena(limit, first=first), shm.Doorbell()
    consumer, producer = shm.Consumer("r", credits=credits), shm.Producer(arena, "r", credits=credits)
    attach(producer.link, consumer.fd, bell)
    return arena, shm.Outlet([producer], bell), consumer


STEPS = st.lists(
    st.one_of(
        st.integers(1, 4096).map(lambda n: ("lend", n)),
        st.integers(3000, 300_000).map(lambda n: ("lend", n)),
        st.integers(0, 10_000).map(lambda i: ("end", i)),
        st.integers(0, 10_000).map(lambda i: ("end", i)),
    ),
    max_size=200,
)


@given(STEPS, st.sampled_from([1 << 16, 1 << 20]))
@settings(max_examples=150, deadline=None)
def test_extents_never_overlap_and_all_memory_comes_back(steps, first):
    arena, outlet, _consumer = alone(1 << 23, first)
    lent: list[tuple[shm.Loan, int, int]] = []
    for number, (what, value) in enumerate(steps):
        if what == "lend":
            try:
                loan = outlet.loan(value, 0)
            except shm.WouldBlock:
                continue
            start = address(loan)
            assert start % 64 == 0
            assert all(start + value <= other or other + size <= start for _, other, size in lent)
            np.frombuffer(loan, np.uint8)[:] = number & 0xFF
            lent.append((loan, start, value))
        elif lent:
            loan, _, _ = lent.pop(value % len(lent))
            view = np.frombuffer(loan, np.uint8)
            assert (view == view[0]).all(), "somebody else wrote into this extent"
            del view
            loan.cancel()
    assert arena.used <= arena.size <= arena.limit
    for loan, _, _ in lent:
        loan.cancel()
    assert arena.used == 0
    outlet.loan(max(size for _, _, size in arena.segments), 0).cancel()


@pytest.mark.parametrize("size", [1, 64, 3000, 5000, 100_000, 1 << 20])
def test_what_was_freed_last_is_handed_out_first(size):
    _arena, outlet, _consumer = alone(1 << 24, 1 << 24)
    loans = [outlet.loan(size) for _ in range(5)]
    where = [address(loan) for loan in loans]
    for i in (1, 3, 0):
        loans[i].cancel()
    again = [outlet.loan(size) for _ in range(3)]
    assert [address(loan) for loan in again] == [where[0], where[3], where[1]]


def test_the_arena_doubles_up_to_its_limit():
    arena, outlet, _consumer = alone(1 << 20, 1 << 16)
    loans = [outlet.loan(1 << 14) for _ in range(64)]
    assert [size for _, _, size in arena.segments] == [1 << n for n in (16, 16, 17, 18, 19)]
    assert arena.size == arena.used == arena.limit == 1 << 20
    with pytest.raises(shm.WouldBlock, match="1048576 of at most 1048576 arena bytes are in use"):
        outlet.loan(1 << 14, 0)
    loans.pop().cancel()
    outlet.loan(1 << 14, 0)


def test_a_large_frame_gets_a_segment_of_its_size():
    arena, outlet, _consumer = alone(1 << 24, 1 << 16)
    outlet.send(bytes(5_000_000))
    assert [size for _, _, size in arena.segments] == [1 << 16, 5_001_216]


def test_a_frame_beyond_the_limit_is_refused_for_good():
    _arena, outlet, _consumer = alone(1 << 20, 1 << 16)
    with pytest.raises(shm.FrameTooLarge, match=r"1048577 bytes .* limit is 1048576 .* resource_claims\.arena_bytes"):
        outlet.send(bytes((1 << 20) + 1))
    with pytest.raises(shm.FrameTooLarge):
        outlet.loan(1 << 40)
    with pytest.raises(shm.FrameTooLarge):
        outlet.send(bytes(1 << 20), 0)  # below the limit, but the first segment has taken a piece of it
    outlet.send(bytes((1 << 20) - (1 << 16)), 0)


def test_a_new_segment_is_used_only_when_confirmed():
    grown = []
    arena = shm.Arena(1 << 20, first=1 << 16, on_grow=lambda *segment: grown.append(segment))
    bell, consumer, producer = shm.Doorbell(), shm.Consumer("r"), shm.Producer(arena, "r")
    attach(producer.link, consumer.fd, bell)
    outlet = shm.Outlet([producer], bell)
    for _ in range(3):
        with pytest.raises(shm.WouldBlock):
            outlet.send(bytes(100_000), 0)
    assert grown == [(1, arena.segments[1][1], 102_400)]
    assert not outlet.wait(0)
    arena.confirm(1)
    arena.confirm(1)
    assert outlet.wait(0)
    outlet.send(bytes(100_000), 0)
    with pytest.raises(ValueError, match="segment 7 does not exist"):
        arena.confirm(7)


def test_a_failing_announcement_is_raised_and_tried_again():
    calls = []

    def announce(index: int, fd: int, size: int) -> None:
        calls.append(index)
        if len(calls) == 1:
            raise OSError("the daemon is gone")

    arena = shm.Arena(1 << 20, first=1 << 16, on_grow=announce)
    bell, consumer, producer = shm.Doorbell(), shm.Consumer("r"), shm.Producer(arena, "r")
    attach(producer.link, consumer.fd, bell)
    outlet = shm.Outlet([producer], bell)
    with pytest.raises(OSError, match="the daemon is gone"):
        outlet.send(bytes(100_000), 0)
    with pytest.raises(shm.WouldBlock):
        outlet.send(bytes(100_000), 0)
    assert calls == [1, 1]
    assert len(arena.segments) == 2


def test_a_frame_in_a_segment_not_mapped_yet_waits_for_it(make_route):
    route = make_route(limit=1 << 20)
    arena, bell = shm.Arena(1 << 20, first=1 << 16), shm.Doorbell()
    consumer, producer = shm.Consumer("late"), shm.Producer(arena, "late")
    join(producer, bell, consumer, bell)
    inlet, outlet = shm.Inlet([consumer], bell), shm.Outlet([producer], bell)
    outlet.send(b"early")
    assert inlet.take(0) is None
    assert inlet.take(1000) is None
    assert inlet.arm()
    consumer.add_segment(0, arena.segments[0][1])
    frame = inlet.take(0)
    assert frame is not None
    assert bytes(frame) == b"early"
    assert route.inlet.take(0) is None


@pytest.mark.parametrize(("limit", "first"), [(65535, 1), (0, 1), (1 << 44, 1), (1 << 20, -1), (1 << 20, 1 << 21)])
def test_senseless_sizes_are_refused(limit, first):
    with pytest.raises(ValueError, match="must be from"):
        shm.Arena(limit, first=first)


def test_memory_that_the_machine_does_not_have_is_an_error_at_once():
    _arena, outlet, _consumer = alone(1 << 42, 1 << 16)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, hard))  # should the kernel be asked after all, it refuses too
    try:
        with pytest.raises(MemoryError, match="cannot reserve 2199023255552 bytes"):
            outlet.loan(1 << 41, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    outlet.send(b"still fine", 0)


def addresses(loans: list[shm.Loan]) -> list[int]:
    return [address(loan) for loan in loans]


@pytest.mark.parametrize("size", [64, 1024, SMALL_MAX])
def test_a_full_slab_hands_out_again_what_was_freed_in_it(size: int) -> None:
    """A slab is in no list while it is full, and back in it with the first object that is freed."""
    arena, outlet, _consumer = alone(1 << 22, 1 << 22, credits=8192)
    loans = [outlet.loan(size, 0)]
    slab = SLAB_BYTES // arena.used
    loans += [outlet.loan(size, 0) for _ in range(3 * slab - 1)]
    where = addresses(loans)
    assert len(set(where)) == 3 * slab
    assert [max(part) - min(part) < SLAB_BYTES for part in (where[:slab], where[slab : 2 * slab])] == [True, True]
    used = arena.used
    for at in (0, slab - 1, slab, 2 * slab + 1):
        loans[at].cancel()
        again = outlet.loan(size, 0)
        assert address(again) == where[at]
        loans[at] = again
    for at in (1, slab + 1):
        loans[at].cancel()
    assert arena.used == used - 2 * used // (3 * slab)
    for at in (slab + 1, 1):  # the slab in which something was freed last comes first
        loans[at] = outlet.loan(size, 0)
        assert address(loans[at]) == where[at]
    fresh = outlet.loan(size, 0)
    assert address(fresh) not in where
    for loan in (*loans, fresh):
        loan.cancel()
    assert arena.used == 0


def test_slabs_that_were_emptied_make_room_for_others_and_for_what_is_large() -> None:
    arena, outlet, _consumer = alone(1 << 18, 1 << 18, credits=8192)
    for size in (64, 1024, SMALL_MAX, 64):
        loans = []
        while True:
            try:
                loans.append(outlet.loan(size, 0))
            except shm.WouldBlock:
                break
        assert len(set(addresses(loans))) == len(loans)
        assert arena.size - arena.used < SLAB_BYTES
        for loan in loans[::2] + loans[1::2]:
            loan.cancel()
        assert arena.used == 0
    outlet.loan(1 << 18, 0).cancel()


def test_where_no_whole_slab_has_room_one_page_is_one() -> None:
    arena, outlet, _consumer = alone(1 << 16, 1 << 16)
    large = outlet.loan((1 << 16) - 4096, 0)
    small = [outlet.loan(64, 0) for _ in range(64)]
    assert len({where // 4096 for where in addresses(small)}) == 1
    with pytest.raises(shm.WouldBlock):
        outlet.loan(64, 0)
    where = address(small[7])
    small.pop(7).cancel()
    again = outlet.loan(64, 0)
    assert address(again) == where
    for loan in (large, again, *small):
        loan.cancel()
    assert arena.used == 0


@given(st.lists(st.tuples(st.sampled_from([64, 512, SMALL_MAX]), st.integers(0, 1000)), max_size=120))
@settings(max_examples=60, deadline=None)
def test_slabs_filled_to_their_end_again_and_again_lend_nothing_twice(steps: list[tuple[int, int]]) -> None:
    arena, outlet, _consumer = alone(1 << 17, 1 << 17, credits=8192)
    lent: list[tuple[shm.Loan, int, int]] = []
    for size, which in steps:
        try:
            for _ in range(which % 40):
                loan = outlet.loan(size, 0)
                lent.append((loan, address(loan), size))
        except shm.WouldBlock:
            for _ in range(min(len(lent), which % 60)):
                lent.pop(which % len(lent))[0].cancel()
        taken = sorted((start, start + size) for _, start, size in lent)
        assert all(end <= start for (_, end), (start, _) in pairwise(taken))
    for loan, _, _ in lent:
        loan.cancel()
    assert arena.used == 0
