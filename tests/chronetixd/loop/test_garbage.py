"""The search for garbage costs what is new, and finds what has become garbage later."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from chronetixd.loop import garbage
from chronetixd.loop.garbage import COUNTED, Garbage


class Knot:
    """Refers to itself: only a search finds that nobody has it any more."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def due() -> list[Callable[[], None]]:
    """Full passes that were asked for."""
    return []


@pytest.fixture
def search(due: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Garbage]:
    monkeypatch.setattr(garbage, "FEW", 0)
    before = gc.get_threshold()
    made = Garbage(due.append)
    made.begin()
    yield made
    made.end()
    gc.unfreeze()
    gc.set_threshold(*before)


def look(times: int) -> None:
    for _ in range(times):
        gc.collect()


def test_what_a_pass_finds_alive_is_not_looked_at_again(search: Garbage) -> None:
    kept = [Knot() for _ in range(10)]
    look(1)
    seen = {id(each) for generation in range(3) for each in gc.get_objects(generation)}
    assert not seen & {id(each) for each in kept}
    assert gc.isenabled()


def test_a_pass_frees_what_is_new_and_nobodys(search: Garbage) -> None:
    knot = weakref.ref(Knot())
    look(1)
    assert knot() is None


def test_what_was_looked_at_and_became_garbage_then_is_freed_by_a_full_pass(search: Garbage) -> None:
    kept = Knot()
    knot = weakref.ref(kept)
    look(1)
    del kept
    look(1)
    assert knot() is not None
    search.full()
    assert knot() is None


def test_a_full_pass_is_due_once_as_much_is_there_again_and_only_once(
    search: Garbage, due: list[Callable[[], None]]
) -> None:
    look(COUNTED)
    assert due == []
    kept = [Knot() for _ in range(2 * gc.get_freeze_count())]
    look(2 * COUNTED)
    assert due == [search.full]
    due.pop()()
    look(COUNTED)
    assert due == []
    assert kept


def test_when_it_ends_the_interpreter_does_as_before(search: Garbage) -> None:
    kept = Knot()
    search.end()
    look(1)
    assert any(each is kept for each in gc.get_objects(2))
    search.end()
