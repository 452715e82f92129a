"""A short run of the benchmark of the loop, and what its gauge counts."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from bench import loop
from bench.gauge import Gauge, stillness
from bench.start import daemon


def test_every_kind_of_work_has_a_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS", 0.0)
    out = tmp_path / "rows.jsonl"
    assert loop.main(["--nodes", "2", "--flows", "1", "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    nodes = ["start", "describe", "top", "validate", f"a disk of {loop.DISK_MS} ms", "all killed at once"]
    assert [row["what"] for row in rows if row["of"] == "nodes"] == nodes
    assert [row["what"] for row in rows if row["of"] == "flows"] == ["start", "list", "top"]
    assert all(row["p50"] <= row["p99"] <= row["longest"] for row in rows)
    assert "target" in capsys.readouterr().out


def test_figures_of_no_answer_are_none():
    assert stillness([]) == (0, 0.0, 0.0, 0.0)
    assert stillness([3.0, 1.0, 2.0]) == (3, 2.0, 3.0, 3.0)


def test_the_gauge_sees_its_daemon_and_not_that_it_was_stopped(tmp_path: Path) -> None:
    with daemon(tmp_path / "d") as client, Gauge(tmp_path / "d" / "control.sock") as gauge:
        pid = client.call("version")["pid"]
        while not gauge.look().answers:
            pass
        os.kill(pid, signal.SIGSTOP)
        try:
            gauge.look()
            assert gauge.look().answers == 0
        finally:
            os.kill(pid, signal.SIGCONT)
        while not gauge.look().answers:
            pass
