"""The limit: one memcpy a frame within one process, nothing sent at all.

Copies from one warm source into extents used in turn, as many as a lossless transport of one copy must use: one that
the receiver reads and one that the sender fills. Both are as warm as the caches keep them, so it is the strict limit; a
transport that queues more frames writes to colder memory than this.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.cells import Cell
from bench.peers import Link, Peer

EXTENTS = 2


class Memcpy(Peer):
    """Slice assignment between two memoryviews, which is libc's memmove."""

    name = "memcpy"
    about = f"limit: one memmove a frame in one process, from a warm buffer into {EXTENTS} warm extents in turn"
    one_process = True

    def version(self) -> str:
        return "-".join(platform.libc_ver()) or "libc"

    def prepare(self, cell: Cell, folder: Path) -> None:
        return None

    def connect_both(self, shared: Any, cell: Cell) -> tuple[Link, Link]:
        (put, look), (put_back, look_back) = direction(cell.size), direction(cell.size)

        def nothing() -> None:
            return None

        here = Link(send=put, receive=look_back, reply=put, close=nothing)
        return here, Link(send=put_back, receive=look, reply=put_back, close=nothing)


def direction(size: int) -> tuple[Callable[[Any], None], Callable[[], memoryview]]:
    """A copy into the next extent, and a look at the extent that was copied to last."""
    extents = [np.zeros(size, np.uint8).data for _ in range(EXTENTS)]
    turn = itertools.cycle(extents)
    current = extents[0]

    def put(frame: Any) -> None:
        nonlocal current
        current = next(turn)
        current[:] = frame

    def look() -> memoryview:
        return current

    return put, look
