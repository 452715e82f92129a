"""Whose work is done next on the loop: a bounded piece of it in each turn, and everybody in turn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from chronetix.protocol import cbor
from chronetix.protocol.framing import Work
from chronetixd.loop import shares
from chronetixd.loop.shares import SLICE, TURN, ShareOwner

ANN, BEN, FLOW = ShareOwner("client", 1), ShareOwner("client", 2), ShareOwner("worker", "f")


class Job:
    """Wants ``items`` of work, and writes down when it got some."""

    def __init__(self, name: str, items: int, diary: list[str]) -> None:
        self.name, self.left, self.diary = name, items, diary

    def __call__(self, work: Work) -> bool:
        done = min(work.left, self.left)
        work.left -= done
        self.left -= done
        self.diary.append(self.name)
        return self.left > 0


def test_clients_and_workers_alternate_and_so_do_users_among_them(loop: Any, until: Any) -> None:
    diary: list[str] = []
    line = shares.of(loop)
    for who, name in ((ANN, "ann 1"), (ANN, "ann 2"), (ANN, "ann 3"), (BEN, "ben"), (FLOW, "flow")):
        line.join(who, Job(name, SLICE, diary))
    until(lambda: len(diary) == 5)
    assert diary == ["ann 1", "flow", "ben", "ann 2", "ann 3"]


def test_who_wants_much_is_asked_again_behind_the_others(loop: Any, until: Any) -> None:
    diary: list[str] = []
    line = shares.of(loop)
    line.join(ANN, Job("much", 3 * SLICE, diary))
    line.join(BEN, Job("little", 10, diary))
    until(lambda: len(diary) == 4)
    assert diary == ["much", "little", "much", "much"]


def test_a_turn_of_the_loop_has_a_bounded_piece_of_it(loop: Any, until: Any) -> None:
    diary: list[str] = []
    shares.of(loop).join(ANN, Job("much", 10 * TURN, diary))
    seen: list[int] = []

    def look() -> None:
        seen.append(len(diary))
        if len(diary) < 10 * TURN // SLICE:
            loop.call_soon(look)

    loop.call_soon(look)
    until(lambda: len(diary) == 10 * TURN // SLICE)
    assert max(after - before for before, after in pairwise(seen)) <= TURN // SLICE


def test_what_may_be_done_at_once_is_there_again_in_the_next_turn(loop: Any, until: Any) -> None:
    line = shares.of(loop)
    line.at_once().left = 0
    assert line.at_once().left == 0
    until(lambda: line.at_once().left == TURN)


def test_documents_are_freed_in_turns_and_those_of_others_stay(loop: Any, until: Any) -> None:
    line = shares.of(loop)
    kept = {"mine": [[1]] * 3}
    made: list[Any] = [cbor.loads(cbor.dumps([[[]] * 9] * 5000)), kept]
    line.discard(made)
    assert made == []
    until(lambda: not line._pile)
    assert kept == {"mine": [[1]] * 3}
