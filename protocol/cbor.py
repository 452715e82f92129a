"""Strict CBOR (RFC 8949): the only bytes that leave or enter a process as structured data.

Rules, the same in both directions:

* exactly one item, consumed to its last byte; definite lengths only;
* maps have text keys, none twice;
* no tags at all (so no cycles, no regular expressions, no big numbers), no undefined, no other simple values;
* integers from -2^64 to 2^64-1; floats may be NaN or infinite;
* at most MAX_DEPTH containers inside each other and MAX_ITEMS items in all.

Whatever breaks one of them is a :class:`CborError`; nothing else is ever raised for bytes that came from outside.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final, NoReturn

import cbor2

MAX_DEPTH: Final = 64
"""Containers inside each other. Bounds the stack that a peer can make us use; real flows need about ten."""

MAX_ITEMS: Final = 1 << 20
"""Items in one document, keys counted. An empty list takes one byte on the wire and 56 in memory: without this
bound a 16 MiB frame could make us allocate a gigabyte."""

MIN_INT: Final = -(1 << 64)
MAX_INT: Final = (1 << 64) - 1

_SCALARS: Final = frozenset({int, str, bytes, float, bool, type(None)})
_TEXT: Final = frozenset({str})
_TOO_DEEP: Final = f"more than {MAX_DEPTH} containers inside each other"


class CborError(ValueError):
    """These bytes, or this value, are not CBOR as we speak it; the text says which rule is broken."""


class _NoTags(dict[int, Any]):
    """Every tag that the decoder looks up is refused, before the content of the tag is read."""

    def __missing__(self, tag: int) -> NoReturn:
        raise CborError(f"tag {tag} is not allowed")


_NO_TAGS: Final = _NoTags()


def loads(data: bytes) -> Any:
    """The one item that ``data`` holds. Raises CborError, and nothing else, when a rule is broken."""
    if len(data) > MAX_ITEMS:
        _count_items(data)
    decoder = cbor2.CBORDecoder(
        BytesIO(data),
        semantic_decoders=_NO_TAGS,
        max_depth=MAX_DEPTH,
        allow_indefinite=False,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
    )
    try:
        value = decoder.decode()
    except cbor2.CBORError as reason:
        raise CborError(_explain(reason)) from None
    _expect_end(decoder)
    _check_decoded(value)
    return value


def dumps(value: Any) -> bytes:
    """``value`` as CBOR, shortest lengths, keys in the order given.

    Takes None, bool, int, float, str, bytes, bytearray, list, tuple and dict with text keys; of exactly these types,
    since what a subclass adds would be lost. Raises CborError for anything else, for a cycle, for too large a number
    and for text that UTF-8 cannot hold.
    """
    _check_encodable(value, 0)
    try:
        return cbor2.dumps(value)
    except UnicodeEncodeError as reason:
        raise CborError(f"text that UTF-8 cannot hold: {reason}") from None


def check(value: Any) -> None:
    """Raise CborError where :func:`dumps` would."""
    _check_encodable(value, 0)


def _expect_end(decoder: cbor2.CBORDecoder) -> None:
    try:
        decoder.read(1)
    except cbor2.CBORDecodeEOF:
        return
    raise CborError("there are bytes after the end of the item")


def _explain(reason: cbor2.CBORError) -> str:
    cause = reason.__cause__
    return str(cause if isinstance(cause, CborError) else reason) or type(reason).__name__


def _check_decoded(value: Any) -> None:
    """Refuse what cbor2 lets through: bytes as keys, undefined, simple values. Containers are looked through by type
    only, so this costs a fraction of the decoding."""
    if type(value) not in (dict, list):
        if type(value) not in _SCALARS:
            raise CborError(f"{value!r} is not allowed")
        return
    pending = [value]
    while pending:
        container = pending.pop()
        if type(container) is dict:
            if not _TEXT.issuperset(map(type, container)):
                raise CborError("a map key must be text, not bytes")
            container = container.values()
        types = set(map(type, container)) - _SCALARS
        if not types:
            continue
        for item in container:
            if type(item) is dict or type(item) is list:
                pending.append(item)
            elif type(item) not in _SCALARS:
                raise CborError(f"{item!r} is not allowed")


def _check_encodable(value: Any, depth: int) -> None:
    kind = type(value)
    if kind is int:
        if not MIN_INT <= value <= MAX_INT:
            raise CborError(f"{_short(value)} is outside -2^64 … 2^64-1")
    elif kind is str or kind is bytes or kind is float or kind is bool or value is None:
        return
    elif kind is dict or kind is list or kind is tuple:
        if depth == MAX_DEPTH:
            raise CborError(_TOO_DEEP)
        if kind is dict:
            if not _TEXT.issuperset(map(type, value)):
                raise CborError("a map key must be text")
            value = value.values()
        for item in value:
            _check_encodable(item, depth + 1)
    elif kind is not bytearray:
        raise CborError(f"a {kind.__name__} has no place in CBOR")


def _short(number: int) -> str:
    return str(number) if number.bit_length() < 256 else f"a number of {number.bit_length()} bits"


def _count_items(data: bytes) -> None:
    """Walk over the heads and refuse more than MAX_ITEMS. Reads no content, so a long string costs one step; what is
    malformed is left to the decoder to refuse."""
    position, items, size = 0, 0, len(data)
    while position < size:
        items += 1
        if items > MAX_ITEMS:
            raise CborError(f"more than {MAX_ITEMS} items")
        head = data[position]
        position += 1
        argument = head & 31
        if argument >= 24:
            width = 1 << (argument - 24) if argument < 28 else 0
            argument = int.from_bytes(data[position : position + width], "big")
            position += width
        if head >> 5 in (2, 3):
            position += argument
