"""Ctrl-C while something is waited for: it goes on, and whoever waited is told so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chronetixctl.app import run
from chronetixctl.client import Client


@pytest.mark.parametrize(
    ("command", "items", "words"),
    [
        (
            ("submit", "--wait", "stopped"),
            [{"flow": "f", "state": "running"}],
            ["the flow f goes on", "chronetixctl stop f"],
        ),
        (("submit", "--wait", "stopped"), [], ["chronetixctl ls"]),
        (("apply",), [{"flow": "f", "step": "preparing"}], ["the roll-out of f goes on", "rollout undo f"]),
        (("apply",), [], ["chronetixctl rollout status"]),
    ],
)
def test_who_stops_waiting_is_told_what_goes_on(
    command: tuple[str, ...],
    items: list[Any],
    words: list[str],
    daemon: Any,
    flow_file: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    def call(self: Client, verb: str, on_item: Any = None, **_: Any) -> Any:
        for item in items:
            on_item(item)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "call", call)
    assert run(["--socket", str(daemon.path), *command, str(flow_file)]) == 130
    said = capsys.readouterr()
    assert [word for word in words if word not in said.err] == []
    assert said.out == ""
