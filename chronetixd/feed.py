"""A bounded ring of records that can be read back and followed; bounded by number and, if wanted, by size.

Appending never fails and never waits: the oldest record makes room. A follower is called for every record that is
appended after it came; it must not raise and must bound what it keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Feed(Generic[T]):
    """The last ``capacity`` records, ``budget`` bytes together at most. ``forgotten`` counts those that made room."""

    __slots__ = ("_budget", "_capacity", "_followers", "_records", "_size", "appended")

    def __init__(self, capacity: int, budget: int | None = None) -> None:
        self._records: deque[tuple[T, int]] = deque()
        self._followers: dict[object, Callable[[T], None]] = {}
        self._capacity = capacity
        self._budget = budget
        self._size = 0
        self.appended = 0

    @property
    def forgotten(self) -> int:
        """Records that are no longer there."""
        return self.appended - len(self._records)

    def append(self, record: T, size: int = 0) -> None:
        """Keep ``record``, which takes ``size`` bytes, and show it to all followers."""
        self._records.append((record, size))
        self._size += size
        self.appended += 1
        while len(self._records) > self._capacity or (self._budget is not None and self._size > self._budget):
            self._size -= self._records.popleft()[1]
        for follower in tuple(self._followers.values()):
            follower(record)

    def recent(self, wanted: Callable[[T], bool], limit: int | None = None) -> list[T]:
        """Those that are ``wanted``, oldest first; the last ``limit`` of them if given."""
        if limit == 0:
            return []
        found: deque[T] = deque((record for record, _ in self._records if wanted(record)), maxlen=limit)
        return list(found)

    def follow(self, follower: Callable[[T], None]) -> Callable[[], None]:
        """Show ``follower`` everything from now on, until the returned function is called (idempotent)."""
        key = object()
        self._followers[key] = follower
        return lambda: (self._followers.pop(key, None), None)[1]
