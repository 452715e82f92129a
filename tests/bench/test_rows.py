"""Rows of the JSON file: what a sample becomes, and what the line holds."""

import json

import pytest

from bench.cells import MAX_WINDOW, MIN_WINDOW, Cell, Sample, row, window

KEYS = {
    "peer",
    "version",
    "mode",
    "size",
    "sent",
    "received",
    "frames_per_s",
    "gb_per_s",
    "p50_us",
    "p99_us",
    "cpu_s_per_million",
}


def frames(count: int, elapsed: float, lost: int = 0, cpu_s: float = 1.0) -> Sample:
    return Sample(sent=count, received=count - lost, repeated=0, elapsed=elapsed, cpu_s=cpu_s)


def trips(p50: float, p99: float) -> Sample:
    return Sample(sent=10, received=10, repeated=0, elapsed=1.0, cpu_s=1.0, p50_us=p50, p99_us=p99)


def test_a_line_has_exactly_the_agreed_keys():
    line = json.loads(json.dumps(row("pipe", "3", Cell("throughput", 64), [frames(10, 1.0)]).as_json()))
    assert set(line) == KEYS


def test_a_throughput_row_has_rates_and_no_latencies():
    made = row("pipe", "3", Cell("throughput", 1000), [frames(10, 2.0)])
    assert (made.frames_per_s, made.p50_us, made.p99_us) == (5.0, None, None)
    assert made.gb_per_s == pytest.approx(5000 / 1e9)


def test_a_roundtrip_row_has_latencies_and_no_rates():
    made = row("pipe", "3", Cell("roundtrip", 64), [trips(5.0, 9.0)])
    assert (made.frames_per_s, made.gb_per_s, made.p50_us, made.p99_us) == (None, None, 5.0, 9.0)


def test_a_loan_row_has_no_bandwidth_because_nothing_is_moved():
    made = row("chronetix", "1", Cell("loan", 1 << 20), [frames(10, 1.0)])
    assert (made.frames_per_s, made.gb_per_s) == (10, None)


def test_figures_are_medians_of_the_rounds():
    made = row("pipe", "3", Cell("throughput", 64), [frames(10, 1.0), frames(30, 1.0), frames(20, 1.0)])
    assert made.frames_per_s == 20


def test_the_best_is_the_highest_rate_and_the_lowest_latency():
    cell = Cell("throughput", 64)
    assert row("pipe", "3", cell, [frames(10, 1.0), frames(30, 1.0)], best=True).frames_per_s == 30
    assert row("pipe", "3", Cell("roundtrip", 64), [trips(5, 9), trips(3, 11)], best=True).p50_us == 3


def test_a_frame_lost_in_any_round_shows():
    made = row("pipe", "3", Cell("throughput", 64), [frames(10, 1.0), frames(10, 1.0, lost=2), frames(10, 1.0)])
    assert (made.sent, made.received, made.lost) == (30, 28, 2)


def test_processor_time_is_given_for_a_million_received_frames():
    made = row("pipe", "3", Cell("throughput", 64), [frames(1000, 1.0, cpu_s=0.5)])
    assert made.cpu_s_per_million == 500


def test_nothing_received_is_no_division_by_zero():
    made = row("pipe", "3", Cell("throughput", 64), [frames(5, 1.0, lost=5)])
    assert (made.frames_per_s, made.cpu_s_per_million) == (0, None)


@pytest.mark.parametrize("size", [64, 1 << 20, 40_000_000, 1 << 40])
def test_the_window_is_bounded_for_every_size(size):
    assert MIN_WINDOW <= window(size) <= MAX_WINDOW
