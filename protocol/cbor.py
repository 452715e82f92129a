"""Strict CBOR (RFC 8949): the only bytes that leave or enter a process as structured data.

Rules, the same in both directions:

* exactly one item, consumed to its last byte; definite lengths only;
* maps have text keys, none twice;
* no tags at all (so no cycles, no regular expressions, no big numbers), no undefined, no other simple values;
* integers from -2^64 to 2^64-1; floats may be NaN or infinite;
* at most MAX_DEPTH containers inside each other and MAX_ITEMS items in all.

Bytes that break a rule raise :class:`CborError`; when memory runs out, MemoryError is raised and everything that was
made is freed. Bytes from outside never raise anything else. The code is in ``protocol/native/``.

A large document can be read and written in pieces (:class:`Decoder`, :class:`Encoder`) and freed in pieces
(:func:`dismantle`), so that an event loop does not stand still for it.
"""

from __future__ import annotations

from typing import Any, Final

from chronetix.protocol import _cbor
from chronetix.protocol._cbor import CborError, Decoder, Encoded, Encoder, check_json, dismantle, frame

__all__ = ["MAX_DEPTH", "MAX_INT", "MAX_ITEMS", "MIN_INT", "CborError", "Decoder", "Encoder", "check", "dismantle"]
__all__ += ["Encoded", "check_json", "dumps", "frame", "loads"]

MAX_DEPTH: Final = _cbor.MAX_DEPTH
"""How many containers may be inside each other. Bounds the memory that a peer can make this process use for them; real
flows need about ten."""

MAX_ITEMS: Final = _cbor.MAX_ITEMS
"""How many items one document may have, keys counted. An empty list takes one byte on the wire and 56 in memory:
without this bound a 16 MiB frame could make this process allocate a gigabyte."""

MIN_INT: Final = -(1 << 64)
MAX_INT: Final = (1 << 64) - 1


def loads(data: bytes | bytearray | memoryview, max_items: int = MAX_ITEMS) -> Any:
    """Return the one item that ``data`` holds. Raises CborError when a rule is broken, MemoryError, and nothing
    else."""
    return _cbor.loads(data, max_items)


def dumps(value: Any) -> bytes:
    """Return ``value`` encoded as CBOR, with shortest lengths and keys in the given order.

    Takes None, bool, int, float, str, bytes, bytearray, list, tuple and dict with text keys. The types must be exactly
    these, because the additions of a subclass would be lost. Raises CborError for any other type, for a cycle, for too
    large a number and for text that UTF-8 cannot hold.
    """
    return _cbor.dumps(value)


def check(value: Any) -> None:
    """Raise CborError for a value that :func:`dumps` refuses. Text that UTF-8 cannot hold is not checked."""
    _cbor.check(value)
