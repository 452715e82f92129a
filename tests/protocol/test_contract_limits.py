"""Every number that the contract bounds: the least and the greatest are taken, one beyond either is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chronetix.protocol.contract import parse_flow
from chronetix.protocol.contract.graph import MAX_CYCLES, MAX_DRAWN, drawn
from chronetix.protocol.contract.reading import MAX_NAME, MAX_NOTES, MAX_QUOTE, quote
from chronetix.protocol.contract.routes import MAX_LIMIT_MS
from chronetix.protocol.contract.supervision import MAX_MS, MAX_RESTARTS, MIN_PERIOD_MS
from chronetix.protocol.contract.types import MAX_BUFFER, MAX_NS, MAX_WRITTEN_PRIORITY, MIN_ARENA

Make = Callable[..., dict[str, Any]]

MAX_COUNT = (1 << 31) - 1
RESTART = {"policy": "transient", "backoff_max_ms": MAX_MS}
OF_NODES = [
    ("restart.max", {"restart": RESTART}, 1, MAX_RESTARTS),
    ("restart.window_ms", {"restart": RESTART}, 1, MAX_MS),
    ("restart.backoff_ms", {"restart": RESTART}, 0, MAX_MS),
    ("restart.backoff_max_ms", {"restart": {"policy": "transient", "backoff_ms": 0}}, 0, MAX_MS),
    ("restart.jitter_pct", {"restart": RESTART}, 0, 100),
    ("liveness.limit_ms", {"liveness": {"period_ms": MIN_PERIOD_MS}}, MIN_PERIOD_MS, MAX_MS),
    ("liveness.period_ms", {"liveness": {"limit_ms": MAX_MS}}, MIN_PERIOD_MS, MAX_MS),
    ("liveness.delay_ms", {"liveness": {"limit_ms": 1000}}, 0, MAX_MS),
    ("liveness.failures", {"liveness": {"limit_ms": 1000}}, 1, MAX_RESTARTS),
    ("qos.deadline_ns", {"qos": {}}, 0, MAX_NS),
    ("qos.priority", {"qos": {}}, 0, MAX_WRITTEN_PRIORITY),
    ("qos.retry", {"qos": {}}, 0, MAX_COUNT),
    ("qos.max_inflight", {"qos": {}}, 1, MAX_COUNT),
    ("qos.credit_high", {"qos": {}}, 1, MAX_COUNT),
    ("qos.credit_low", {"qos": {"credit_high": MAX_COUNT}}, 0, MAX_COUNT),
    ("resource_claims.cpu_millis", {"resource_claims": {}}, 0, MAX_COUNT),
    ("resource_claims.arena_bytes", {"resource_claims": {}}, MIN_ARENA, None),
]
"""Path in a manifest, what else is in it, the least and the greatest."""


def with_value(raw: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    outer, inner = path.split(".")
    return {**raw, outer: {**raw[outer], inner: value}}


def problems(raw: dict[str, Any]) -> list[str]:
    return [f"{each.path}: {each.message}" for each in parse_flow(raw).problems]


@pytest.mark.parametrize(("path", "about", "least", "greatest"), OF_NODES, ids=[path for path, *_ in OF_NODES])
def test_a_number_of_a_node_is_taken_at_both_ends_and_not_beyond(
    manifest: Make, path: str, about: dict[str, Any], least: int, greatest: int | None
) -> None:
    ends = [least] if greatest is None else [least, greatest]
    for good in (*ends, least + 1):
        assert problems({"manifests": [manifest("a", **with_value(about, path, good))]}) == []
    for bad in [least - 1] if greatest is None else [least - 1, greatest + 1]:
        (told,) = problems({"manifests": [manifest("a", **with_value(about, path, bad))]})
        assert told.startswith(f"manifests[0].{path}: {bad} is out of range, {least} to ")
        assert greatest is None or told.endswith(f" {greatest} would do")


@pytest.mark.parametrize(("name", "least"), [("buffer", 1), ("watermark", 1)])
def test_a_route_s_numbers_too(manifest: Make, data_route: Make, name: str, least: int) -> None:
    def told(value: int) -> list[str]:
        more = {"buffer": MAX_BUFFER, name: value}
        return problems({"manifests": [manifest("a"), manifest("b")], "routes": [{**data_route("a", "b"), **more}]})

    assert told(least) == told(MAX_BUFFER) == []
    for bad in (least - 1, MAX_BUFFER + 1):
        assert told(bad) == [f"routes[0].{name}: {bad} is out of range, {least} to {MAX_BUFFER} would do"]


def test_a_route_s_limit_is_above_nothing_and_at_most_a_day(manifest: Make, data_route: Make) -> None:
    def told(value: float) -> list[str]:
        more = {"policy": "block", "limit_ms": value}
        return problems({"manifests": [manifest("a"), manifest("b")], "routes": [{**data_route("a", "b"), **more}]})

    out = f"is out of range, above 0 up to {MAX_LIMIT_MS} would do"
    assert [any(out in each for each in told(value)) for value in (0, 0.001, MAX_LIMIT_MS, MAX_LIMIT_MS + 1)] == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("value", "integer"), [(3.0, True), (float((1 << 53) - 1), True), (float(1 << 53), False), (3.5, False)]
)
def test_a_float_without_a_fraction_is_an_integer_as_far_as_floats_tell_them_apart(
    manifest: Make, value: float, integer: bool
) -> None:
    told = problems({"manifests": [manifest("a", qos={"deadline_ns": value})]})
    assert (told == []) is integer
    assert integer or "must be an integer" in told[0]


@pytest.mark.parametrize("value", [True, "3", None, [3]])
def test_what_only_looks_like_a_number_is_none(manifest: Make, value: object) -> None:
    told = problems({"manifests": [manifest("a", qos={"priority": value})]})
    assert told == [] if value is None else "must be an integer" in told[0]


def test_a_name_is_as_long_as_the_limit_and_not_longer(manifest: Make) -> None:
    assert problems({"manifests": [manifest("n" * MAX_NAME)]}) == []
    (told,) = problems({"manifests": [manifest("n" * (MAX_NAME + 1))]})
    assert f"more than {MAX_NAME} characters" in told


def test_a_quote_is_cut_beyond_its_limit() -> None:
    assert quote("q" * MAX_QUOTE) == f'"{"q" * MAX_QUOTE}"'
    assert quote("q" * (MAX_QUOTE + 1)) == f'"{"q" * MAX_QUOTE}…"'


@pytest.mark.parametrize("count", [MAX_NOTES - 1, MAX_NOTES, MAX_NOTES + 1])
def test_as_many_problems_are_listed_as_the_limit(manifest: Make, count: int) -> None:
    told = problems({"manifests": [manifest(f"n{number}", qos={"priority": -1}) for number in range(count)]})
    assert len([each for each in told if "qos.priority" in each]) == min(count, MAX_NOTES)


def cycles(count: int, manifest: Make, data_route: Make) -> dict[str, Any]:
    """Nodes that each feed another one, which feeds them."""
    ends = [(f"a{number}", f"b{number}") for number in range(count)]
    routes = [data_route(*pair) for end in ends for pair in (end, end[::-1])]
    return {"manifests": [manifest(name) for end in ends for name in end], "routes": routes}


@pytest.mark.parametrize("count", [1, MAX_CYCLES - 1, MAX_CYCLES, MAX_CYCLES + 1])
def test_as_many_cycles_are_named_as_the_limit(manifest: Make, data_route: Make, count: int) -> None:
    told = [each for each in problems(cycles(count, manifest, data_route)) if "form a cycle" in each]
    assert len(told) == min(count, MAX_CYCLES)
    assert told[0] == "routes: data routes form a cycle: a0 → b0 → a0"


def test_a_long_cycle_is_drawn_with_a_gap_before_its_end() -> None:
    names = [f"n{number}" for number in range(MAX_DRAWN)]
    whole = names[: MAX_DRAWN - 1]
    assert drawn(whole) == " → ".join([*whole, "n0"])
    assert drawn(names) == " → ".join([*names[: MAX_DRAWN - 2], "…", "n0"])
    assert len(drawn(names).split(" → ")) == len(drawn(whole).split(" → "))


@pytest.mark.parametrize("count", [7, 8, 9])
def test_of_the_nodes_that_may_be_meant_eight_are_listed(data_route: Make, count: int) -> None:
    def plain(plugin_id: str) -> dict[str, Any]:
        return {"plugin_id": plugin_id, "artifact": {"kind": "Python", "uri": "python://module:object"}, "role": ""}

    free = [f"free{number}" for number in range(count)]
    raw = {"manifests": [plain(name) for name in ["a", *free]], "routes": [data_route("a", "nowhere")]}
    (problem,) = parse_flow(raw).problems
    listed = ", ".join(free[:8]) + (", …" if count > 8 else "")
    assert f"no route refers to {listed}; if one of them is meant, bind it: --bind nowhere=free0" in (
        problem.suggestion
    )
