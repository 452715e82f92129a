"""Fixtures of the daemon's tests: an event loop to step by hand, and real daemons with scripted workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop


@pytest.fixture(scope="session", autouse=True)
def libuv_is_loaded() -> None:
    """libuv opens a pipe for the process with its first loop and keeps it: not a leak of the test that came first."""
    uvloop.new_event_loop().close()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A uvloop of the test's own."""
    made = uvloop.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def run(loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end."""
    return loop.run_until_complete


@pytest.fixture
def until(loop: asyncio.AbstractEventLoop) -> Callable[[Callable[[], Any]], None]:
    """Turn the loop until a condition holds. The watchdog is the loop's: a signal does not interrupt uvloop."""

    async def turn(condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)

    return lambda condition: loop.run_until_complete(turn(condition))
