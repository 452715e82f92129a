"""Waits for what a call has begun, and sends its progress to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from chronetix.protocol.errors import error
from chronetixd.control.verbs.base import Emit
from chronetixd.flows.run import FlowRun


async def wait(run: FlowRun, wanted: Callable[[FlowRun], bool], timeout_ns: int | None, what: str, emit: Emit) -> None:
    """Wait until ``wanted(run)``, sending progress. Raises ChronetixError ``timed-out`` after ``timeout_ns``, which
    names ``what``."""
    seconds = None if timeout_ns is None else timeout_ns / 1e9
    try:
        async with asyncio.timeout(seconds):
            await run.until(showing(run.progress, emit, lambda: wanted(run)))
    except TimeoutError:
        raise error("timed-out", what=what, seconds=seconds) from None


def showing(progress: Callable[[], Any], emit: Emit, reached: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that returns what ``reached`` returns, and sends the progress if it has changed."""
    shown: Any = None

    def look() -> bool:
        nonlocal shown
        now = progress()
        if now != shown:
            shown = now
            emit(now)
        return reached()

    return look
