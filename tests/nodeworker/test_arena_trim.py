"""When memory goes back: after a quiet time, never under a load that needs it again, and without waking the idle."""

from __future__ import annotations

import pytest

from chronetix.nodeworker.memory.arena_trim import LONGEST_PAUSE_S, PATIENCE, SPAN_S, ArenaTrim

FIRST, MIB = 1 << 18, 1 << 20


class FakeArena:
    """Grows by doubling like a real one; memory that is not in use goes at once."""

    def __init__(self) -> None:
        self.size = FIRST
        self.used = 0
        self.peak = 0
        self.grown = 0

    def use(self, size: int) -> None:
        """So much is in use from now on."""
        while self.size < size:
            self.size *= 2
            self.grown += 1
        self.used = size
        self.peak = max(self.peak, size)

    def take_peak(self) -> int:
        peak, self.peak = self.peak, self.used
        return peak

    def shrink(self, keep: int) -> int:
        before = self.size
        while self.size // 2 >= max(keep, self.used):
            self.size //= 2
        return before - self.size


class Time:
    """Goes from look to look."""

    def __init__(self) -> None:
        self.arena = FakeArena()
        self.giving = ArenaTrim(self.arena)  # type: ignore[arg-type]
        self.now = 0.0
        self.looks = 0

    def run(self, seconds: float) -> None:
        """Every look that falls due."""
        end = self.now + seconds
        while (left := self.giving.left(self.now)) is not None and self.now + left <= end:
            self.now += left
            self.giving.look(self.now)
            self.looks += 1
        self.now = end


@pytest.fixture
def time() -> Time:
    return Time()


def test_an_arena_of_its_first_size_is_never_looked_at(time):
    time.arena.use(FIRST)
    time.run(3600)
    assert time.looks == 0
    assert time.giving.left(time.now) is None


def test_a_burst_is_given_back_after_a_quiet_time_and_then_nobody_is_woken(time):
    time.arena.use(100 * MIB)
    time.run(0.5)
    time.arena.use(0)
    time.run((PATIENCE + 2) * SPAN_S)
    assert time.arena.size == FIRST
    assert time.giving.left(time.now) is None


def test_not_before_the_quiet_time_is_over(time):
    time.arena.use(100 * MIB)
    time.run(SPAN_S)
    time.arena.use(0)
    time.run((PATIENCE - 1) * SPAN_S)
    assert time.arena.size > 100 * MIB


@pytest.mark.parametrize("every", [0.01, 0.3, 0.9, 1.5])
def test_a_steady_load_grows_once_and_keeps_its_memory(time, every):
    for _ in range(200):
        time.arena.use(20 * MIB)
        time.run(every / 2)
        time.arena.use(0)
        time.run(every / 2)
    assert time.arena.grown <= 7, "from 256 KiB to 32 MiB, once"


def test_bursts_just_apart_enough_teach_patience(time):
    for _ in range(300):
        time.arena.use(20 * MIB)
        time.run(0.1)
        time.arena.use(0)
        time.run(5.0)
    grown = time.arena.grown
    for _ in range(300):
        time.arena.use(20 * MIB)
        time.run(0.1)
        time.arena.use(0)
        time.run(5.0)
    assert time.arena.grown == grown, "by now it waits longer than the bursts are apart"


def test_patience_does_not_end_in_keeping_the_memory_for_good(time):
    for _ in range(5):
        time.arena.use(20 * MIB)
        time.run(1)
        time.arena.use(0)
        time.run(4)
    time.run(200)
    assert time.arena.size == FIRST


def test_a_smaller_load_after_a_burst_keeps_twice_what_it_needs(time):
    time.arena.use(500 * MIB)
    time.run(1)
    for _ in range(20):
        time.arena.use(3 * MIB)
        time.run(0.5)
    assert 6 * MIB <= time.arena.size < 16 * MIB


def test_frames_that_are_held_for_long_cost_ever_fewer_looks_and_are_given_back_at_last(time):
    time.arena.use(100 * MIB)
    time.run(3600)
    assert time.looks < 20 + 3600 / LONGEST_PAUSE_S
    time.arena.use(0)
    time.run((PATIENCE + 2) * LONGEST_PAUSE_S)
    assert time.arena.size == FIRST
    assert time.giving.left(time.now) is None


def test_what_cannot_go_yet_is_looked_at_ever_less(time):
    shrink, time.arena.shrink = time.arena.shrink, lambda keep: 0
    time.arena.use(100 * MIB)
    time.run(1)
    time.arena.use(0)
    time.run(3600)
    assert time.looks < 20 + 3600 / LONGEST_PAUSE_S
    time.arena.shrink = shrink
    time.run(LONGEST_PAUSE_S)
    assert time.arena.size == FIRST


@pytest.mark.parametrize(("looks", "times"), [(0, 2), (4 * PATIENCE, 2), (4 * PATIENCE + 1, 1)])
def test_what_is_needed_again_soon_after_it_went_is_kept_longer_from_then_on(time, looks, times):
    time.arena.use(100 * MIB)
    while not time.giving.look(time.now):
        time.arena.use(0)
    for _ in range(looks):
        assert time.giving.look(time.now) == 0
    time.arena.use(100 * MIB)
    time.giving.look(time.now)
    assert time.giving._peaks.maxlen == times * PATIENCE
