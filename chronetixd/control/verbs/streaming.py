"""Records as a streaming answer: those that are kept, then those that come."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec

from chronetix.protocol.errors import error
from chronetixd.control.verbs.base import Args, Context, Count, Emit
from chronetixd.loop.aside import Aside
from chronetixd.records.feed import Feed

MAX_REPLAY = 10_000
"""Records that may wait behind those that were kept, until these are sent; the oldest make room."""


TURN = 256
"""Kept records that are sent before others get their turn."""


class StreamArgs(Args, frozen=True):
    """The last ``tail`` of those that are kept, then, with ``follow``, all that come. With ``after`` only what came
    after the record of that number: where an earlier call was cut off."""

    follow: bool = False
    tail: Count | None = None
    after: Count | None = None


async def stream(
    context: Context,
    feed: Feed[Any],
    wanted: Callable[[Any], bool],
    args: StreamArgs,
    emit: Emit,
    older: Iterator[Any] | None = None,
    mark: bool = False,
) -> dict[str, int]:
    """Send what is kept (``older`` before what is in memory), then, with ``follow``, what comes, until cancelled or the
    daemon ends. A client that reads too slowly misses what comes, never what was kept; it is told how many as soon as
    it reads again."""
    dropped = 0
    kept: deque[tuple[int, Any]] | None = None

    def show(record: Any) -> None:
        nonlocal dropped
        if not wanted(record):
            return
        if kept is not None:
            dropped += len(kept) == kept.maxlen
            kept.append((feed.appended, record))
            return
        send(feed.appended, record)

    def send(number: int | None, record: Any) -> None:
        nonlocal dropped
        if number is not None:
            emit.goes_on["after"] = number
        if dropped and emit({"dropped": dropped, "unix_ns": time.time_ns()}):
            dropped = 0
        if not emit(msgspec.to_builtins(record, builtin_types=(bytes,))):
            dropped += 1

    tail = args.tail
    kept = deque(feed.numbered(wanted, tail, args.after or 0))
    before = kept[0][0] - 1 if kept else feed.appended
    missing = None if tail is None else tail - len(kept)
    kept = deque(kept, maxlen=max(MAX_REPLAY, len(kept)))
    unfollow = feed.follow(show) if args.follow else None
    try:
        if older is not None and missing != 0:
            async for record in _unhurried(context.reads, older, wanted, missing, emit):
                send(None, record)
        emit.goes_on["after"] = before
        while kept:
            await emit.room()
            for _ in range(min(TURN, len(kept))):
                send(*kept.popleft())
            await asyncio.sleep(0)
        kept = None
        if mark:
            emit({"caught_up": True})
        if unfollow is not None:
            await context.ending.wait()
            raise error("daemon-stopping")
    finally:
        if unfollow is not None:
            unfollow()
    return {"dropped": dropped}


async def _unhurried(
    aside: Aside, records: Iterator[Any], wanted: Callable[[Any], bool], tail: int | None, emit: Emit
) -> AsyncIterator[Any]:
    """Those that are ``wanted``, the last ``tail`` if given; read beside the loop, at the reader's pace."""
    last: deque[Any] = deque(maxlen=tail)
    while some := await aside.ask(lambda: list(itertools.islice(records, TURN))):
        if tail is None:
            await emit.room()
        for record in some:
            if wanted(record):
                if tail is None:
                    yield record
                else:
                    last.append(record)
    for record in last:
        yield record
