"""What a flow says about nodes that fail: defaults, both spellings, and every refusal with its field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chronetix.protocol.contract import Flow, Liveness, Restart, parse_flow

Make = Callable[..., dict[str, Any]]


def line(manifest: Make, data_route: Make, strategy: str | None = None, **restarts: Any) -> dict[str, Any]:
    """a → b → c, with what is given as their ``restart``."""
    nodes = [manifest(name, **({"restart": restarts[name]} if name in restarts else {})) for name in "abc"]
    raw = {"manifests": nodes, "routes": [data_route("a", "b"), data_route("b", "c")]}
    return raw if strategy is None else raw | {"strategy": strategy}


def flow_of(raw: Any) -> Flow:
    validation = parse_flow(raw)
    assert validation.problems == []
    assert validation.flow is not None
    return validation.flow


def refusals(raw: Any) -> dict[str, str]:
    """Path to message and suggestion."""
    validation = parse_flow(raw)
    assert validation.flow is None
    return {each.path: f"{each.message} ({each.suggestion})" for each in validation.problems}


class TestRestart:
    def test_by_default_a_node_is_never_restarted_and_not_probed(self, manifest: Make) -> None:
        flow = flow_of({"manifests": [manifest("a")]})
        assert flow.manifests[0].restart == Restart("temporary", 5, 60_000, 100, 10_000, 20)
        assert flow.manifests[0].liveness is None
        assert (flow.strategy, flow.dead_letter) == ("one_for_one", "")

    @pytest.mark.parametrize("policy", ["permanent", "transient", "temporary"])
    @pytest.mark.parametrize("short", [True, False])
    def test_its_policy_alone_is_enough(self, manifest: Make, policy: str, short: bool) -> None:
        restart = policy if short else {"policy": policy}
        assert flow_of({"manifests": [manifest("a", restart=restart)]}).manifests[0].restart == Restart(policy)  # type: ignore[arg-type]

    def test_its_figures_are_read(self, manifest: Make) -> None:
        figures = {"max": 3, "window_ms": 1000, "backoff_ms": 10, "backoff_max_ms": 20, "jitter_pct": 0}
        raw = {"manifests": [manifest("a", restart={"policy": "transient", **figures})]}
        assert flow_of(raw).manifests[0].restart == Restart("transient", **figures)

    def test_a_long_first_pause_raises_the_longest_that_was_not_given(self, manifest: Make) -> None:
        raw = {"manifests": [manifest("a", restart={"policy": "transient", "backoff_ms": 60_000})]}
        assert flow_of(raw).manifests[0].restart.backoff_max_ms == 60_000

    @pytest.mark.parametrize(
        ("restart", "path", "told"),
        [
            ("transiet", "restart", 'did you mean "transient"?'),
            (7, "restart", "must be text, not the number 7"),
            ({"max": 3}, "restart.policy", "is required and missing"),
            ({"policy": "always"}, "restart.policy", "one of: permanent, transient, temporary"),
            ({"policy": "transient", "max": 0}, "restart.max", "0 is out of range, 1 to"),
            ({"policy": "transient", "window_ms": "1s"}, "restart.window_ms", "must be an integer"),
            ({"policy": "transient", "jitter_pct": 101}, "restart.jitter_pct", "out of range, 0 to 100"),
            (
                {"policy": "transient", "backoff_ms": 30, "backoff_max_ms": 20},
                "restart.backoff_ms",
                "30 is above backoff_max_ms, 20",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, manifest: Make, restart: Any, path: str, told: str) -> None:
        found = refusals({"manifests": [manifest("a", restart=restart)]})
        assert list(found) == [f"manifests[0].{path}"]
        assert told in found[f"manifests[0].{path}"]

    def test_a_misspelt_figure_gives_a_warning(self, manifest: Make) -> None:
        raw = {"manifests": [manifest("a", restart={"policy": "transient", "windw_ms": 5})]}
        (warning,) = parse_flow(raw).warnings
        assert (warning.path, warning.suggestion) == ("manifests[0].restart.windw_ms", 'did you mean "window_ms"?')


class TestStrategy:
    @pytest.mark.parametrize("strategy", ["rest_for_one", "one_for_all"])
    def test_nodes_that_come_back_together_must_be_such_that_come_back(
        self, manifest: Make, data_route: Make, strategy: str
    ) -> None:
        found = refusals(line(manifest, data_route, strategy, b="transient"))
        assert "manifests[2].restart" in found
        assert ("manifests[0].restart" in found) == (strategy == "one_for_all")
        assert 'node "c" is temporary, but strategy' in found["manifests[2].restart"]
        assert "one_for_one" in found["manifests[2].restart"]

    @pytest.mark.parametrize("strategy", ["one_for_one", "rest_for_one", "one_for_all"])
    def test_it_is_kept(self, manifest: Make, data_route: Make, strategy: str) -> None:
        policies = dict.fromkeys("abc", "permanent")
        assert flow_of(line(manifest, data_route, strategy, **policies)).strategy == strategy

    def test_what_is_upstream_may_be_temporary(self, manifest: Make, data_route: Make) -> None:
        assert flow_of(line(manifest, data_route, "rest_for_one", b="transient", c="permanent"))

    def test_without_a_node_that_is_restarted_it_has_no_effect(self, manifest: Make, data_route: Make) -> None:
        (warning,) = parse_flow(line(manifest, data_route, "one_for_all")).warnings
        assert warning.path == "strategy"

    def test_an_unknown_one_is_refused_with_the_nearest(self, manifest: Make, data_route: Make) -> None:
        found = refusals(line(manifest, data_route, "one_for_al"))
        assert 'did you mean "one_for_all"?' in found["strategy"]


class TestLiveness:
    def test_half_the_limit_is_its_period(self, manifest: Make) -> None:
        raw = {"manifests": [manifest("a", liveness={"limit_ms": 5000})]}
        assert flow_of(raw).manifests[0].liveness == Liveness(5000, 2500, 0, 1)

    def test_its_figures_are_read(self, manifest: Make) -> None:
        figures = {"limit_ms": 5000, "period_ms": 100, "delay_ms": 7, "failures": 3}
        assert flow_of({"manifests": [manifest("a", liveness=figures)]}).manifests[0].liveness == Liveness(**figures)

    @pytest.mark.parametrize(
        ("liveness", "path", "told"),
        [
            ({}, "liveness.limit_ms", "is required and missing"),
            ({"limit_ms": 0}, "liveness.limit_ms", "out of range"),
            ({"limit_ms": 100, "period_ms": 1}, "liveness.period_ms", "out of range"),
            (True, "liveness", "must be a map"),
        ],
    )
    def test_what_is_wrong_is_named(self, manifest: Make, liveness: Any, path: str, told: str) -> None:
        found = refusals({"manifests": [manifest("a", liveness=liveness)]})
        assert told in found[f"manifests[0].{path}"]


def test_the_dead_letter_topic_is_read(manifest: Make) -> None:
    assert flow_of({"manifests": [manifest("a")], "dead_letter": "failed/frames"}).dead_letter == "failed/frames"
