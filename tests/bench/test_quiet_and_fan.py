"""Short runs of the benchmarks that count wake-ups and that fan out and in, judged by their counts alone."""

from __future__ import annotations

import json

import pytest

from bench import fan, quiet
from bench.quiet import Cost, cost


def test_a_flow_that_does_nothing_wakes_nobody_up_and_one_that_is_held_up_neither(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert quiet.main(["--workers", "4", "--seconds", "1", "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["mode"], row["part"], row["workers"]) for row in rows] == [
        ("idle", "workers", 4),
        ("idle", "daemon", 4),
        ("held up", "workers", 4),
        ("held up", "daemon", 4),
    ]
    assert [row["switches"] for row in rows] == [0, 0, 0, 0]
    assert "MISSED" not in capsys.readouterr().out


def test_wake_ups_and_processor_time_are_counted_over_all_threads():
    before = cost([1])
    assert before.switches > 0
    assert cost([1, 1]).switches >= 2 * before.switches
    assert Cost(5, 70) - Cost(2, 30) == Cost(3, 40)


def test_a_chain_needs_two_ends(capsys):
    with pytest.raises(SystemExit):
        quiet.main(["--workers", "1"])
    assert "a chain has two ends" in capsys.readouterr().err


def test_fanning_out_and_in_loses_nothing_and_starves_nobody(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert fan.main(["--frames", "6400", "--rounds", "1", "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["mode"], row["credits"], row["processes"]) for row in rows] == [
        (mode, credits, count) for mode in ("fan-out", "fan-in") for credits in (64, 1024) for count in (1, 4, 16, 64)
    ]
    for row in rows:
        each = 6400 // row["processes"]
        assert row["frames"] == (each if row["mode"] == "fan-out" else each * row["processes"])
        assert row["most"] == each
        if row["mode"] == "fan-out":
            assert row["least"] == each
    assert "ns/frame added" in capsys.readouterr().out
