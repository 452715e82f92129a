"""Restart policies, strategies and back-off: every cell of the matrix, with a clock that is only a number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetixd.core.restart import (
    RESTARTED,
    CountedExit,
    Ending,
    GiveUp,
    Policy,
    RestartAfter,
    Rule,
    Strategy,
    decide,
    delay,
    exhausted,
    restart_group,
    within,
)

SECOND = 1_000_000_000
NODES = ("source", "left", "right", "sink", "alone")
EDGES = (("source", "left"), ("source", "right"), ("left", "sink"), ("right", "sink"))


def died(*times: int) -> list[CountedExit]:
    return [CountedExit(at, "was killed by SIGKILL") for at in times]


def test_the_matrix_has_a_cell_for_every_policy_and_ending() -> None:
    assert set(RESTARTED) == set(Policy)
    assert all(set(row) == set(Ending) for row in RESTARTED.values())


@pytest.mark.parametrize(
    ("policy", "restarted"),
    [
        (Policy.PERMANENT, {Ending.FINISHED, Ending.FAILED, Ending.WITH_GROUP}),
        (Policy.TRANSIENT, {Ending.FAILED, Ending.WITH_GROUP}),
        (Policy.TEMPORARY, set()),
    ],
)
@pytest.mark.parametrize("ending", Ending)
def test_a_policy_restarts_after_these_endings_and_no_others(
    policy: Policy, restarted: set[Ending], ending: Ending
) -> None:
    verdict = decide(Rule(policy), ending, [], 0, 0.5)
    assert verdict == (RestartAfter(0, 1) if ending in restarted else GiveUp())


@pytest.mark.parametrize("policy", [Policy.PERMANENT, Policy.TRANSIENT])
@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("deaths", range(8))
def test_a_full_window_ends_it(policy: Policy, limit: int, deaths: int) -> None:
    rule = Rule(policy, max=limit, window_ns=10 * SECOND, jitter_pct=0)
    verdict = decide(rule, Ending.FAILED, died(*range(deaths)), 9 * SECOND, 0.0)
    assert (verdict == GiveUp(exhausted=True)) == (deaths >= limit)
    if isinstance(verdict, RestartAfter):
        assert verdict.attempt == deaths + 1


@pytest.mark.parametrize("policy", Policy)
def test_deaths_that_are_old_enough_do_not_count(policy: Policy) -> None:
    rule = Rule(policy, max=1, window_ns=10 * SECOND)
    earlier = died(0, SECOND)
    assert isinstance(decide(rule, Ending.FAILED, earlier, 10 * SECOND, 0.5), GiveUp)
    assert isinstance(decide(rule, Ending.FAILED, earlier, 11 * SECOND, 0.5), RestartAfter) == (policy != "temporary")


def test_within_keeps_what_is_younger_than_the_window() -> None:
    assert within(died(0, 5, 9), 5, 10) == died(9)


def test_the_first_restart_comes_at_once_and_the_pause_doubles_up_to_its_limit() -> None:
    rule = Rule(backoff_ns=100, backoff_max_ns=1000, jitter_pct=0)
    assert [delay(rule, attempt, 0.9) for attempt in range(1, 8)] == [0, 100, 200, 400, 800, 1000, 1000]


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 50), st.integers(0, 100), st.integers(1, 10_000), st.floats(0, 1))
def test_jitter_only_shortens_and_by_no_more_than_its_part(
    backoff: int, most: int, jitter: int, attempt: int, chance: float
) -> None:
    whole = Rule(backoff_ns=backoff, backoff_max_ns=most, jitter_pct=0)
    rule = Rule(backoff_ns=backoff, backoff_max_ns=most, jitter_pct=jitter)
    longest = delay(whole, attempt, 0)
    assert delay(rule, attempt, 0.0) == longest <= most or attempt == 1
    assert longest * (100 - jitter) // 100 - 1 <= delay(rule, attempt, chance) <= longest


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        (Strategy.ONE_FOR_ONE, {"source": "", "left": "", "right": "", "sink": "", "alone": ""}),
        (Strategy.ONE_FOR_ALL, dict.fromkeys(NODES, " ".join(NODES))),
        (
            Strategy.REST_FOR_ONE,
            {"source": "left right sink", "left": "sink", "right": "sink", "sink": "", "alone": ""},
        ),
    ],
)
def test_a_strategy_says_who_comes_along(strategy: Strategy, wanted: dict[str, str], node: str) -> None:
    assert restart_group(strategy, node, NODES, EDGES) == {node, *wanted[node].split()}


def test_the_reason_tells_how_often_and_how_it_ended_before() -> None:
    rule = Rule(max=3, window_ns=60 * SECOND)
    earlier = [CountedExit(1, "was killed by SIGKILL"), CountedExit(2, "exited with code 3 before it had finished")]
    assert exhausted(rule, "was killed by SIGSEGV", earlier) == (
        "was restarted 3 times within 60 s and failed again: was killed by SIGSEGV; "
        "before that it exited with code 3 before it had finished, it was killed by SIGKILL"
    )


def test_the_reason_of_equal_deaths_says_so_once() -> None:
    told = exhausted(Rule(max=1, window_ns=SECOND // 2), "was killed by SIGKILL", died(1, 2))
    assert told == "was restarted once within 0.5 s and failed again: was killed by SIGKILL; so it ended each time"
