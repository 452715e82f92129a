"""What is printed as JSON is JSON, whatever CBOR has brought."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.json_text import json_text

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.floats(), inner),
)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@given(ANYTHING, st.sampled_from([None, 2]))
def test_every_parser_reads_it(value: Any, indent: int | None) -> None:
    json.loads(json_text(value, indent), parse_constant=refuse)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_lacks_are_null_wherever_they_stand(number: float) -> None:
    assert json.loads(json_text({"a": [1.5, (number,)], "b": number})) == {"a": [1.5, [None]], "b": None}


def test_what_json_has_is_kept() -> None:
    value = {"text": "ä\n", "numbers": [1, -2.5, 1 << 80], "nothing": None, "truth": True}
    assert json.loads(json_text(value)) == value


@pytest.mark.parametrize("data", [b"ok \xc3\xa4", bytearray(b"ok \xc3\xa4"), memoryview(b"ok \xc3\xa4")])
def test_bytes_that_are_text_become_text(data: Any) -> None:
    assert json_text([data]) == '["ok ä"]'


def test_other_bytes_become_hex() -> None:
    assert json_text({"b": b"\xff\x00"}) == '{"b": "ff00"}'
