"""A Python value in what the control plane's CBOR carries: null, booleans, numbers, text, bytes, lists and maps with
text for keys. Results of nodes and fields of log records are made of these.

Rules: nothing is cut off. A time is text with all of its offset, a decimal number with all of its digits; what has no
such form is refused (:class:`Unfit` says what to send instead).
"""

from __future__ import annotations

import datetime
import enum
import os
import sys
from typing import Any, Final

import msgspec

from chronetix.protocol.content import arrays
from chronetix.protocol.content.natural import (
    IDENTIFIERS,
    MINUTE,
    TIMES,
    FormatRules,
    Unfit,
    is_scalar,
    is_text,
    natural,
    number_of,
    unknown,
)


def plain(value: Any) -> Any:
    """``value`` in these shapes. Raises Unfit."""
    return natural(value, _RULES)


def _leaf(value: Any) -> Any:
    if isinstance(value, TIMES):
        return _spelt(value)
    if isinstance(value, IDENTIFIERS):
        return str(value)
    if is_text(value):
        return os.fsdecode(value)
    if isinstance(value, bytearray):
        return bytes(value)
    if arrays.is_array(value):
        return natural(_listed(value), _RULES)
    if arrays.has_memory(value):
        return memoryview(value).tobytes()
    raise unknown(value)


def _listed(value: Any) -> Any:
    """An array's items, also of objects and records, which are plain values or are refused one by one."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "OSV":
        return value.tolist()
    return arrays.listed(value)


def _spelt(value: Any) -> str:
    """A time as RFC 3339 or ISO 8601 has it; one that is more exact than Python's as it spells itself."""
    if value != value:
        return "NaT"
    if getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0):
        return str(value)  # pandas'
    offset = value.utcoffset() if isinstance(value, datetime.datetime | datetime.time) else None
    if offset is not None and offset % MINUTE:
        return str(value.isoformat())
    return str(msgspec.to_builtins(value) if type(value) in TIMES else value.isoformat())


def _key(key: Any) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if is_scalar(key):
        key = number_of(key)
    if isinstance(key, str | int | float):
        return str(key)
    made = natural(key, _RULES)
    if not isinstance(made, str):
        raise Unfit(f"a map key is a {type(key).__name__}, which has no text: write str(key)")
    return made


def _number(value: float) -> float:
    return value


_RULES: Final = FormatRules(frozenset({str, int, bool, bytes, type(None)}), _number, _leaf, _key, list)
