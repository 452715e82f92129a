"""The name that was probably meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.nearest import MAX_CANDIDATES, MAX_WORD, did_you_mean, nearest


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("submti", ["submit", "stop"], "submit"),
        ("python", ["Python", "Process"], "Python"),
        ("wasm", ["WasmComponent", "Dylib"], "WasmComponent"),
        ("coalesc", ["skip", "coalesce"], "coalesce"),
        ("xyz", ["submit", "stop"], None),
        ("", ["submit"], None),
        ("w", ["WasmComponent"], None),
        ("wa", ["WasmComponent"], None),
        ("was", ["WasmComponent"], "WasmComponent"),
        ("anything", [], None),
    ],
)
def test_the_nearest_name_is_found_or_none(word: str, known: list[str], meant: str | None) -> None:
    assert nearest(word, known) == meant


def test_the_question_names_it() -> None:
    assert did_you_mean("dat", ["data"]) == 'did you mean "data"?'
    assert did_you_mean("xyz", ["data"], "one of: data") == "one of: data"


@given(st.text(), st.lists(st.text()))
def test_what_is_found_is_one_of_the_known_names(word: str, known: list[str]) -> None:
    found = nearest(word, known)
    assert found is None or found in known


def test_what_is_compared_is_bounded() -> None:
    long = "x" * MAX_WORD
    assert nearest(long + "y", [long + "z"], cutoff=1.0) == long + "z"
    assert nearest(long[1:] + "y", [long[1:] + "z"], cutoff=1.0) is None
    many = [f"{number:04}" for number in range(MAX_CANDIDATES + 1)]
    assert nearest(many[-2], many, cutoff=1.0) == many[-2]
    assert nearest(many[-1], many, cutoff=1.0) is None
