"""``config show``: settings as the daemon tells them."""

from __future__ import annotations

import json
from typing import Any

import pytest

SETTINGS = [
    {"name": "start_timeout", "value": 7.0, "origin": "/etc/chronetix/chronetixd.toml", "reload": True},
    {"name": "allow_read", "value": ["ann", "@flows"], "origin": "default", "reload": True},
    {"name": "socket", "value": "/run/c.sock", "origin": "flag --socket", "reload": False},
]


@pytest.fixture(autouse=True)
def told(daemon: Any) -> None:
    daemon.answers["config"] = {"settings": SETTINGS}


def test_all_settings_are_shown_with_their_values(ctl: Any) -> None:
    lines = ctl("config", "show").out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        ["SETTING", "VALUE"],
        ["start_timeout", "7.0"],
        ["allow_read", "ann, @flows"],
        ["socket", "/run/c.sock"],
    ]


def test_origins_and_what_changes_them_are_shown_if_wanted(ctl: Any) -> None:
    lines = ctl("config", "show", "--origin", "socket").out.splitlines()
    assert lines[1].split() == ["socket", "/run/c.sock", "flag", "--socket", "restart"]


def test_as_json_everything_is_told(ctl: Any) -> None:
    assert json.loads(ctl("config", "show", "-o", "json").out) == SETTINGS


def test_an_unknown_setting_gets_the_nearest(ctl: Any) -> None:
    ended = ctl("config", "show", "start_timeuot")
    assert ended.code != 0
    assert 'did you mean "start_timeout"?' in ended.err
