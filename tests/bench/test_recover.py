"""A short run of the benchmark of recoveries, judged by what it counts; and what it says of who is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import recover


def test_each_kill_gives_a_time_of_the_successors_first_frame(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "rows.jsonl"
    peers = "chronetix,chronetix-no-spares"
    assert recover.main(["--peers", peers, "--rounds", "2", "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["peer"], row["mode"], row["rounds"]) for row in rows] == [
        ("chronetix", "recover", 2),
        ("chronetix-no-spares", "recover", 2),
    ]
    for row in rows:
        assert 0 < row["ms_min"] <= row["ms"] <= row["ms_max"]
    assert "median of 2 kills" in capsys.readouterr().out


def test_who_is_not_installed_is_named_and_the_run_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(recover.shutil, "which", lambda *_, **__: None)
    assert recover.main(["--peers", "supervisord,dora", "--rounds", "1"]) == 1
    told = capsys.readouterr().out
    assert "not measured: supervisord: the program supervisord is not installed" in told
    assert "not measured: dora: the program dora is not installed" in told
