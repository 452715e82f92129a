"""Liveness: hung is told from busy, from idle and from silent, with a clock that is only a number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetixd.core.liveness import DeclareDead, LivenessCheck, Probe, SendPing

SECOND = 1_000_000_000
PROBE = Probe(limit_ns=2 * SECOND, period_ns=SECOND)


def test_an_idle_worker_is_well_however_long() -> None:
    liveness = LivenessCheck(PROBE)
    for at in range(100):
        assert liveness.due(at * SECOND + 1) == SendPing(at + 1)
        liveness.answered(at + 1, 0, "")


def test_a_busy_worker_whose_steps_are_short_is_well() -> None:
    liveness = LivenessCheck(PROBE)
    for at in range(100):
        assert liveness.due(at * SECOND + 1) == SendPing(at + 1)
        liveness.answered(at + 1, SECOND, "on_frame")


def test_one_step_beyond_the_limit_is_hung_and_says_in_what() -> None:
    liveness = LivenessCheck(PROBE)
    liveness.due(1)
    liveness.answered(1, 2 * SECOND, "on_frame (route r, seq 7)")
    assert liveness.due(SECOND) == DeclareDead("hung in on_frame (route r, seq 7) for 2 s")


def test_a_worker_that_does_not_answer_is_silent() -> None:
    liveness = LivenessCheck(PROBE)
    assert liveness.due(1) == SendPing(1)
    assert liveness.due(SECOND + 1) is None
    verdict = liveness.due(2 * SECOND + 1)
    assert isinstance(verdict, DeclareDead)
    assert verdict.why.startswith("has not answered for 2 s")


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_only_so_many_failures_in_a_row_count(failures: int) -> None:
    liveness = LivenessCheck(Probe(SECOND, SECOND, failures=failures))
    at = 0
    for busy in (*[SECOND] * (failures - 1), 0, *[SECOND] * failures):
        at += 1
        assert liveness.due(at) == SendPing(at)
        liveness.answered(at, busy, "produce")
    assert liveness.due(at + 1) == DeclareDead("hung in produce for 1 s")


def test_an_answer_to_no_open_ping_is_ignored() -> None:
    liveness = LivenessCheck(PROBE)
    liveness.answered(0, 9 * SECOND, "on_frame")
    assert liveness.due(1) == SendPing(1)
    liveness.answered(7, 9 * SECOND, "on_frame")
    liveness.answered(1, 0, "")
    liveness.answered(1, 9 * SECOND, "on_frame")
    assert liveness.due(2) == SendPing(2)


@given(st.lists(st.integers(0, 2 * SECOND - 1), max_size=50), st.integers(1, 3))
def test_no_step_within_the_limit_ever_kills(steps: list[int], failures: int) -> None:
    liveness = LivenessCheck(Probe(2 * SECOND, SECOND, failures=failures))
    for at, busy in enumerate(steps, 1):
        assert liveness.due(at * SECOND) == SendPing(at)
        liveness.answered(at, busy, "on_frame")
