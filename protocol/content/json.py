"""JSON of data: RFC 8259, UTF-8.

What Python has and JSON has not goes as the text that is customary: dates and times as RFC 3339, spans as ISO 8601,
UUIDs, decimal numbers and paths as text; integer keys as text, unless two of them meet. Arrays are lists, with null for
what is masked. NaN, infinities, bytes and times without a zone are refused: null, base64 and local time would be
something else.
"""

from __future__ import annotations

import enum
import math
from typing import Any, Final

import msgspec

from chronetix.protocol.cbor import CborError, check_json
from chronetix.protocol.content import arrays
from chronetix.protocol.content.natural import (
    IDENTIFIERS,
    TIMES,
    FormatRules,
    Unfit,
    aware,
    identifier,
    is_scalar,
    is_text,
    natural,
    number_of,
    time_of,
    unknown,
)

NO_BYTES: Final = (
    "JSON has no bytes: give the route content_type application/cbor or application/octet-stream, or send text "
    "(base64, say)"
)
NOT_FINITE: Final = "JSON has no NaN and no infinities: send None, or give the route content_type application/cbor"

_encode = msgspec.json.Encoder().encode


def dumps(value: Any) -> bytes:
    """``value`` as JSON. Raises Unfit, or what else there is to say of text and numbers that JSON cannot hold."""
    try:
        check_json(value)
    except CborError:
        value = natural(value, _RULES)
    return _encode(value)


def loads(data: Any) -> Any:
    """The value in ``data`` (bytes-like). Raises ValueError."""
    return msgspec.json.decode(data)


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise Unfit(NOT_FINITE)
    return value


def _leaf(value: Any) -> Any:
    if isinstance(value, TIMES):
        return aware(time_of(value))
    if isinstance(value, IDENTIFIERS):
        return str(identifier(value))
    if is_text(value):
        return str(value)
    if isinstance(value, bytes | bytearray):
        raise Unfit(NO_BYTES)
    if arrays.is_array(value):
        return natural(arrays.listed(value), _RULES)
    if arrays.has_memory(value):
        raise Unfit(NO_BYTES)
    raise unknown(value)


def _key(key: Any) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if is_scalar(key):
        key = number_of(key)
    if isinstance(key, str):
        return str(natural(key, _RULES))
    if isinstance(key, int) and not isinstance(key, bool):
        return str(int(natural(key, _RULES)))
    raise Unfit(f"a map key is a {type(key).__name__}, and JSON has text: write str(key)")


_RULES: Final = FormatRules(frozenset({str, int, bool, type(None)}), _number, _leaf, _key, list)
