"""A short run of the benchmark of upgrades, judged by what it counts."""

from __future__ import annotations

import json

from bench import upgrade


def test_no_worker_and_no_frame_is_lost_by_upgrades(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    out = tmp_path / "rows.jsonl"
    assert upgrade.main(["--rounds", "2", "--workers", "2", "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["mode"], row["workers"], row["rounds"]) for row in rows] == [("idle", 2, 2), ("load", 5, 2)]
    assert rows[0]["frames"] == 0
    assert rows[1]["frames"] > 0
    assert all(0 < row["ms_min"] <= row["ms"] <= row["ms_max"] for row in rows)
    assert "target" in capsys.readouterr().out
