"""Frames that are kept for long: which are warned of, and when there is nothing more to look at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetixd.core.held import HeldFramePolicy, OldestHeldFrame
from chronetixd.dataplane import held_frames
from chronetixd.dataplane.held_frames import HeldFrameWatch

THRESHOLD = 1_000


def held(seq: int, age_ns: int, route: str = "r") -> OldestHeldFrame:
    return OldestHeldFrame(route, "node", seq, age_ns, 1)


def test_a_frame_is_warned_of_once_when_it_is_old_enough():
    watch = HeldFramePolicy(THRESHOLD)
    assert watch.look([held(7, 999)], [1]) == []
    assert watch.look([held(7, 1_500)], [1]) == [held(7, 1_500)]
    assert watch.look([held(7, 2_500)], [1]) == []
    assert watch.look([held(8, 1_200)], [2]) == [held(8, 1_200)]


def test_a_frame_that_came_back_may_be_warned_of_again_under_its_number():
    watch = HeldFramePolicy(THRESHOLD)
    assert watch.look([held(7, 1_500)], [1])
    assert watch.look([], [2]) == []
    assert watch.look([held(7, 1_500)], [3])


def test_each_route_is_warned_of_by_itself():
    watch = HeldFramePolicy(THRESHOLD)
    both = [held(1, 5_000, "a"), held(1, 5_000, "b")]
    assert watch.look(both, [0]) == both


def test_a_flow_in_which_nothing_happens_is_not_looked_at_again():
    watch = HeldFramePolicy(THRESHOLD)
    watch.look([], [0, 0])
    assert watch.idle


def test_a_flow_in_which_frames_move_is_until_they_stop():
    watch = HeldFramePolicy(THRESHOLD)
    watch.look([], [5])
    assert not watch.idle
    watch.look([], [6])
    assert not watch.idle
    watch.look([], [6])
    assert watch.idle
    watch.look([], [7])
    assert not watch.idle


def test_a_frame_that_is_kept_and_known_keeps_nobody_awake():
    watch = HeldFramePolicy(THRESHOLD)
    watch.look([held(7, 1_000)], [1])
    watch.look([held(7, 2_000)], [1])
    assert watch.idle


def test_a_frame_that_is_not_old_yet_is_looked_at_again():
    watch = HeldFramePolicy(THRESHOLD)
    watch.look([], [1])
    watch.look([held(7, 10)], [1])
    assert not watch.idle


@given(st.lists(st.tuples(st.lists(st.integers(0, 3_000), max_size=3), st.integers(0, 2)), max_size=30))
def test_only_what_is_old_is_warned_of_and_never_twice_in_a_row(looks: list[tuple[list[int], int]]):
    watch = HeldFramePolicy(THRESHOLD)
    before: set[tuple[str, int]] = set()
    for ages, progress in looks:
        found = [held(at, age, f"r{at}") for at, age in enumerate(ages)]
        new = {(each.route, each.seq) for each in watch.look(found, [progress])}
        old = {(each.route, each.seq) for each in found if each.age_ns >= THRESHOLD}
        assert new == old - before
        before = old


def test_a_look_at_many_routes_leaves_turns_for_everybody_else(
    loop: asyncio.AbstractEventLoop, until: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_frames, "SLICE_NS", 0)
    order: list[object] = []

    def look() -> Iterator[held_frames.Seen]:
        for seq in range(3):
            order.append(seq)
            loop.call_soon(order.append, "somebody else")
            yield held(seq, 10**12, f"r{seq}"), 0, 0

    frames = HeldFrameWatch(loop, 0.001, look, order.append)
    frames.start()
    until(lambda: len(order) == 9)
    frames.stop()
    assert order[:6] == [0, "somebody else", 1, "somebody else", 2, "somebody else"]
    assert order[6:] == [held(seq, 10**12, f"r{seq}") for seq in range(3)]


def test_a_look_that_is_under_way_ends_with_the_flow(
    loop: asyncio.AbstractEventLoop, until: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_frames, "SLICE_NS", 0)
    seen: list[int] = []

    def look() -> Iterator[held_frames.Seen]:
        for seq in range(3):
            seen.append(seq)
            loop.call_soon(frames.stop)
            yield held(seq, 10**12), 0, 0

    frames = HeldFrameWatch(loop, 0.001, look, lambda _: seen.append(-1))
    frames.start()
    until(lambda: seen)
    for _ in range(3):
        turned: list[bool] = []
        loop.call_soon(turned.append, True)
        until(lambda turned=turned: turned)
    assert seen == [0]
