"""``stop`` of one flow, of several, and of all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chronetix.protocol.errors import error

LISTED = {
    "flows": [{"name": "a", "state": "running"}, {"name": "b", "state": "stopped"}, {"name": "c", "state": "draining"}]
}


@pytest.fixture
def daemon(daemon: Any) -> Any:
    """Stops what it is asked to; ``c`` is not there any more, and ``d`` fails."""

    def stop(args: dict[str, Any]) -> Any:
        if args["flow"] == "c":
            return error("flow-not-running", flow="c", state="stopped")
        return {"flow": args["flow"], "state": "failed" if args["flow"] == "d" else "stopped", "reason": "it broke"}

    daemon.answers |= {"stop": stop, "list": LISTED}
    return daemon


def stopped(daemon: Any) -> list[str]:
    return [args["flow"] for verb, args in daemon.calls if verb == "stop"]


def test_one_flow_is_one_result(ctl: Any, daemon: Any) -> None:
    assert ctl("stop", "a").out == "a stopped\n"
    assert json.loads(ctl("stop", "a", "-o", "json").out)["flow"] == "a"


def test_several_flows_are_stopped_in_their_order_each_once(ctl: Any, daemon: Any) -> None:
    ended = ctl("stop", "b", "a", "b", "--now")
    assert (ended.out, ended.code) == ("b stopped\na stopped\n", 0)
    assert daemon.calls == [("stop", {"flow": flow, "mode": "now"}) for flow in ("b", "a")]
    assert [each["flow"] for each in json.loads(ctl("stop", "b", "a", "-o", "json").out)] == ["b", "a"]


def test_all_are_those_that_have_not_ended(ctl: Any, daemon: Any) -> None:
    ended = ctl("stop", "--all")
    assert (ended.out, ended.code) == ("a stopped\n", 0), "one that ends meanwhile is no error"
    assert stopped(daemon) == ["a", "c"]
    assert [each["flow"] for each in json.loads(ctl("stop", "--all", "-o", "json").out)] == ["a"]


def test_the_first_that_cannot_be_stopped_ends_it(ctl: Any, daemon: Any) -> None:
    ended = ctl("stop", "a", "c", "b")
    assert (ended.out, ended.code) == ("a stopped\n", 3)
    assert "flow-not-running" in ended.err
    assert stopped(daemon) == ["a", "c"]


def test_one_that_fails_makes_the_exit_code(ctl: Any, daemon: Any) -> None:
    ended = ctl("stop", "d", "a")
    assert (ended.out, ended.code) == ("d failed\na stopped\n", 1)
    assert "it broke" in ended.err


@pytest.mark.parametrize("arguments", [(), ("a", "--all")])
def test_either_names_or_all(arguments: tuple[str, ...], ctl: Any, daemon: Any) -> None:
    ended = ctl("stop", *arguments)
    assert ended.code == 2
    assert "name the flows to stop, or give --all" in ended.err
    assert daemon.calls == []
