"""``doctor`` asks the daemon what only it can know, and looks at the rest itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

VERSION = {"pid": 7, "daemon": "1", "protocol": [1], "abi": 1}


@pytest.fixture(autouse=True)
def own_state(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHRONETIX_STATE_DIR", str(tmp_path / "state"))


def finding(status: str, **more: str) -> dict[str, str]:
    return {"status": status, "area": "limits", "check": "open files", "detail": "at most 10", **more}


def test_without_a_daemon_everything_is_looked_at_here(ctl: Any) -> None:
    ended = ctl("doctor", "-o", "json")
    told = json.loads(ended.out)
    assert (ended.code, told["daemon"]) == (0, False)
    assert {"state folder", "open files", "daemon", "versions"} <= {found["check"] for found in told["findings"]}


def test_what_the_daemon_finds_of_itself_counts(daemon: Any, ctl: Any) -> None:
    daemon.answers |= {"version": VERSION, "doctor": {"findings": [finding("FAIL", cure="raise it")]}}
    ended = ctl("doctor")
    assert ended.code == 1
    assert ended.out.count("open files") == 1
    assert "→ raise it" in ended.out


def test_only_problems_are_shown_if_wanted(daemon: Any, ctl: Any) -> None:
    daemon.answers |= {"version": VERSION, "doctor": {"findings": [finding("PASS"), finding("WARN", cure="x")]}}
    ended = ctl("doctor", "--problems", "-o", "json")
    assert ended.code == 0
    assert "PASS" not in {found["status"] for found in json.loads(ended.out)["findings"]}
