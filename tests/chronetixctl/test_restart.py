"""``restart`` of a whole flow, and of single nodes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chronetix.protocol.errors import error
from tests.chronetixctl.test_commands import ROLLED_OUT

RUNNING = {"flow": "f", "state": "running", "run": 3}


def test_a_flow_is_stopped_and_submitted_again(ctl: Any, daemon: Any) -> None:
    daemon.answers["restart"] = [
        {"flow": "f", "state": "draining"},
        {"flow": "f", "state": "submitted", "run": 3},
        RUNNING,
    ]
    ended = ctl("restart", "f")
    assert (ended.out, ended.code) == ("f running, run 3\n", 0)
    assert json.loads(ctl("restart", "f", "-o", "json").out) == RUNNING
    assert daemon.calls == [("restart", {"flow": "f", "mode": "drain"})] * 2


@pytest.mark.parametrize(
    ("options", "asked"),
    [(["--now"], {"mode": "now"}), (["--timeout", "1.5s"], {"mode": "drain", "timeout_ns": 1_500_000_000})],
)
def test_how_it_is_stopped_can_be_said(options: list[str], asked: dict[str, Any], ctl: Any, daemon: Any) -> None:
    daemon.answers["restart"] = RUNNING
    assert ctl("restart", "f", *options).code == 0
    assert daemon.calls == [("restart", {"flow": "f", **asked})]


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (error("flow-not-found", flow="f"), 3, "flow-not-found"),
        (error("flow-failed", flow="f", reason="node a died"), 1, "node a died"),
    ],
    ids=["not found", "failed"],
)
def test_what_fails_has_its_exit_code_and_prints_nothing(
    failure: Any, code: int, says: str, ctl: Any, daemon: Any
) -> None:
    daemon.answers["restart"] = [{"flow": "f", "state": "draining"}, failure]
    ended = ctl("restart", "f")
    assert (ended.code, ended.out) == (code, "")
    assert says in ended.err


class TestNodes:
    def test_get_new_workers_by_a_roll_out(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["restart"] = [{"flow": "pair", "step": "preparing", "waits_for": ["a"]}, ROLLED_OUT]
        ended = ctl("restart", "pair", "--node", "b", "--node", "a", "--ready-timeout", "3s")
        assert ended.code == 0
        assert ended.out.splitlines()[-1] == "pair roll-out 2 done, 12 ms from the first worker that left"
        asked = {"flow": "pair", "nodes": ["b", "a"], "ready_ns": 3_000_000_000, "wait": True}
        assert daemon.calls == [("restart", asked)]

    def test_that_are_not_replaced_are_told_with_the_exit_code(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["restart"] = error("rolled-back", flow="pair", number=2, reason="node a was late")
        ended = ctl("restart", "pair", "--node", "a")
        assert (ended.code, ended.out) == (1, "")
        assert "node a was late" in ended.err

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--node", "a", "--now"], "--now and --timeout are for whole flows"),
            (["--node", "a", "--timeout", "1s"], "--now and --timeout are for whole flows"),
            (["--ready-timeout", "3s"], "--ready-timeout is for --node"),
        ],
    )
    def test_and_flows_have_options_of_their_own(self, options: list[str], says: str, ctl: Any, daemon: Any) -> None:
        ended = ctl("restart", "pair", *options)
        assert ended.code == 2
        assert says in ended.err
        assert daemon.calls == []
