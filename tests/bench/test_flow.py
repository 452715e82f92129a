"""The flow of bench.flow: its plugins, its table, and a short run beside what needs no rival's package."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import flow, flow_nodes
from bench.flow import FlowRow, ratios, table, targets


def rows(**rates):
    return [
        FlowRow(peer, "1", function, size, 10, 10 - lost, rate)
        for (peer, function, size, lost), each in rates["of"].items()
        for rate in each
    ]


def test_a_ratio_is_that_of_one_round():
    measured = rows(of={("chronetix", "forward", 64, 0): [8.0, 30.0], ("pyzmq", "forward", 64, 0): [2.0, 3.0]})
    assert ratios(measured, "forward", 64, "pyzmq") == [4.0, 10.0]
    assert ratios(measured, "forward", 64, "dora") == []


def test_the_table_shows_medians_ratios_and_all_losses():
    measured = rows(of={("chronetix", "forward", 64, 0): [8.0, 30.0, 9.0], ("dora", "forward", 64, 2): [2.0, 3.0, 1.0]})
    head, ours, theirs = (line.split() for line in table(measured))
    assert head[:7] == ["function", "size", "peer", "frames/s", "GB/s", "lost", "ratio"]
    assert ours == ["forward", "64", "B", "chronetix", "9", "5.76e-07", "0"]
    assert theirs[3:] == ["dora", "2", "1.28e-07", "6", "9x"]


def test_the_table_shows_what_each_stage_costs():
    measured = [FlowRow("chronetix", "1", "forward", 64, 9, 9, 1.0, cpu) for cpu in ((1.0, 2.0, 9.0), (3.0, 4.0, 9.0))]
    head, ours = table(measured)
    assert head.split()[-5:] == ["CPU", "s/M", "source", "map", "sink"]
    assert ours.split()[-3:] == ["2", "3", "9"]


@pytest.mark.parametrize(("rate", "verdict"), [(4.0, "met"), (3.9, "MISSED")])
def test_a_target_is_met_from_its_limit_on(rate, verdict):
    measured = rows(of={("chronetix", "forward", 64, 0): [rate], ("pyzmq", "forward", 64, 0): [1.0]})
    lines = targets(measured)
    assert lines[0].split() == [verdict, *["64", "B", "at", "least", "4x", "pyzmq:"], f"{rate:.3g}"]
    assert [line.split()[:2] for line in lines[1:]] == [["not", "measured"]] * 4


def test_the_filter_tells_each_pixel_from_the_one_below():
    picture = np.random.default_rng(1).integers(0, 256, (flow_nodes.HEIGHT, flow_nodes.WIDTH, 3), np.uint8)
    found = flow_nodes.edges(picture.tobytes(), None)
    assert (found[1:] == np.abs(picture[1:].astype(int) - picture[:-1].astype(int))).all()
    assert not found[0].any()


def test_a_sink_counts_from_its_warm_up_on(monkeypatch):
    now = iter([10.0, 10.9, 11.0, 13.0])
    monkeypatch.setattr(flow_nodes.time, "monotonic", lambda: next(now))
    count = flow_nodes.Count()
    for _ in range(5):
        count.on_frame(b"", None)
    assert count.on_stop(None) == {"frames": 5, "counted": 2, "seconds": 2.0}


def test_a_short_run_loses_nothing_on_either_side(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert (
        flow.main(["--rounds", "1", "--seconds", "0.2", "--sizes", "64", "--peers", "queue", "--json", str(out)]) == 0
    )
    measured = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["peer"], row["function"], row["size"]) for row in measured] == [
        ("chronetix", "forward", 64),
        ("chronetix_64", "forward", 64),
        ("queue", "forward", 64),
    ]
    assert all(row["sent"] == row["received"] > 0 for row in measured)
    assert [len(row["cpu_s_per_million"]) for row in measured] == [3, 3, 0]
    assert "Targets" in capsys.readouterr().out


def test_a_rival_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setattr(flow.util, "find_spec", lambda name: None)
    flow.main(["--rounds", "0", "--peers", "pyzmq", "ray"])
    assert "not measured: pyzmq, ray (not installed: make bench-flow installs them)" in capsys.readouterr().out
