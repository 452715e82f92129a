"""Reads a few words of a RING or CREDIT by their offsets, without mapping it (SPEC §3, §4; in C: ``abi.h``).

The header of the memory must have been checked (:func:`chronetix.shm.check`). Its maker may still write, or be dead:
each word has the value of some time, and two words may be of different times. All functions raise OSError, and
ValueError for a file that is too short.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

EPOCH: Final = 16
BASE_SEQ: Final = 24
SLOTS_LOG2: Final = 32
CREDITS: Final = 36
POLICY: Final = 48
CLOSED: Final = 64
"""Offsets that RING and CREDIT have in common."""

POLICIES: Final = ("block", "drop_newest", "latest")
"""The policies by their number in the header of a RING."""

MAX_POSITION: Final = 1 << 62
"""No stamp, skip or ``oldest`` is higher."""

RING_OLDEST: Final = 320
RING_DESC: Final = 512
DESC_WORDS: Final = 8
"""A descriptor has so many words of 8 bytes; its stamp is the first."""

CREDIT_RETURNED: Final = 192
CREDIT_NEXT: Final = 264
CREDIT_STAMP: Final = 5376


class HeaderShape(NamedTuple):
    """What the two ends of a stage must agree on, and the policy, which only a RING has."""

    epoch: int
    base_seq: int
    credits: int
    policy: str


def shape(fd: int) -> HeaderShape:
    """Return what the header of a RING or CREDIT says of its stage."""
    (credits,) = struct.unpack("<I", _read(fd, CREDITS, 4))
    (policy,) = struct.unpack("<I", _read(fd, POLICY, 4))
    return HeaderShape(epoch(fd), base_seq(fd), credits, POLICIES[policy] if policy < len(POLICIES) else str(policy))


def epoch(fd: int) -> int:
    """Return the epoch: the number of the stage within its route."""
    return _words(fd, EPOCH, 1)[0]


def base_seq(fd: int) -> int:
    """Return the sequence number at which the stage begins."""
    return _words(fd, BASE_SEQ, 1)[0]


def closed(fd: int) -> bool:
    """Return whether the maker has closed the memory regularly."""
    return closed_at(fd) != 0


def closed_at(fd: int) -> int:
    """Return the word ``closed``: of a RING the position behind its last frame + 1, or 0."""
    return _words(fd, CLOSED, 1)[0]


def oldest(ring: int) -> int:
    """Return the position of the oldest frame that may still be read (policy ``latest``)."""
    return _words(ring, RING_OLDEST, 1)[0]


def returned(credit: int) -> int:
    """Return how many frames the present consumer has returned (policy ``latest``: up to which position)."""
    return _words(credit, CREDIT_RETURNED, 1)[0]


def slots(fd: int) -> int:
    """Return the number of slots. Raises ValueError for a number that the file cannot hold: the maker has changed the
    header after it was checked."""
    (slots_log2,) = struct.unpack("<I", _read(fd, SLOTS_LOG2, 4))
    size = os.fstat(fd).st_size
    if slots_log2 >= 32 or 8 << slots_log2 > size:
        raise ValueError(f"its header says 2^{slots_log2} slots, which {size} bytes do not hold")
    return int(1 << slots_log2)


def descriptors(ring: int) -> memoryview:
    """Return the words of all descriptors of a RING, slot after slot."""
    return memoryview(_read(ring, RING_DESC, 8 * DESC_WORDS * slots(ring))).cast("Q")


def skips(ring: int) -> memoryview:
    """Return the word ``skip`` of each slot of a RING."""
    count = slots(ring)
    return memoryview(_read(ring, RING_DESC + 8 * DESC_WORDS * count, 8 * count)).cast("Q")


def stamps(credit: int) -> memoryview:
    """Return the stamp of each slot of a CREDIT: the frames that were returned."""
    return memoryview(_read(credit, CREDIT_STAMP, 8 * slots(credit))).cast("Q")


def given_back(credit: int) -> tuple[int, ...]:
    """Return a consumer's ``next``, then its stamp of each slot: the frames that it has returned. No value ever
    decreases."""
    return _words(credit, CREDIT_NEXT, 1) + tuple(stamps(credit))


def _words(fd: int, at: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", _read(fd, at, 8 * count))


def _read(fd: int, at: int, size: int) -> bytes:
    found = os.pread(fd, size, at)
    if len(found) != size:
        raise ValueError(f"{size} bytes at {at} were expected, {len(found)} are there")
    return found
