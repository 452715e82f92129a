"""Strict CBOR in both directions."""

from __future__ import annotations

import math
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol import cbor

scalars = (
    st.none()
    | st.booleans()
    | st.integers(cbor.MIN_INT, cbor.MAX_INT)
    | st.floats()
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner)
)


def same(left: Any, right: Any) -> bool:
    """Equality of documents in which NaN equals itself and True differs from 1."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return math.isnan(left) == math.isnan(right) and (math.isnan(left) or left == right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(documents)
def test_what_is_written_is_read_back(document: Any) -> None:
    assert same(cbor.loads(cbor.dumps(document)), document)


@given(documents, st.binary(min_size=1))
def test_bytes_after_the_item_are_refused(document: Any, tail: bytes) -> None:
    with pytest.raises(cbor.CborError, match="after the end"):
        cbor.loads(cbor.dumps(document) + tail)


@pytest.mark.parametrize("size", [0, 1, 4090, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 300_000])
@pytest.mark.parametrize("tail", [1, 2, 4096, 70_000])
def test_bytes_after_the_item_are_seen_however_the_decoder_reads_ahead(size: int, tail: int) -> None:
    document = cbor.dumps([b"x" * size, "y" * size])
    assert cbor.loads(document) == [b"x" * size, "y" * size]
    with pytest.raises(cbor.CborError, match="after the end"):
        cbor.loads(document + bytes(tail))


@given(documents, st.data())
def test_a_document_cut_short_is_refused(document: Any, data: st.DataObject) -> None:
    encoded = cbor.dumps(document)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(cbor.CborError):
        cbor.loads(encoded[:cut])


@given(st.binary())
def test_any_bytes_give_a_document_or_a_cbor_error(data: bytes) -> None:
    try:
        document = cbor.loads(data)
    except cbor.CborError:
        return
    assert same(cbor.loads(cbor.dumps(document)), document)


@given(st.integers(0, 1 << 64), documents)
def test_every_tag_is_refused(tag: int, content: Any) -> None:
    tagged = cbor2.dumps([cbor2.CBORTag(min(tag, cbor.MAX_INT), content)])
    with pytest.raises(cbor.CborError, match="tag"):
        cbor.loads(tagged)


def test_the_content_of_a_tag_is_not_looked_at() -> None:
    broken_pattern = bytes.fromhex("d8236128")
    with pytest.raises(cbor.CborError, match="tag 35 is not allowed"):
        cbor.loads(broken_pattern)


def test_tags_inside_each_other_do_not_exhaust_the_stack() -> None:
    with pytest.raises(cbor.CborError, match="tag 1 "):
        cbor.loads(b"\xc1" * 100_000 + b"\x00")


@pytest.mark.parametrize("head", [b"\x81", b"\xa1\x61k"])
def test_containers_may_be_nested_up_to_the_limit(head: bytes) -> None:
    deepest = cbor.loads(head * cbor.MAX_DEPTH + b"\x00")
    assert cbor.loads(cbor.dumps(deepest)) == deepest
    with pytest.raises(cbor.CborError, match="64"):
        cbor.loads(head * (cbor.MAX_DEPTH + 1) + b"\x00")
    with pytest.raises(cbor.CborError, match="64"):
        cbor.dumps([deepest])


def test_more_items_than_the_limit_are_refused_before_they_are_made() -> None:
    crowd = b"\x9a" + cbor.MAX_ITEMS.to_bytes(4, "big") + b"\x80" * cbor.MAX_ITEMS
    with pytest.raises(cbor.CborError, match="more than 1048576 items"):
        cbor.loads(crowd)


@pytest.mark.parametrize(
    ("value", "items"),
    [(7, 1), ([], 1), ([1, 2, 3], 4), ({"a": 1}, 3), ([[], {"a": []}], 5), ({"a": {"b": [1]}, "c": 2}, 8)],
)
def test_as_many_items_as_the_limit_are_taken_and_one_more_is_not(value: object, items: int) -> None:
    """A key is an item, and so is every container."""
    assert cbor.loads(cbor.dumps(value), items) == value
    if items > 1:
        with pytest.raises(cbor.CborError, match=f"more than {items - 1} items"):
            cbor.loads(cbor.dumps(value), items - 1)


def test_a_long_string_counts_as_one_item() -> None:
    assert cbor.loads(cbor.dumps([b"\x80" * (cbor.MAX_ITEMS + 1), "z" * cbor.MAX_ITEMS]))[1][0] == "z"


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        ("a14161 02", "key must be text"),
        ("81a14161 02", "key must be text"),
        ("a101 02", "key"),
        ("a2616101616102", "[Dd]uplicate"),
        ("f7", "undefined"),
        ("a16161f7", "undefined"),
        ("81f0", "simple value 16"),
        ("9f01ff", "indefinite"),
        ("bf616101ff", "indefinite"),
        ("5f4101ff", "indefinite"),
        ("7f6161ff", "indefinite"),
        ("61ff", "text string"),
        ("ff", "break"),
        ("9bffffffffffffffff", "end of stream"),
        ("829bffffffffffffffff00", "end of stream"),  # with the item that is still owed it is 0 in 64 bits
        ("bb8000000000000000", "end of stream"),  # twice as many are 0 in 64 bits
        ("bb8000000000000001616100", "end of stream"),
        ("bb7fffffffffffffff", "end of stream"),
        ("5bffffffffffffffff", "end of stream"),
        ("7b0000000fffffffff", "end of stream"),
        ("", "end of stream"),
    ],
)
def test_what_the_rules_forbid_is_refused_with_the_reason(encoded: str, reason: str) -> None:
    with pytest.raises(cbor.CborError, match=reason):
        cbor.loads(bytes.fromhex(encoded))


def test_the_reason_quotes_only_the_beginning_of_what_a_peer_wrote() -> None:
    key = b"\x79\xff\xff" + b"k" * 65535
    with pytest.raises(cbor.CborError) as caught:
        cbor.loads(b"\xa2" + (key + b"\x01") * 2)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1 << 64, "outside"),
        (-(1 << 64) - 1, "outside"),
        pytest.param(10**5000, "16610 bits", id="5001 digits"),
        ({1: 2}, "key must be text, not int"),
        ({b"k": 2}, "key must be text, not bytes"),
        ({1, 2}, "set has no place"),
        (object(), "object has no place"),
        (memoryview(b"x"), "memoryview has no place"),
        ("\ud800", "UTF-8"),
        ({"deep": [{"\udfff": 1}]}, "UTF-8"),
    ],
)
def test_what_cbor_has_no_place_for_is_not_written(value: Any, reason: str) -> None:
    with pytest.raises(cbor.CborError, match=reason):
        cbor.dumps(value)


def test_a_cycle_is_not_written() -> None:
    cycle: list[Any] = []
    cycle.append({"again": cycle})
    with pytest.raises(cbor.CborError, match="inside each other"):
        cbor.dumps(cycle)


def test_tuples_are_written_as_lists_and_bytearrays_as_bytes() -> None:
    assert cbor.loads(cbor.dumps((1, bytearray(b"x")))) == [1, b"x"]
