"""docs/reference/content-types.md shows what becomes of Python values that are sent on each content type."""

from __future__ import annotations

import array
import datetime
import decimal
import enum
import fractions
import ipaddress
import re
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from chronetix.nodeworker.api import codec
from chronetix.protocol.contract.types import CONTENT_TYPES
from chronetix.protocol.errors import ChronetixError
from tests.docs.pages import REFERENCE, shows, table


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: float


NOON = datetime.datetime(2026, 5, 1, 12, 0, tzinfo=datetime.UTC)

VALUES: dict[str, Any] = {
    "None": None,
    "True": True,
    "7": 7,
    "2**70": 2**70,
    "0.5": 0.5,
    'float("nan")': float("nan"),
    '"text"': "text",
    'b"bytes"': b"bytes",
    "[1, 2]": [1, 2],
    "(1, 2)": (1, 2),
    "range(2)": range(2),
    "deque([1, 2])": deque([1, 2]),
    "{1, 2}": {1, 2},
    '{"a": 1}': {"a": 1},
    "{1: 2}": {1: 2},
    "{(1, 2): 3}": {(1, 2): 3},
    "Point(1, 2.5)  # a dataclass": Point(1, 2.5),
    "Colour.RED  # an Enum": Colour.RED,
    "np.uint8(245)": np.uint8(245),
    "np.float64(0.5)": np.float64(0.5),
    "np.arange(2.0)": np.arange(2.0),
    "np.ones((2, 2))": np.ones((2, 2)),
    "np.ma.array([1, 2], mask=[0, 1])": np.ma.array([1, 2], mask=[0, 1]),
    'np.datetime64("2026-05-01")': np.datetime64("2026-05-01"),
    'array("i", [1, 2])': array.array("i", [1, 2]),
    "datetime(2026, 5, 1, 12, tzinfo=UTC)": NOON,
    "datetime(2026, 5, 1, 12)": NOON.replace(tzinfo=None),
    "date(2026, 5, 1)": NOON.date(),
    "time(12, 0)": datetime.time(12, 0),
    "timedelta(seconds=90)": datetime.timedelta(seconds=90),
    "UUID(int=1)": uuid.UUID(int=1),
    'Decimal("0.1")': decimal.Decimal("0.1"),
    "Fraction(1, 3)": fractions.Fraction(1, 3),
    'IPv4Address("10.0.0.1")': ipaddress.IPv4Address("10.0.0.1"),
    'Path("a/b")': Path("a/b"),
    "1 + 2j": 1 + 2j,
    "object()": object(),
}
"""Of each kind of value one, by the expression that makes it."""

MEMORY: dict[str, Any] = {
    "np.arange(2.0)": np.arange(2.0),
    "np.ones((4, 4), order='F')[::2]": np.ones((4, 4), order="F")[::2],
    '{"camera": 3, "picture": array}': {"camera": 3, "picture": np.zeros((2, 2), "u1")},
    'np.zeros(2, [("x", "f4")])': np.zeros(2, [("x", "f4")]),
    "np.array([object()])": np.array([object()]),
    "np.ma.array([1, 2], mask=[0, 1])": np.ma.array([1, 2], mask=[0, 1]),
    'pa.table({"a": [1]})': pa.table({"a": [1]}),
    'pa.record_batch({"a": [1]})': pa.record_batch({"a": [1]}),
    'b"bytes"': b"bytes",
    'bytearray(b"bytes")': bytearray(b"bytes"),
    '"text"': "text",
    '{"a": 1}': {"a": 1},
}
"""Of each kind of value that has memory one, and some that have none."""

OF_VALUES = (codec.JSON, codec.CBOR)
OF_MEMORY = (codec.NPY, codec.ARROW, codec.OCTETS)


def shape(value: Any) -> str:
    """A received value, as it is written."""
    match value:
        case np.ndarray():
            return f"array of {value.dtype}, shape {value.shape}"
        case pa.Table():
            return f"pyarrow.Table, {value.num_rows} row"
        case memoryview():
            return f"memoryview of {value.nbytes} bytes"
        case dict():
            return "{" + ", ".join(f"{key!r}: {shape(item)}" for key, item in value.items()) + "}"
        case frozenset() | set():
            return repr(set(value))
    return repr(value)


def received(content_type: str, value: Any) -> str:
    """What arrives, or "refused"."""
    kind = codec.of(content_type)
    try:
        data = kind.encode(value)
    except ChronetixError:
        return "refused"
    return f"`{shape(kind.decode(data))}`"


def refusals(values: dict[str, Any], types: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Why each that is refused is refused."""
    found: dict[tuple[str, str], list[str]] = {}
    for shown, value in values.items():
        for content_type in types:
            try:
                codec.of(content_type).encode(value)
            except ChronetixError as reason:
                text = re.sub(r" at 0x\w+|tests\.docs\.\w+\.", "", str(reason.details["reason"]))
                found.setdefault((shown, text), []).append(content_type.removeprefix("application/"))
    return [(f"`{shown}`", ", ".join(kinds), text.replace("<", "\\<")) for (shown, text), kinds in found.items()]


def arrivals(values: dict[str, Any], types: tuple[str, ...]) -> str:
    head = ("sent", *(f"on `{each}`" for each in types))
    return table(head, [(f"`{shown}`", *(received(each, value) for each in types)) for shown, value in values.items()])


def test_the_reference_shows_what_becomes_of_values() -> None:
    shows(
        REFERENCE / "content-types.md",
        {
            "values": arrivals(VALUES, OF_VALUES),
            "memory": arrivals(MEMORY, OF_MEMORY),
            "refusals": table(
                ("sent", "on", "the error says"), [*refusals(VALUES, OF_VALUES), *refusals(MEMORY, OF_MEMORY)]
            ),
        },
    )


def test_every_content_type_of_the_contract_is_in_it() -> None:
    assert {*OF_VALUES, *OF_MEMORY} == set(CONTENT_TYPES)


@pytest.mark.parametrize("content_type", ["text/plain", "image/png", "application/x-something"])
def test_any_other_content_type_carries_bytes(content_type: str) -> None:
    assert received(content_type, b"bytes") == "`memoryview of 5 bytes`"
    assert received(content_type, "text") == received(content_type, {"a": 1}) == "refused"


def test_both_spellings_of_arrow_are_one_type() -> None:
    assert codec.canonical("application/arrow+ipc") == codec.ARROW
    assert codec.canonical("Application/JSON; charset=utf-8") == codec.JSON
