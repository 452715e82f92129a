"""Ctrl-C while a flow is waited for: the flow goes on, and whoever waited is told so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chronetixd.cli.app import run
from chronetixd.cli.client import Client


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"flow": "f", "state": "running"}], ["the flow f goes on", "chronetixctl stop f"]),
        ([], ["chronetixctl ls"]),
    ],
)
def test_who_stops_waiting_is_told_that_the_flow_goes_on(
    items: list[Any], words: list[str], daemon: Any, flow_file: Path, monkeypatch: Any, capsys: Any
) -> None:
    def call(self: Client, verb: str, on_item: Any = None, **_: Any) -> Any:
        for item in items:
            on_item(item)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "call", call)
    assert run(["--socket", str(daemon.path), "submit", str(flow_file), "--wait", "stopped"]) == 130
    said = capsys.readouterr()
    assert [word for word in words if word not in said.err] == []
    assert said.out == ""


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"flow": "f", "step": "preparing"}], ["the roll-out of f goes on", "rollout undo f"]),
        ([], ["chronetixctl rollout status"]),
    ],
)
def test_who_stops_waiting_is_told_that_the_roll_out_goes_on(
    items: list[Any], words: list[str], daemon: Any, flow_file: Path, monkeypatch: Any, capsys: Any
) -> None:
    def call(self: Client, verb: str, on_item: Any = None, **_: Any) -> Any:
        for item in items:
            on_item(item)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "call", call)
    assert run(["--socket", str(daemon.path), "apply", str(flow_file)]) == 130
    said = capsys.readouterr()
    assert [word for word in words if word not in said.err] == []
    assert said.out == ""
