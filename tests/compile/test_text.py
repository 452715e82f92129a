"""YAML and JSON as text: what they mean, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from chronetixd.compile import Compiled, CompileError, compile_text, tree
from chronetixd.compile.problems import Position
from chronetixd.compile.yaml_text import read_yaml

FLOW = 'nodes: [{{id: a, plugin: {{artifact: "python://m:f"}}, params: {{v: {}}}}}]'


def value_of(text: str) -> object:
    return compile_text(FLOW.format(text), "flow.yaml").output["manifests"][0]["params"]["v"]


def refusal(text: str, name: str = "flow.yaml") -> str:
    with pytest.raises(CompileError) as caught:
        compile_text(text, name)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("12:30:00", "12:30:00"),
        ("'7'", "7"),
        ("!!str 7", "7"),
        ("!!float 7", 7.0),
    ],
)
def test_a_yaml_scalar_is_what_yaml_1_2_says(text: str, value: object) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


def test_anchors_and_merges_work() -> None:
    assert value_of("{base: &b {x: 1, y: 2}, both: {<<: *b, y: 3}}") == {
        "base": {"x": 1, "y": 2},
        "both": {"x": 1, "y": 3},
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", 'key "a" stands twice'),
        ("1: x", "key 1 is not text"),
        ("true: x", "key true is not text"),
        ("? [a]\n: x", "key a list is not text"),
        ("a: *b", 'alias "*b" has no anchor'),
        ("a: &b [*b]", "inside its own anchor"),
        ("a: !!python/object/apply:os.system [id]", "tag"),
        ("a: !mine 1", "tag"),
        ("a: .inf", "not finite"),
        ("a: 1e999", "not finite"),
        (f"a: {10**30}", "64 bits"),
        (f"a: {'9' * 5000}", "64 bits"),
        ("a: 1\n---\nb: 2", "second document"),
        ("a: [", "not YAML"),
        ("a: b: c", "in quotes"),
        ("a:\n\t- b", "spaces"),
        ("a: \x07", "not allowed"),
        ('a: "\\UFFFFFFFF"', "not YAML"),
        ('a: "\\ud800"', "surrogate"),
        ("a: " + "[" * 5000 + "]" * 5000, "levels deep"),
        ("- " * 5000 + "x", "levels deep"),
        ("a: &a " + "[" * 40 + "1" + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40, "levels deep"),
        ("<<: 3", "only mappings can be merged"),
    ],
)
def test_yaml_that_is_no_plain_finite_data_is_refused(text: str, says: str) -> None:
    assert says in refusal(text)


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]

    assert "aliases are expanded" in refusal("\n".join(lines))


@pytest.mark.parametrize("name", ["flow.yaml", "flow.json"])
def test_as_many_levels_as_the_limit_are_read_and_one_more_is_not(name: str) -> None:
    """The document is the first level, what stands innermost the last."""
    assert "levels deep" not in refusal(
        '{"a": ' + "[" * (tree.MAX_DEPTH - 2) + "1" + "]" * (tree.MAX_DEPTH - 2) + "}", name
    )
    assert "levels deep" in refusal(
        '{"a": ' + "[" * (tree.MAX_DEPTH - 1) + "1" + "]" * (tree.MAX_DEPTH - 1) + "}", name
    )


def test_as_many_values_as_the_limit_are_read_and_one_more_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an alias stands for counts where it stands; keys do not."""
    text = "{a: &x [1, 2], b: *x, c: [*x]}"  # the mapping, three lists, one that holds a list, and six numbers
    monkeypatch.setattr(tree, "MAX_NODES", 11)
    assert "aliases are expanded" not in refusal(text)
    monkeypatch.setattr(tree, "MAX_NODES", 10)
    assert "more than 10 values once aliases are expanded" in refusal(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": 1,}', "1:9"),
        ('{"a": 1} x', "1:10"),
        ('{"a"\n: 01}', "2:4"),
        ('{"a": NaN}', "1:7"),
        ('{"a": "\\x"}', "1:8"),
        ('{"a": "\n"}', "1:8"),
        ('{"a": [1 2]}', "1:10"),
        ('{"a": ', "1:7"),
        ('{"a": 1, "a": 2}', "1:10"),
        ('{"a": "\\ud800"}', "1:7"),
        ('{"\\ud800": 1}', "1:2"),
        ('{"a": ' + "9" * 5000 + "}", "1:7"),
        ('{"a": 1e999}', "1:7"),
        ('{"a": ' * 5000, "1:289"),
    ],
)
def test_json_that_is_not_json_is_refused_at_its_place(text: str, place: str) -> None:
    assert refusal(text, "flow.json").startswith(f"flow.json:{place}:")


NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_whatever_json_can_say_arrives_unchanged(value: object) -> None:
    flow = {"nodes": [{"id": "a", "plugin": {"artifact": "python://m:f"}, "params": {"v": value}}]}

    output = compile_text(json.dumps(flow), "flow.json").output

    assert output["manifests"][0]["params"] == {"v": value}


def outcome(text: str, name: str) -> Compiled | CompileError:
    try:
        return compile_text(text, name)
    except CompileError as caught:
        reason = caught
    assert reason.problems
    assert all(problem.line >= 1 and problem.column >= 1 and problem.message for problem in reason.problems)
    return reason


YAMLISH = st.text(alphabet="abnodesrutplgi:{}[]-&*!|>'\"\\#%@,?<~\n\t 0123456789.\ufeff\x85é")


@given(st.text() | YAMLISH, st.sampled_from(["flow.yaml", "flow.json", "-"]))
def test_any_text_compiles_or_has_problems(text: str, name: str) -> None:
    outcome(text, name)


def placed(node: tree.SyntaxNode) -> object:
    """The tree without the places of empty values: the parsers see these before or behind the blanks around them."""
    if isinstance(node.value, dict):
        return node.place, node.keys, [(key, placed(value)) for key, value in node.value.items()]
    if isinstance(node.value, list):
        return node.place, [placed(item) for item in node.value]
    return node.value if node.value is None else (node.place, node.value, node.written)


@given(st.text() | YAMLISH)
def test_what_the_slow_parser_of_yaml_reads_the_fast_one_reads_the_same(text: str) -> None:
    """The fast one takes a tab behind a value too."""

    def read() -> tuple[object, list[str]] | None:
        noted: list[str] = []

        def note(place: Position, key: str) -> None:
            noted.append(f"{place} {key}")

        try:
            return placed(read_yaml(text, note, note)), noted
        except tree.Unreadable:
            return None

    with patch.object(yaml, "__with_libyaml__", False):
        slowly = read()
    assert slowly is None or read() == slowly


# fmt: off
FIELDS = st.sampled_from([
    "id", "from", "to", "plane", "topic", "port", "content_type", "schema_ver", "buffer", "watermark", "policy",
    "plugin", "kind", "artifact", "type", "io", "inputs", "outputs", "required", "qos", "priority", "deadline_ns",
    "bindings", "timer", "bus", "subscriptions", "publications", "subscribe", "params", "features", "annotations",
    "category", "origin", "role", "version", "impl_kind", "entry", "channel", "label", "schedule", "pattern", "name",
    "schemas", "defaults", "x",
])
VALUES = st.sampled_from([
    "a", "b", "timer-source", "python", "wasm", "process", "platform", "python://m:f", "data", "control", "stream",
    "System", "Resource", "builtin://x/y", "v1", "",
])
# fmt: on
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | VALUES | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=20,
)
NODE = st.dictionaries(FIELDS, ANYTHING, max_size=5).map(
    lambda extra: {"id": "a", "plugin": {"artifact": "python://m:f"}, **extra}
)
ROUTE = st.dictionaries(FIELDS, ANYTHING, max_size=4).map(lambda extra: {"from": "a", "to": "b", **extra})


@given(
    st.lists(NODE | ANYTHING, max_size=3) | ANYTHING,
    st.lists(ROUTE | ANYTHING, max_size=3) | ANYTHING,
    st.sampled_from(["routes", "edges"]),
    st.dictionaries(FIELDS, ANYTHING, max_size=2),
)
def test_any_document_compiles_or_has_problems(
    nodes: object, routes: object, key: str, rest: dict[str, object]
) -> None:
    result = outcome(json.dumps({"nodes": nodes, key: routes, **rest}), "flow.json")

    if isinstance(result, Compiled):
        json.dumps(result.output, allow_nan=False)


@pytest.mark.parametrize("text", [".inf", "-.inf", "+.INF", ".nan", ".NaN", "!!float .inf", "1e999"])
def test_a_number_that_is_not_finite_is_refused_in_yaml(text: str) -> None:
    assert "a number that is not finite" in refusal(f"a: {text}")


def test_a_key_that_stands_twice_is_refused_in_a_compiled_flow_too() -> None:
    for text in ('{"manifests": [], "manifests": []}', "manifests: []\nmanifests: []\n"):
        with pytest.raises(CompileError) as caught:
            compile_text(text, "flow")
        assert [each.message for each in caught.value.problems] == ['key "manifests" stands twice in one mapping']
