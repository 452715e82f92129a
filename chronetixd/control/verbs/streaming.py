"""Sends records as a streaming answer: first the stored ones, then new ones as they come."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec

from chronetix.protocol.errors import error
from chronetixd.control.verbs.base import Args, Count, Emit, VerbContext
from chronetixd.loop.aside import Aside
from chronetixd.records.feed import Feed

MAX_REPLAY = 10_000
"""How many new records may wait until the stored ones have been sent; beyond it the oldest are dropped."""


TURN = 256
"""How many stored records are sent before other work of the loop gets its turn."""


class StreamArgs(Args, frozen=True):
    """Arguments of a streaming verb: the last ``tail`` stored records (default: all), then, with ``follow``, new
    records as they come. With ``after`` only records after the one of that number, at which an earlier call was cut
    off."""

    follow: bool = False
    tail: Count | None = None
    after: Count | None = None


async def stream(
    context: VerbContext,
    feed: Feed[Any],
    wanted: Callable[[Any], bool],
    args: StreamArgs,
    emit: Emit,
    older: Iterator[Any] | None = None,
    mark: bool = False,
) -> dict[str, int]:
    """Send the stored records (``older`` ones first, then those in memory). With ``follow``, send new ones as they
    come, until the call is cancelled or the daemon ends. Return how many records the client missed.

    A client that reads too slowly misses new records, never stored ones; an item reports how many it missed as soon as
    it reads again. Raises ChronetixError ``daemon-stopping``.
    """
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
    """Yield the ``wanted`` records, the last ``tail`` of them if given. They are read in a thread, at the pace at which
    the client reads."""
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
