"""Threads for what may wait: order, failures, and what they leave behind."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest

from chronetixd.loop.aside import Aside

Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0)


@pytest.fixture
def aside(loop: asyncio.AbstractEventLoop) -> Iterator[Aside]:
    made = Aside(loop, "aside")
    yield made
    assert made.close()


def test_what_is_asked_for_comes_back_and_so_does_its_failure(aside: Aside, run: Run) -> None:
    assert run(aside.ask(lambda: threading.current_thread().name)) == "aside"
    with pytest.raises(ZeroDivisionError):
        run(aside.ask(lambda: 1 // 0))


def test_a_disk_that_does_not_answer_holds_nobody_up(aside: Aside, run: Run) -> None:
    answers, done = threading.Event(), list[int]()

    def write() -> None:
        answers.wait()

    aside.do(write)
    aside.do(lambda: aside.post(lambda: done.append(1)))
    assert not aside.settle(0)
    assert not aside.close(0)
    run(asyncio.sleep(0))
    assert done == []
    answers.set()
    assert aside.settle(60)
    run(until(lambda: done == [1]))


def test_whoever_does_not_wait_any_more_changes_nothing(aside: Aside, run: Run) -> None:
    answers, done = threading.Event(), list[int]()

    async def give_up() -> None:
        asked = asyncio.ensure_future(aside.ask(lambda: (answers.wait(), done.append(1))))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        answers.set()
        await until(lambda: done == [1])

    run(give_up())


class Large:
    """Remembers which thread has freed it."""

    freed_by: list[int] = []

    def __del__(self) -> None:
        self.freed_by.append(threading.get_ident())


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_worked_on_is_freed_where_it_was_asked_for(fails: bool, aside: Aside, run: Run) -> None:
    """A thread that waits for its next work keeps nothing of its last."""

    async def ask() -> None:
        large = Large()
        with suppress(ZeroDivisionError):
            await aside.ask(lambda: 1 // 0 if fails and large else large.freed_by)
        assert aside.settle(60)

    Large.freed_by.clear()
    run(ask())
    gc.collect()
    assert Large.freed_by == [threading.get_ident()]
