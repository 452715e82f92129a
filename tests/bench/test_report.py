"""The printed report: sizes and numbers, ratios, targets, and what is missing."""

import pytest

from bench.cells import MIB, Cell, Sample, row
from bench.report import document, number_text, ratio, size_text, table, targets


def sample(rate: float = 100.0, p50: float | None = None) -> Sample:
    return Sample(sent=100, received=100, repeated=0, elapsed=100 / rate, cpu_s=1.0, p50_us=p50, p99_us=p50)


def line(peer: str, mode="throughput", size=64, rate=100.0, p50=None):
    return row(peer, "1", Cell(mode, size), [sample(rate, p50)])


@pytest.mark.parametrize(
    ("size", "text"),
    [(64, "64 B"), (1024, "1 KiB"), (65536, "64 KiB"), (MIB, "1 MiB"), (8 * MIB, "8 MiB"), (40_000_000, "40 MB")],
)
def test_sizes_read_as_people_write_them(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.75, "0.75"), (123.4, "123"), (1234567.0, "1 234 567")])
def test_numbers_have_three_digits_that_count(value, text):
    assert number_text(value) == text


def test_a_ratio_says_how_many_times_as_fast_chronetix_is():
    assert ratio(line("pyzmq", rate=50), line("chronetix", rate=400)) == pytest.approx(8)


def test_a_round_trip_ratio_compares_medians_the_other_way_round():
    ours, theirs = line("chronetix", "roundtrip", p50=2.0), line("pyzmq", "roundtrip", p50=50.0)
    assert ratio(theirs, ours) == 25


def test_chronetix_has_no_ratio_to_itself():
    assert ratio(line("chronetix"), line("chronetix")) is None


def test_every_row_is_one_line_of_the_table_and_columns_line_up():
    lines = table([line("chronetix", rate=4e6), line("pyzmq"), line("pyzmq", size=MIB)])
    assert [text for text in lines if "pyzmq" in text and "64 B" not in text]
    assert len([text for text in lines if text]) == 4
    assert lines[0].split()[:4] == ["mode", "size", "peer", "frames/s"]


def test_a_target_is_judged_on_the_median_of_paired_ratios():
    samples = {
        ("chronetix", "throughput", 64): {0: sample(900), 1: sample(90), 2: sample(800)},
        ("pyzmq", "throughput", 64): {0: sample(100), 1: sample(10), 2: sample(400)},
    }
    first = targets(samples)[0]
    assert first.value == pytest.approx(9)
    assert "MISSED" in first.line()


def test_the_best_round_counts_when_the_best_is_asked_for():
    samples = {
        ("chronetix", "throughput", 64): {0: sample(1100), 1: sample(90)},
        ("pyzmq", "throughput", 64): {0: sample(100), 1: sample(10)},
        ("chronetix", "roundtrip", 64): {0: sample(p50=4.0), 1: sample(p50=2.0)},
        ("chronetix-inproc", "roundtrip", 64): {0: sample(p50=1.0), 1: sample(p50=1.0)},
    }
    verdicts = {target.text: target for target in targets(samples, best=True) if target.value is not None}
    assert verdicts["64 B throughput at least 10x pyzmq"].value == pytest.approx(11)
    assert verdicts["64 B round trip p50 between processes at most 3x that within one"].value == pytest.approx(2)


def test_the_most_frugal_rival_is_the_one_to_beat():
    def cell(cpu_s: float) -> Sample:
        return Sample(sent=100, received=100, repeated=0, elapsed=1.0, cpu_s=cpu_s)

    samples = {
        ("chronetix", "throughput", MIB): {0: cell(2.0)},
        ("pipe", "throughput", MIB): {0: cell(8.0)},
        ("iceoryx2-poll", "throughput", MIB): {0: cell(3.0)},
        ("memcpy", "throughput", MIB): {0: cell(1.0)},
    }
    (thrift,) = [t for t in targets(samples) if t.text.startswith("1 MiB processor time")]
    assert thrift.value == pytest.approx(1.5)


def test_batches_are_judged_apart_from_single_frames():
    samples = {
        ("chronetix", "throughput", 64): {0: sample(900)},
        ("chronetix-batch", "throughput", 64): {0: sample(6000)},
        ("pyzmq", "throughput", 64): {0: sample(100)},
    }
    values = {target.text: target.value for target in targets(samples) if "throughput" in target.text}
    assert values["64 B throughput at least 10x pyzmq"] == pytest.approx(9)
    (batched,) = [target for target in targets(samples) if "batches" in target.text]
    assert (batched.value, batched.limit) == (pytest.approx(60 / 50), 1.0)
    samples["chronetix-batch", "throughput", 64] = {0: sample(30e6)}
    samples["pyzmq", "throughput", 64] = {0: sample(2e6)}
    (batched,) = [target for target in targets(samples) if "batches" in target.text]
    assert batched.value == pytest.approx(1.5), "one of the two is enough"


def test_a_missed_target_says_so_with_its_figure():
    samples = {
        ("chronetix", "roundtrip", 64): {0: sample(p50=10.0)},
        ("chronetix-inproc", "roundtrip", 64): {0: sample(p50=1.0)},
    }
    (verdict,) = [target.line() for target in targets(samples) if "within one" in target.text]
    assert "MISSED" in verdict
    assert verdict.endswith(": 10")


def test_a_target_without_both_peers_is_not_measured():
    assert all("not measured" in target.line() for target in targets({}))


def test_loan_rates_are_flat_when_the_slowest_size_keeps_up():
    samples = {
        ("chronetix", "loan", 65536): {0: sample(100)},
        ("chronetix", "loan", MIB): {0: sample(90)},
    }
    (flat,) = [target for target in targets(samples) if "flat" in target.text]
    assert flat.value == pytest.approx(0.9)


@pytest.mark.parametrize("peer", ["chronetix", "chronetix-batch"])
def test_a_lost_frame_of_ours_misses_a_target(peer):
    lossy = Sample(sent=10, received=9, repeated=0, elapsed=1.0, cpu_s=1.0)
    (verdict,) = [t for t in targets({(peer, "throughput", 64): {0: lossy}}) if "lost" in t.text]
    assert "MISSED" in verdict.line()


def test_the_document_says_what_was_not_measured_and_why():
    text = document([line("pipe")], {}, machine="a machine", peers=[("pipe", "3", "kernel")], missing=["dora: gone"])
    assert "dora: gone" in text
    assert "pipe 3: kernel" in text
    assert "more than one sender" in text
