"""The descriptors of a snapshot. They keep their numbers across the exec, so a number is all that the snapshot holds.

Whoever unpacks gets duplicates: until everything is rebuilt the originals stay as they were handed over, for the old
image, should it have to take over again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

import msgspec


class Packed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is here is known: an older image must not pass over what a newer one meant."""


class Bag:
    """Collects descriptors, which stay their owners'."""

    def __init__(self) -> None:
        self._numbers: dict[int, None] = {}

    @property
    def descriptors(self) -> list[int]:
        """All of them, each once."""
        return list(self._numbers)

    def put(self, fd: int) -> int:
        """``fd`` is handed over; its number."""
        self._numbers[fd] = None
        return fd

    def put_if(self, fd: int | None) -> int | None:
        """The same for one that may be missing."""
        return None if fd is None else self.put(fd)


class Unbag:
    """The descriptors that were handed over, until :meth:`close`."""

    def __init__(self, descriptors: Iterable[int]) -> None:
        self._numbers = frozenset(descriptors)

    def look(self, number: int) -> int:
        """The original, which stays ours. Raises ValueError for one that was not handed over."""
        if number not in self._numbers:
            raise ValueError(f"descriptor {number} was not handed over")
        return number

    def take(self, number: int) -> int:
        """A duplicate, which is the caller's. Raises ValueError, OSError."""
        return fcntl.fcntl(self.look(number), fcntl.F_DUPFD_CLOEXEC, 3)

    def take_if(self, number: int | None) -> int | None:
        """The same for one that may be missing."""
        return None if number is None else self.take(number)

    def close(self) -> None:
        """Everything is rebuilt: the originals are not needed any more."""
        for number in self._numbers:
            os.close(number)
        self._numbers = frozenset()
