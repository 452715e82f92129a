"""A bounded ring of records that can be read back and followed; bounded by number and, if wanted, by size.

Appending never fails and never waits: the oldest record makes room. A follower is called for every record that is
appended after it came; it must not raise and must bound what it keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from chronetix.protocol import cbor
from chronetixd.packing import Packed

T = TypeVar("T")


class PackedFeed(Packed, frozen=True):
    """Records, the oldest first, each packed by itself, with what it takes."""

    records: list[bytes]
    sizes: list[int]
    appended: int


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

    def packed(self) -> PackedFeed:
        """All of it but the followers."""
        return PackedFeed(
            records=[_packed(record) for record, _ in self._records],
            sizes=[size for _, size in self._records],
            appended=self.appended,
        )

    def unpack(self, packed: PackedFeed, kind: type[T]) -> None:
        """The inverse, of an empty one; ``kind`` is the records' type. Raises ValueError."""
        records = [_unpacked(each, kind) for each in packed.records]
        self._records = deque(zip(records, packed.sizes, strict=True))
        self._size, self.appended = sum(packed.sizes), packed.appended

    def recent(self, wanted: Callable[[T], bool], limit: int | None = None) -> list[T]:
        """Those that are ``wanted``, oldest first; the last ``limit`` of them if given."""
        return [record for _, record in self.numbered(wanted, limit)]

    def numbered(self, wanted: Callable[[T], bool], limit: int | None = None, after: int = 0) -> list[tuple[int, T]]:
        """As :meth:`recent`, each with its number: the first that was ever appended has 1. Only those beyond ``after``
        count."""
        if limit == 0:
            return []
        first = self.forgotten + 1
        numbered = enumerate((record for record, _ in self._records), start=first)
        found = deque(((at, record) for at, record in numbered if at > after and wanted(record)), maxlen=limit)
        return list(found)

    def follow(self, follower: Callable[[T], None]) -> Callable[[], None]:
        """Show ``follower`` everything from now on, until the returned function is called (idempotent)."""
        key = object()
        self._followers[key] = follower
        return lambda: (self._followers.pop(key, None), None)[1]


_MSGPACK, _CBOR = b"m", b"c"


def _packed(record: Any) -> bytes:
    """In CBOR only what has an integer of more than 64 bits: workers may log such."""
    try:
        return _MSGPACK + msgspec.msgpack.encode(record)
    except OverflowError:
        return _CBOR + cbor.dumps(msgspec.to_builtins(record, builtin_types=(bytes,)))


def _unpacked(packed: bytes, kind: type[T]) -> T:
    if packed[:1] == _MSGPACK:
        return msgspec.msgpack.decode(memoryview(packed)[1:], type=kind)
    return msgspec.convert(cbor.loads(packed[1:]), kind)
