"""Frames that are kept for long: which are warned of, and how seldom an idle flow is looked at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chronetixd.core.held import LONGEST, Held, Watch

THRESHOLD = 1_000


def held(seq: int, age_ns: int, route: str = "r") -> Held:
    return Held(route, "node", seq, age_ns, 1)


def test_a_frame_is_warned_of_once_when_it_is_old_enough():
    watch = Watch(THRESHOLD)
    assert watch.look([held(7, 999)], [1]) == []
    assert watch.look([held(7, 1_500)], [1]) == [held(7, 1_500)]
    assert watch.look([held(7, 2_500)], [1]) == []
    assert watch.look([held(8, 1_200)], [2]) == [held(8, 1_200)]


def test_a_frame_that_came_back_may_be_warned_of_again_under_its_number():
    watch = Watch(THRESHOLD)
    assert watch.look([held(7, 1_500)], [1])
    assert watch.look([], [2]) == []
    assert watch.look([held(7, 1_500)], [3])


def test_each_route_is_warned_of_by_itself():
    watch = Watch(THRESHOLD)
    both = [held(1, 5_000, "a"), held(1, 5_000, "b")]
    assert watch.look(both, [0]) == both


def test_an_idle_flow_is_looked_at_ever_more_seldom_and_a_busy_one_again_at_once():
    watch = Watch(THRESHOLD)
    watch.look([], [5])
    pauses = []
    for _ in range(10):
        watch.look([], [5])
        pauses.append(watch.pause_ns // THRESHOLD)
    assert pauses == [2, 4, 8, 16, 32, 64, 64, 64, 64, 64]
    watch.look([], [6])
    assert watch.pause_ns == THRESHOLD


def test_a_frame_that_is_kept_and_known_keeps_nobody_awake():
    watch = Watch(THRESHOLD)
    for age in range(1_000, 100_000, 1_000):
        watch.look([held(7, age)], [1])
    assert watch.pause_ns == LONGEST * THRESHOLD


def test_a_frame_that_is_not_old_yet_is_looked_at_in_time():
    watch = Watch(THRESHOLD)
    watch.look([], [1])
    watch.look([held(7, 10)], [1])
    assert watch.pause_ns == THRESHOLD


@given(st.lists(st.tuples(st.lists(st.integers(0, 3_000), max_size=3), st.integers(0, 2)), max_size=30))
def test_the_pause_is_always_within_its_bounds(looks: list[tuple[list[int], int]]):
    watch = Watch(THRESHOLD)
    for ages, progress in looks:
        found = [held(at, age, f"r{at}") for at, age in enumerate(ages)]
        assert all(each.age_ns >= THRESHOLD for each in watch.look(found, [progress]))
        assert THRESHOLD <= watch.pause_ns <= LONGEST * THRESHOLD
