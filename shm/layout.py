"""Reads a few words of a RING or CREDIT by their offsets, without mapping it (SPEC §3, §4; in C: ``abi.h``).

The header of the memory must have been checked (:func:`chronetix.shm.check`). Its maker may still write, or be dead:
each word has the value of some time, and two words may be of different times. All functions raise OSError, and
ValueError for a file that is too short.
"""

from __future__ import annotations

import os
import struct
from typing import Final

EPOCH: Final = 16
BASE_SEQ: Final = 24
SLOTS_LOG2: Final = 32
CLOSED: Final = 64
"""Offsets that RING and CREDIT have in common."""

CREDIT_NEXT: Final = 264
CREDIT_STAMP: Final = 5376


def epoch(fd: int) -> int:
    """Return the epoch: the number of the stage within its route."""
    return _words(fd, EPOCH, 1)[0]


def base_seq(fd: int) -> int:
    """Return the sequence number at which the stage begins."""
    return _words(fd, BASE_SEQ, 1)[0]


def closed(fd: int) -> bool:
    """Return whether the maker has closed the memory regularly."""
    return _words(fd, CLOSED, 1)[0] != 0


def given_back(credit: int) -> tuple[int, ...]:
    """Return a consumer's ``next``, then its stamp of each slot: the frames that it has returned. No value ever
    decreases."""
    (slots_log2,) = struct.unpack("<I", _read(credit, SLOTS_LOG2, 4))
    return _words(credit, CREDIT_NEXT, 1) + _words(credit, CREDIT_STAMP, 1 << slots_log2)


def _words(fd: int, at: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", _read(fd, at, 8 * count))


def _read(fd: int, at: int, size: int) -> bytes:
    found = os.pread(fd, size, at)
    if len(found) != size:
        raise ValueError(f"{size} bytes at {at} were expected, {len(found)} are there")
    return found
