"""What is read of a RING or CREDIT that nobody maps: a few words, by their place (SPEC §3, §4; in C: ``abi.h``).

Of memory whose header was checked (:func:`chronetix.shm.check`), and whose maker may write still, or be dead: each word
is as it was at some time, and nothing says that two of them belong together. All raise OSError, and ValueError for a
descriptor that has less.
"""

from __future__ import annotations

import os
import struct
from typing import Final

EPOCH: Final = 16
BASE_SEQ: Final = 24
SLOTS_LOG2: Final = 32
CLOSED: Final = 64
"""In the header and behind it: the same in both."""

CREDIT_NEXT: Final = 264
CREDIT_STAMP: Final = 5376


def epoch(fd: int) -> int:
    """Which stage of its route it is."""
    return _words(fd, EPOCH, 1)[0]


def base_seq(fd: int) -> int:
    """Where the stage begins."""
    return _words(fd, BASE_SEQ, 1)[0]


def closed(fd: int) -> bool:
    """Its maker has closed it, in good order."""
    return _words(fd, CLOSED, 1)[0] != 0


def given_back(credit: int) -> tuple[int, ...]:
    """What a consumer says that it has done with: ``next``, then the stamp of each slot. None ever decreases."""
    (slots_log2,) = struct.unpack("<I", _read(credit, SLOTS_LOG2, 4))
    return _words(credit, CREDIT_NEXT, 1) + _words(credit, CREDIT_STAMP, 1 << slots_log2)


def _words(fd: int, at: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", _read(fd, at, 8 * count))


def _read(fd: int, at: int, size: int) -> bytes:
    found = os.pread(fd, size, at)
    if len(found) != size:
        raise ValueError(f"{size} bytes at {at} were expected, {len(found)} are there")
    return found
