"""What ``describe`` leaves out so that it fits into a message, and that it is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from chronetix.protocol import cbor
from chronetixd.control import views
from chronetixd.core.death import ExitRecord
from chronetixd.loop.turns import Pace


def test_results_are_shown_as_long_as_there_is_room_and_the_others_by_their_size(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = ["x" * 100, "y" * 500, None, "z" * 100]
    size = len(cbor.dumps(results[0]))
    nodes: list[dict[str, Any]] = [{"result": result} for result in results]
    monkeypatch.setattr(views, "MAX_RESULTS", 2 * size)
    run(views._bound_results(nodes, Pace()))
    assert nodes == [
        {"result": results[0]},
        {"result": None, "result_left_out": len(cbor.dumps(results[1]))},
        {"result": None},
        {"result": results[3]},
    ]
    monkeypatch.setattr(views, "MAX_RESULTS", 2 * size - 1)
    run(views._bound_results(nodes, Pace()))
    assert nodes[3] == {"result": None, "result_left_out": size}


def test_last_words_are_shown_of_the_newest_exits_first(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(stderr: list[str]) -> ExitRecord:
        return ExitRecord(flow="f", node="a", incarnation=1, unix_ns=1, pid=1, code=1, stderr=stderr)

    deaths = {"a": [died(["old"]), died([]), died(["new", "er"])]}
    monkeypatch.setattr(views, "MAX_LAST_WORDS", 5)
    nodes: list[dict[str, Any]] = [{"node": "a"}, {"node": "b"}]
    run(views._add_deaths(nodes, deaths, Pace()))
    old, none, new = nodes[0]["deaths"]
    assert new["stderr"] == ["new", "er"]
    assert none["stderr"] == []
    assert "stderr_left_out" not in none
    assert "stderr_left_out" not in new
    assert (old["stderr"], old["stderr_left_out"]) == ([], 3)
    assert nodes[1]["deaths"] == []
    monkeypatch.setattr(views, "MAX_LAST_WORDS", 8)
    run(views._add_deaths(nodes, deaths, Pace()))
    assert nodes[0]["deaths"][0]["stderr"] == ["old"]


@pytest.mark.parametrize("worker", [None, SimpleNamespace(pid=7, alive=False), SimpleNamespace(pid=7, alive=True)])
def test_figures_are_those_of_a_worker_that_lives(worker: Any) -> None:
    """Another process may have the number of one that has ended; and before the first there is none."""
    known = {7: dict.fromkeys(views.GONE, 5)}
    run = SimpleNamespace(
        workers={"a": worker} if worker else {},
        machine=SimpleNamespace(workers={}),
        recovery=None,
        failures={"a": SimpleNamespace(figures=dict)},
        deliveries={"a": SimpleNamespace(dropped=0)},
    )
    found = views._node_stats(run, "a", known)  # type: ignore[arg-type]
    shown = {name: found[name] for name in views.GONE}
    assert shown == (known[7] if worker is not None and worker.alive else views.GONE)
    assert (found["pid"], found["state"], found["restarts"]) == (7 if worker else 0, "spawning", 0)
