"""``rm`` of one flow, of several, and of all that have ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chronetix.protocol.errors import error

STATES = {"a": "stopped", "b": "running", "c": "failed", "d": "draining", "gone": "stopped", "back": "stopped"}


@pytest.fixture
def daemon(daemon: Any) -> Any:
    """Removes what it is asked to; ``gone`` is not there any more, ``back`` runs again, ``b`` has not ended."""

    def remove(args: dict[str, Any]) -> Any:
        match args["flow"]:
            case "gone":
                return error("flow-not-found", flow="gone")
            case "back" | "b":
                return error("flow-not-ended", flow=args["flow"], state="running")
        return {"flow": args["flow"]}

    listed = {"flows": [{"name": name, "state": state} for name, state in STATES.items()]}
    daemon.answers |= {"remove": remove, "list": listed}
    return daemon


def removed(daemon: Any) -> list[str]:
    return [args["flow"] for verb, args in daemon.calls if verb == "remove"]


def test_one_flow_is_one_result(ctl: Any, daemon: Any) -> None:
    assert ctl("rm", "a").out == "a removed\n"
    assert json.loads(ctl("rm", "a", "-o", "json").out) == {"flow": "a"}
    assert daemon.calls == [("remove", {"flow": "a"})] * 2


def test_several_flows_are_removed_in_their_order_each_once(ctl: Any, daemon: Any) -> None:
    ended = ctl("rm", "c", "a", "c")
    assert (ended.out, ended.code) == ("c removed\na removed\n", 0)
    assert removed(daemon) == ["c", "a"]
    assert json.loads(ctl("rm", "c", "a", "-o", "json").out) == [{"flow": "c"}, {"flow": "a"}]


def test_all_are_those_that_have_ended_and_are_there_when_it_is_their_turn(ctl: Any, daemon: Any) -> None:
    ended = ctl("rm", "--all")
    assert (ended.out, ended.err, ended.code) == ("a removed\nc removed\n", "", 0)
    assert removed(daemon) == ["a", "c", "gone", "back"]
    assert json.loads(ctl("rm", "--all", "-o", "json").out) == [{"flow": "a"}, {"flow": "c"}]


def test_nothing_to_remove_is_no_error(ctl: Any, daemon: Any) -> None:
    daemon.answers["list"] = {"flows": [{"name": "b", "state": "running"}]}
    assert (ctl("rm", "--all").out, ctl("rm", "--all", "-o", "json").out) == ("", "[]\n")
    assert removed(daemon) == []


@pytest.mark.parametrize(("name", "code", "says"), [("b", 1, "flow-not-ended"), ("gone", 3, "flow-not-found")])
def test_the_first_that_cannot_be_removed_ends_it(name: str, code: int, says: str, ctl: Any, daemon: Any) -> None:
    ended = ctl("rm", "a", name, "c")
    assert (ended.out, ended.code) == ("a removed\n", code)
    assert says in ended.err
    assert removed(daemon) == ["a", name]


@pytest.mark.parametrize("arguments", [(), ("a", "--all")])
def test_either_names_or_all(arguments: tuple[str, ...], ctl: Any, daemon: Any) -> None:
    ended = ctl("rm", *arguments)
    assert ended.code == 2
    assert "name the flows to remove, or give --all" in ended.err
    assert daemon.calls == []


def test_a_name_does_not_move_the_cursor(ctl: Any, daemon: Any) -> None:
    daemon.answers["list"] = {"flows": [{"name": "\x1b[2J", "state": "stopped"}]}
    assert "\x1b" not in ctl("rm", "--all").out
