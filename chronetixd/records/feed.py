"""A ring of records that can be read and followed, bounded by their number and, if given, by their size.

Rules: appending never fails and never waits, because the oldest record is dropped. A follower is called for every
record that is appended after it was added; it must not raise, and must bound what it keeps.
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
    """A feed in a snapshot: its records, oldest first, each encoded by itself, and their sizes in bytes."""

    records: list[bytes]
    sizes: list[int]
    appended: int


class Feed(Generic[T]):
    """The last ``capacity`` records, of at most ``budget`` bytes together. ``forgotten`` counts the dropped ones."""

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
        """How many records have been dropped."""
        return self.appended - len(self._records)

    def append(self, record: T, size: int = 0) -> None:
        """Append ``record``, which takes ``size`` bytes, and call all followers with it."""
        self._records.append((record, size))
        self._size += size
        self.appended += 1
        while len(self._records) > self._capacity or (self._budget is not None and self._size > self._budget):
            self._size -= self._records.popleft()[1]
        for follower in tuple(self._followers.values()):
            follower(record)

    def packed(self) -> PackedFeed:
        """Return the feed for a snapshot, without its followers."""
        return PackedFeed(
            records=[_packed(record) for record, _ in self._records],
            sizes=[size for _, size in self._records],
            appended=self.appended,
        )

    def unpack(self, packed: PackedFeed, kind: type[T]) -> None:
        """Take over the feed of a snapshot; this feed must be empty. ``kind`` is the type of the records. Raises
        ValueError."""
        records = [_unpacked(each, kind) for each in packed.records]
        self._records = deque(zip(records, packed.sizes, strict=True))
        self._size, self.appended = sum(packed.sizes), packed.appended

    def recent(self, wanted: Callable[[T], bool], limit: int | None = None) -> list[T]:
        """Return the ``wanted`` records, oldest first; only the last ``limit`` of them if given."""
        return [record for _, record in self.numbered(wanted, limit)]

    def numbered(self, wanted: Callable[[T], bool], limit: int | None = None, after: int = 0) -> list[tuple[int, T]]:
        """Return records as :meth:`recent` does, each with its number: the first record that was ever appended has
        number 1. Only records with a number above ``after`` are returned."""
        if limit == 0:
            return []
        first = self.forgotten + 1
        numbered = enumerate((record for record, _ in self._records), start=first)
        found = deque(((at, record) for at, record in numbered if at > after and wanted(record)), maxlen=limit)
        return list(found)

    def follow(self, follower: Callable[[T], None]) -> Callable[[], None]:
        """Call ``follower`` with every new record, until the returned function is called (idempotent)."""
        key = object()
        self._followers[key] = follower
        return lambda: (self._followers.pop(key, None), None)[1]


_MSGPACK, _CBOR = b"m", b"c"


def _packed(record: Any) -> bytes:
    """Return the record encoded as MessagePack; as CBOR if it has an integer of more than 64 bits, which workers may
    log."""
    try:
        return _MSGPACK + msgspec.msgpack.encode(record)
    except OverflowError:
        return _CBOR + cbor.dumps(msgspec.to_builtins(record, builtin_types=(bytes,)))


def _unpacked(packed: bytes, kind: type[T]) -> T:
    if packed[:1] == _MSGPACK:
        return msgspec.msgpack.decode(memoryview(packed)[1:], type=kind)
    return msgspec.convert(cbor.loads(packed[1:]), kind)
