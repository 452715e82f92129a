"""A short run of bench.compile, judged by its counts alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import compile as bench


def test_both_languages_are_compiled_in_every_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    assert bench.main(["--sizes", "2", "5", "--rounds", "2", "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["language"], row["nodes"], row["routes"]) for row in rows] == [
        ("json", 2, 1), ("json", 5, 7), ("yaml", 2, 1), ("yaml", 5, 7)
    ]  # fmt: skip
    assert all(row["seconds"] > 0 for row in rows)
    assert "Target: 5 nodes" in capsys.readouterr().out
