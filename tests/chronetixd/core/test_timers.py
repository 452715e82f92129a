"""Interval timers: no drift, and every tick is either delivered or counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetixd.core.timers import FEW, Due, Timers


def test_ticks_are_due_at_whole_intervals_however_late_they_are_looked_at() -> None:
    timers = Timers()
    timers.add("n", "t", 10, 100)
    assert timers.due(109) == []
    assert timers.due(113) == [Due("n", "t", 1, 110, 0)]
    assert timers.next_ns() == 120
    assert timers.due(120) == [Due("n", "t", 2, 120, 0)]


def test_ticks_that_nobody_looked_at_are_counted_as_missed() -> None:
    timers = Timers()
    timers.add("n", "t", 10, 0)
    assert timers.due(45) == [Due("n", "t", 4, 40, 3)]
    assert timers.missed == 3


def test_a_withheld_tick_counts_with_the_next_one() -> None:
    timers = Timers()
    timers.add("n", "t", 10, 0)
    (first,) = timers.due(25)
    timers.withhold(first)
    assert timers.due(30) == [Due("n", "t", 3, 30, 2)]
    assert timers.missed == 2


def test_dropping_an_owner_ends_its_timers_only() -> None:
    timers = Timers()
    timers.add("a", "t", 10, 0)
    timers.add("b", "t", 15, 0)
    timers.drop("a")
    timers.drop("nobody")
    assert timers.next_ns() == 15
    assert [due.owner for due in timers.due(100)] == ["b"]
    timers.drop("b")
    assert (timers.next_ns(), len(timers)) == (None, 0)


@pytest.mark.parametrize("interval", [0, -5])
def test_an_interval_must_be_positive(interval: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Timers().add("n", "t", interval, 0)


def test_an_id_is_used_once_per_owner() -> None:
    timers = Timers()
    timers.add("n", "t", 10, 0)
    with pytest.raises(ValueError, match="exists"):
        timers.add("n", "t", 10, 0)


@given(
    st.dictionaries(st.integers(0, 5), st.integers(1, 50), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 200), st.booleans()), max_size=30),
)
def test_every_tick_is_delivered_or_counted_and_none_comes_early(
    intervals: dict[int, int], looks: list[tuple[int, bool]]
) -> None:
    timers = Timers()
    for owner, interval in intervals.items():
        timers.add(owner, "t", interval, 0)
    now = 0
    accounted = dict.fromkeys(intervals, 0)
    for step, taken in looks:
        now += step
        due = timers.due(now)
        assert [tick.due_ns for tick in due] == [tick.sequence * intervals[int(str(tick.owner))] for tick in due]
        for tick in due:
            assert tick.due_ns <= now
            owner = int(str(tick.owner))
            if taken:
                accounted[owner] += tick.missed + 1
                assert accounted[owner] == tick.sequence
            else:
                timers.withhold(tick)
        following = timers.next_ns()
        assert following is not None
        assert following > now


def test_timers_that_were_dropped_before_they_were_due_are_not_kept() -> None:
    timers = Timers()
    timers.add("stays", "t", 10, 0)
    for number in range(1_000):
        timers.add(number, "t", 1 << 60, 0)
        timers.drop(number)
    assert len(timers._heap) <= FEW + 2
    assert [due.owner for due in timers.due(10)] == ["stays"]
