"""Content types: values survive the way there and back, and failures name the place."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.nodeworker.api import codec
from chronetix.protocol.errors import ChronetixError

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.floats(allow_nan=False)
json_values = st.recursive(
    scalars.filter(lambda v: not isinstance(v, float) or abs(v) != float("inf")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
cbor_values = st.recursive(
    scalars | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_json_values_come_back(value):
    kind = codec.of("application/json")
    assert kind.decode(kind.encode(value)) == value


@given(cbor_values.filter(lambda value: not isinstance(value, bytes)))
def test_cbor_values_come_back(value):
    kind = codec.of("application/cbor")
    assert kind.decode(kind.encode(value)) == value


@given(st.binary(), st.sampled_from([codec.JSON, codec.CBOR, codec.ARROW, codec.OCTETS, "image/png"]))
def test_bytes_pass_as_they_are_whatever_the_type(data, content_type):
    kind = codec.of(content_type)
    for form in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert kind.encode(form) == data


@given(st.binary(), st.sampled_from([codec.JSON, codec.CBOR, codec.ARROW]))
def test_any_bytes_decode_or_are_refused(data, content_type):
    with contextlib.suppress(ChronetixError):
        codec.of(content_type).decode(data)


@given(st.recursive(scalars | st.binary(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_plain_values_stay_as_they_are(value):
    assert codec.plain(value) == value or value != value


@dataclasses.dataclass
class Point:
    x: int


class Named(msgspec.Struct):
    y: int


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (Point(1), {"x": 1}),
        (Named(2), {"y": 2}),
        ({"p": Path("/tmp")}, {"p": "/tmp"}),
        ((1, np.int8(2)), (1, 2)),
        ({1: "one"}, {"1": "one"}),
    ],
)
def test_values_of_other_types_take_the_nearest_form(value, becomes):
    assert codec.plain(value) == becomes


@pytest.mark.parametrize("content_type", [codec.JSON, codec.CBOR, codec.OCTETS, codec.ARROW, "image/png"])
def test_what_has_no_form_is_refused_by_name(content_type):
    with pytest.raises(ChronetixError) as caught:
        codec.of(content_type).encode(object(), "route r")
    assert caught.value.name == "payload-unencodable"
    assert "route r" in caught.value.message


@pytest.mark.parametrize(
    ("given_type", "canonical"),
    [
        ("application/arrow+ipc", codec.ARROW),
        ("Application/JSON; charset=utf-8", codec.JSON),
        ("", codec.JSON),
        ("image/png", "image/png"),
    ],
)
def test_spellings_of_a_type_are_one(given_type, canonical):
    assert codec.canonical(given_type) == canonical
