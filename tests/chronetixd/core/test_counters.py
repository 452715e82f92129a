"""The figures of a route as they are shown: each frame that was sent is taken, lost or under way, and only one of
these."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chronetixd.core.counters import final, shown

COUNTS = st.integers(0, 100)


def figures(
    taken: int, again: int, held: int, left: int, waiting: int, overwritten: int, refused: int
) -> dict[str, Any]:
    """Of a route whose consumer has taken frames and holds some of them, has ``left`` some, and may take those that are
    ``waiting``; ``refused`` ones were never sent."""
    held = min(held, taken)
    drops = {"no_credit": refused, "no_room": 0, "given_up": 0, "overwritten": overwritten, "unread": left}
    return {
        "committed": taken + left + waiting + overwritten,
        "taken": taken + again,
        "again": again,
        "outstanding": held + left + waiting,
        "drops": drops,
        "dropped": sum(drops.values()),
    }


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
def test_each_frame_is_counted_once_while_the_flow_runs_and_when_it_has_ended(
    taken: int, again: int, held: int, left: int, waiting: int, overwritten: int, refused: int
) -> None:
    running = shown(figures(taken, again, held, left, waiting, overwritten, refused))
    assert running["outstanding"] == min(held, taken) + waiting
    ended = final(running)
    assert ended["drops"] == {**running["drops"], "unread": left + waiting}
    assert ended["dropped"] == sum(ended["drops"].values())
    assert ended["outstanding"] == min(held, taken)
    lost = ended["drops"]["overwritten"] + ended["drops"]["unread"]
    assert ended["committed"] == ended["taken"] - ended["again"] + lost


def test_what_a_forgotten_worker_had_taken_is_not_taken_for_lost() -> None:
    """After kill -9 of the daemon the counts of a worker that was replaced before are unknown."""
    known = figures(taken=50, again=0, held=0, left=0, waiting=3, overwritten=0, refused=0)
    ended = final(shown({**known, "committed": known["committed"] + 40}))
    assert ended["drops"]["unread"] == 3
