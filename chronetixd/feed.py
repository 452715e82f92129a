"""A bounded ring of records that can be read back and followed.

Appending never fails and never waits: the oldest record makes room. A follower is called for every record that is
appended after it came; it must not raise and must bound what it keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Feed(Generic[T]):
    """The last ``capacity`` records. ``forgotten`` counts those that made room."""

    __slots__ = ("_followers", "_records", "appended")

    def __init__(self, capacity: int) -> None:
        self._records: deque[T] = deque(maxlen=capacity)
        self._followers: dict[object, Callable[[T], None]] = {}
        self.appended = 0

    @property
    def forgotten(self) -> int:
        """Records that are no longer there."""
        return self.appended - len(self._records)

    def append(self, record: T) -> None:
        """Keep ``record`` and show it to all followers."""
        self._records.append(record)
        self.appended += 1
        for follower in tuple(self._followers.values()):
            follower(record)

    def recent(self, wanted: Callable[[T], bool], limit: int | None = None) -> list[T]:
        """Those that are ``wanted``, oldest first; the last ``limit`` of them if given."""
        if limit == 0:
            return []
        found: deque[T] = deque((record for record in self._records if wanted(record)), maxlen=limit)
        return list(found)

    def follow(self, follower: Callable[[T], None]) -> Callable[[], None]:
        """Show ``follower`` everything from now on, until the returned function is called (idempotent)."""
        key = object()
        self._followers[key] = follower
        return lambda: (self._followers.pop(key, None), None)[1]

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._records))
