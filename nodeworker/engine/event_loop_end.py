"""The end of an event loop in which a plugin may have left tasks and asynchronous generators: limited in time.

Rules: every task is cancelled once, then every generator closed. What does not end within the limit is named, with the
place where it waits. What blocks the loop itself must be noticed from elsewhere.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any


class EventLoopEnd:
    """The end of ``loop``: every task is cancelled, every asynchronous generator closed, within one limit. What runs it
    may be told meanwhile that there is less time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float) -> None:
        self._loop = loop
        self._due = loop.time() + limit_s
        self._limit: asyncio.Timeout | None = None

    def hurry(self, seconds: float) -> None:
        """There is no more time than this. From a signal handler."""
        self._loop.call_soon_threadsafe(self._shorten, self._loop.time() + seconds)

    def _shorten(self, due: float) -> None:
        self._due = min(self._due, due)
        if self._limit is not None:
            with suppress(RuntimeError):  # it has expired
                self._limit.reschedule(self._due)

    async def run(self) -> str:
        """All of it, in a task of the loop. What hangs; empty if nothing does."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        hung = await self._over(left)
        if hung:
            return "; ".join(sorted(map(_still_there, hung)))
        if await self._over({self._loop.create_task(self._loop.shutdown_asyncgens())}):
            return "an asynchronous generator does not end although it was closed"
        return ""

    async def _over(self, tasks: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
        """Wait for ``tasks``; those that do not end in time."""
        if tasks:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._due) as self._limit:
                    await asyncio.wait(tasks)
            self._limit = None
        return {task for task in tasks if not task.done()}


def _still_there(task: asyncio.Task[Any]) -> str:
    """The task's name, its coroutine, and where that waits."""
    name = getattr(task.get_coro(), "__qualname__", "?")
    frames = task.get_stack()
    where = f" ({frames[-1].f_code.co_filename}, line {frames[-1].f_lineno})" if frames else ""
    return f"task {task.get_name()!r} of {name}{where} does not end although it was cancelled"
