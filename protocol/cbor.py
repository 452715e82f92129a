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

from collections.abc import Sequence
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

_MAX_REASON: Final = 200
"""Characters of the decoder's own words, which quote the peer, that an error repeats."""

_SCALARS: Final = frozenset({int, str, bytes, float, bool, type(None)})
_ENCODABLE: Final = _SCALARS | {bytearray}


class Encoded:
    """One item that is CBOR already, of :func:`dumps`: it goes as it is into what is made around it."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    @classmethod
    def list(cls, items: Sequence[bytes]) -> Encoded:
        """A list of items that are CBOR already."""
        return cls(_head(4, len(items)) + b"".join(items))


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
    stream = BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            stream,
            semantic_decoders=_NO_TAGS,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        ).decode()
    except cbor2.CBORError as reason:
        raise CborError(_explain(reason)) from None
    if stream.tell() != len(data):
        raise CborError("there are bytes after the end of the item")
    kind = type(value)
    if kind is dict or kind is list:
        _check_decoded(value)
    elif kind not in _SCALARS:
        raise CborError(f"{value!r} is not allowed")
    return value


def dumps(value: Any) -> bytes:
    """``value`` as CBOR, shortest lengths, keys in the order given.

    Takes None, bool, int, float, str, bytes, bytearray, list, tuple and dict with text keys; of exactly these types,
    since what a subclass adds would be lost. Raises CborError for anything else, for a cycle, for too large a number
    and for text that UTF-8 cannot hold.
    """
    check(value)
    try:
        return cbor2.dumps(value, default=_put_encoded)
    except UnicodeEncodeError as reason:
        raise CborError(f"text that UTF-8 cannot hold: {reason}") from None


def check(value: Any) -> None:
    """Raise CborError for what :func:`dumps` does not take, but for text that UTF-8 cannot hold."""
    _check_encodable((value,), -1)


def _explain(reason: cbor2.CBORError) -> str:
    cause = reason.__cause__
    text = str(cause if isinstance(cause, CborError) else reason) or type(reason).__name__
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 1] + "…"


def _check_decoded(container: Any) -> None:
    """Refuse what cbor2 lets through: bytes as keys, undefined, simple values. The decoder has bounded the depth."""
    if type(container) is dict:
        for key in container:
            if type(key) is not str:
                raise CborError("a map key must be text, not bytes")
        container = container.values()
    for item in container:
        kind = type(item)
        if kind is dict or kind is list:
            _check_decoded(item)
        elif kind not in _SCALARS:
            raise CborError(f"{item!r} is not allowed")


def _check_encodable(container: Any, depth: int) -> None:
    if depth == MAX_DEPTH:
        raise CborError(f"more than {MAX_DEPTH} containers inside each other")
    if type(container) is dict:
        for key in container:
            if type(key) is not str:
                raise CborError(f"a map key must be text, not {type(key).__name__}")
        container = container.values()
    for item in container:
        kind = type(item)
        if kind is int:
            if not MIN_INT <= item <= MAX_INT:
                raise CborError(f"{_short(item)} is outside -2^64 … 2^64-1")
        elif kind is dict or kind is list or kind is tuple:
            _check_encodable(item, depth + 1)
        elif kind not in _ENCODABLE and kind is not Encoded:
            raise CborError(f"a {kind.__name__} has no place in CBOR")


def _put_encoded(encoder: cbor2.CBOREncoder, value: Any) -> None:
    encoder.write(value.data)


def _head(kind: int, argument: int) -> bytes:
    """The head of an item of the major type ``kind``."""
    if argument < 24:
        return bytes((kind << 5 | argument,))
    width = next(width for width in (1, 2, 4, 8) if argument < 1 << 8 * width)
    return bytes((kind << 5 | 23 + width.bit_length(),)) + argument.to_bytes(width, "big")


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


def _refuse_unfit_decoder() -> None:
    """Bytes after an item are seen from where the decoder leaves the stream: it must put back what it read ahead."""
    try:
        loads(b"\x00\x00")
    except CborError:
        return
    from importlib.metadata import version

    raise ImportError(f"cbor2 {version('cbor2')} reads ahead without putting back; install cbor2 6.3 or newer")


_refuse_unfit_decoder()
