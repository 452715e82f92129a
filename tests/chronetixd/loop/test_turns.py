"""Bursts of work leave turns for everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from chronetixd.loop.turns import Pace, Turns

Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0)


def test_between_two_slices_everybody_else_has_a_turn(loop: asyncio.AbstractEventLoop, run: Run) -> None:
    turns, done = Turns(loop, slice_ns=0), list[Any]()
    for number in range(3):
        turns.add(lambda number=number: (done.append(number), loop.call_soon(done.append, "somebody else")))
    assert done == []
    run(until(lambda: len(done) == 6))
    assert [each for each in done if each != "somebody else"] == [0, 1, 2]
    assert done.index("somebody else") < done.index(2)
    assert turns.waiting == 0


def test_what_fits_into_a_slice_is_done_in_one_turn(loop: asyncio.AbstractEventLoop, run: Run) -> None:
    turns, done = Turns(loop, slice_ns=1 << 60), list[Any]()
    for number in range(100):
        turns.add(lambda number=number: done.append(number))
    loop.call_soon(done.append, "somebody else")
    run(until(lambda: len(done) == 101))
    assert done == [*range(100), "somebody else"]


def test_work_that_fails_takes_none_along(loop: asyncio.AbstractEventLoop, run: Run) -> None:
    turns, done = Turns(loop), list[int]()
    told: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    turns.add(lambda: done.append(1 // 0))
    turns.add(lambda: done.append(1))
    run(until(lambda: bool(done)))
    assert [type(each) for each in told] == [ZeroDivisionError]


def test_a_paced_loop_gives_way_and_sees_what_was_there(run: Run) -> None:
    things = {"a": 1, "b": 2, "c": 3}

    async def seen() -> list[str]:
        found = []
        async for each in Pace(slice_ns=-1).over(things):
            found.append(each)
            asyncio.get_running_loop().call_soon(things.pop, each, None)
        return found

    assert run(seen()) == ["a", "b", "c"]
    assert not things, "each was taken away while the next one was looked at"
