"""Whatever a flow's map holds: problems, never an exception, and in bounded measure."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol import cbor
from chronetix.protocol.contract import Validation, parse_flow
from chronetix.protocol.contract.reading import MAX_NAME, MAX_NOTES, MAX_QUOTE, quote, unfit_name

MINIMAL: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "minimal_compile_output.json").read_bytes())

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(1 << 60, 1 << 300)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.sampled_from(["data", "control", "http-client", "Python", "file://", "control/timer/x", "1", "\ud800", "\x00"])
)
field_names = st.sampled_from(
    ["manifests", "routes", "from", "to", "plane", "qos", "io", "artifact", "timers", "schedule", "node_id", "params"]
) | st.text(max_size=6)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(field_names | st.integers() | st.none(), inner, max_size=5)
    ),
    max_leaves=25,
)


def holds(validation: Validation) -> None:
    """A flow or problems, each in words that can be shown and sent."""
    assert (validation.flow is None) == bool(validation.problems)
    notes = validation.problems + validation.warnings
    assert len(notes) <= 2 * MAX_NOTES + 1
    for note in notes:
        assert note.message
        assert str(note).replace("\n", "").isprintable()
        assert len(str(note)) < 3000
        cbor.dumps([note.path, note.message, note.suggestion])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside ``value``."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


PLACES = places(MINIMAL)[1:]


@given(anything)
def test_any_value_at_all(raw: Any) -> None:
    holds(parse_flow(raw))


@given(st.lists(anything, max_size=3), st.lists(anything, max_size=3), st.dictionaries(st.text(), anything, max_size=3))
def test_any_manifests_routes_and_bindings(manifests: list[Any], routes: list[Any], bindings: Any) -> None:
    holds(parse_flow({"manifests": manifests, "routes": routes}, bindings=bindings))


@given(st.lists(st.tuples(st.sampled_from(PLACES), anything), min_size=1, max_size=3))
def test_a_real_flow_with_anything_in_any_place(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    raw = copy.deepcopy(MINIMAL)
    for (*way, last), value in changes:
        parent: Any = raw
        try:
            for step in way:
                parent = parent[step]
            parent[last] = value
        except (TypeError, KeyError, IndexError):
            continue
    holds(parse_flow(raw))


@given(st.sampled_from(PLACES))
def test_a_real_flow_with_anything_left_out(place: tuple[Any, ...]) -> None:
    raw = copy.deepcopy(MINIMAL)
    parent: Any = raw
    for step in place[:-1]:
        parent = parent[step]
    del parent[place[-1]]
    holds(parse_flow(raw))


def test_problems_beyond_a_hundred_are_counted() -> None:
    validation = parse_flow({"manifests": [None] * 1000})
    assert len(validation.problems) == MAX_NOTES + 1
    assert validation.problems[-1].message == "and 900 problems more"


def test_depth_does_not_exhaust_the_stack() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"params": deep}
    holds(parse_flow({"manifests": [deep]}))
    while deep:
        deep = deep.pop("params")


def test_many_unknown_names_are_compared_only_so_often() -> None:
    manifests = [
        {"node_id": f"n{n}", "plugin_id": "p", "artifact": {"kind": "Python", "uri": "x"}} for n in range(3000)
    ]
    routes = [{"from": f"m{n}", "to": f"k{n}", "plane": f"dat{n}", f"fron{n}": 1} for n in range(3000)]
    validation = parse_flow({"manifests": manifests, "routes": routes, **{f"manifest{n}": n for n in range(9000)}})
    holds(validation)
    assert validation.problems[-1].message.startswith("and ")


def test_a_name_is_as_long_as_the_limit_and_no_longer() -> None:
    assert unfit_name("n" * MAX_NAME) == ""
    assert unfit_name("n" * (MAX_NAME + 1)) == "has more than 200 characters"


def test_what_is_quoted_is_cut_behind_the_limit() -> None:
    assert quote("x" * MAX_QUOTE) == f'"{"x" * MAX_QUOTE}"'
    assert quote("x" * (MAX_QUOTE + 1)) == f'"{"x" * MAX_QUOTE}…"'
    assert quote("a\x1b[2Jb") == '"a\N{REPLACEMENT CHARACTER}[2Jb"'
    assert quote(1 << 127) == str(1 << 127)
    assert quote(1 << 128) == "of 129 bits"
