"""What ``describe`` leaves out so that it fits into a message, and that it is told."""

from __future__ import annotations

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
