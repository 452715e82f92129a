"""The descriptors of a snapshot, which the snapshot holds as numbers: descriptors keep their numbers across an exec.

The image that unpacks a snapshot takes duplicates. Until it has rebuilt everything, the originals stay as they were
handed over, so that the old image can take over again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

import msgspec


class Packed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all structs in a snapshot. Unknown fields are refused: an older image must not ignore a field that a
    newer image needs."""


class Bag:
    """Collects the descriptors of a snapshot; their owners keep them and close them."""

    def __init__(self) -> None:
        self._numbers: dict[int, None] = {}

    @property
    def descriptors(self) -> list[int]:
        """The numbers of all descriptors in the bag, each once."""
        return list(self._numbers)

    def put(self, fd: int) -> int:
        """Add ``fd`` to the descriptors that are handed over, and return its number."""
        self._numbers[fd] = None
        return fd

    def put_if(self, fd: int | None) -> int | None:
        """Add ``fd`` as :meth:`put` does; None for None."""
        return None if fd is None else self.put(fd)


class Unbag:
    """The descriptors that an earlier image handed over. Owns them until :meth:`close`."""

    def __init__(self, descriptors: Iterable[int]) -> None:
        self._numbers = frozenset(descriptors)

    def look(self, number: int) -> int:
        """Return the original descriptor, which the bag keeps. Raises ValueError for a number that was not handed
        over."""
        if number not in self._numbers:
            raise ValueError(f"descriptor {number} was not handed over")
        return number

    def take(self, number: int) -> int:
        """Return a duplicate of the descriptor, which the caller closes. Raises ValueError for a number that was not
        handed over, OSError when descriptors have run out."""
        return fcntl.fcntl(self.look(number), fcntl.F_DUPFD_CLOEXEC, 3)

    def take_if(self, number: int | None) -> int | None:
        """Return a duplicate as :meth:`take` does; None for None."""
        return None if number is None else self.take(number)

    def close(self) -> None:
        """Close the originals, once everything is rebuilt."""
        for number in self._numbers:
            os.close(number)
        self._numbers = frozenset()
