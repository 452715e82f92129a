"""Plain values: results and fields of log records keep all that they say, and what has no form is refused."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import uuid
from pathlib import Path

import msgspec
import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.content.natural import Unfit
from chronetix.protocol.content.plain import plain

scalars = st.none() | st.booleans() | st.integers() | st.text() | st.floats() | st.binary()
ODD = dt.timezone(dt.timedelta(hours=1, seconds=30))
ODDER = dt.timezone(-dt.timedelta(hours=1, microseconds=1))
zones = st.sampled_from([dt.UTC, ODD, ODDER])


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_plain_values_stay_as_they_are(value):
    assert repr(plain(value)) == repr(value)


@given(st.datetimes(timezones=zones) | st.times(timezones=zones))
def test_a_time_can_be_read_again_as_it_was(value):
    read = type(value).fromisoformat(plain(value))
    assert (read, read.utcoffset()) == (value, value.utcoffset())


@dataclasses.dataclass
class Point:
    x: int


class Named(msgspec.Struct):
    y: int


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.arange(4).reshape(2, 2).T, [[0, 2], [1, 3]]),
        (np.array([None, "a"], object), [None, "a"]),
        (np.array([(1, 0.5)], "i4,f8"), [[1, 0.5]]),
        (np.ma.array([1, 2], mask=[0, 1]), [1, None]),
        (Point(1), {"x": 1}),
        (Named(2), {"y": 2}),
        (Colour.RED, "red"),
        ({"p": Path("/tmp")}, {"p": "/tmp"}),
        ((1, np.int8(2)), [1, 2]),
        ({1: "one", Colour.RED: 2, dt.date(2026, 3, 4): 3}, {"1": "one", "red": 2, "2026-03-04": 3}),
        (frozenset([7]), [7]),
        (collections.deque([1]), [1]),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
        (dt.datetime(2026, 3, 4), "2026-03-04T00:00:00"),
        (dt.datetime(2026, 3, 4, 1, 2, 3, 5, dt.UTC), "2026-03-04T01:02:03.000005Z"),
        (dt.datetime(2026, 3, 4, tzinfo=ODD), "2026-03-04T00:00:00+01:00:30"),
        ([dt.time(1, 2, 3, 4, ODDER)], ["01:02:03.000004-01:00:00.000001"]),
        (dt.date(2026, 3, 4), "2026-03-04"),
        (dt.timedelta(days=1, microseconds=3), "P1DT0.000003S"),
        (-dt.timedelta(microseconds=1), "-PT0.000001S"),
        (decimal.Decimal("1.10"), "1.10"),
        (decimal.Decimal("NaN"), "NaN"),
        (fractions.Fraction(1, 3), "1/3"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (ipaddress.ip_address("::1"), "::1"),
        (pandas.Timestamp("2026-03-04T00:00:00.123456789Z"), "2026-03-04 00:00:00.123456789+00:00"),
        (pandas.Timestamp("2026-03-04T00:00:00.5"), "2026-03-04T00:00:00.500000"),
        (pandas.Timedelta("1ns"), "0 days 00:00:00.000000001"),
        (pandas.NaT, "NaT"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_other_types_take_the_nearest_form(value, becomes):
    assert plain(value) == becomes


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": [object()]}, r"at \.a\[0\]: a builtins\.object has no form in it"),
        (np.datetime64("2026-03-04"), r"send str\(value\) or a datetime"),
        ({(1, 2): 3}, "a map key is a tuple, which has no text"),
        ({1: "a", "1": "b"}, "two keys of the map would be the same"),
        (np.array([1j]), "an array of"),
        (1j, "no form in it"),
        ((n for n in [1]), "write the callback itself with yield"),
    ],
)
def test_what_has_no_form_is_refused(value, says):
    with pytest.raises(Unfit, match=says):
        plain(value)
