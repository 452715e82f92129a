"""Arguments of bench.data, and a short run of it with what needs no rival."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cells import LOAN_SIZES, SIZES
from bench.data import parse_peers, parse_sizes, plan

ROOT = Path(__file__).parents[2]


def test_sizes_take_binary_and_decimal_units():
    assert parse_sizes("64,1KiB,2MiB,40MB") == (64, 1024, 2 << 20, 40_000_000)


@pytest.mark.parametrize("text", ["", "1XB", "8", "-64", "1.5MiB"])
def test_a_size_that_cannot_be_measured_is_refused_by_name(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"size|small"):
        parse_sizes(text)


def test_an_unknown_peer_is_refused_with_those_there_are():
    with pytest.raises(argparse.ArgumentTypeError, match=r"no peer 'zmq'.*pyzmq"):
        parse_peers("chronetix,zmq")


def test_the_whole_plan_has_every_mode_and_size():
    cells = plan(None, quick=False)
    assert {cell.size for cell in cells if cell.mode == "throughput"} == set(SIZES)
    assert {cell.size for cell in cells if cell.mode == "roundtrip"} == set(SIZES)
    assert {cell.size for cell in cells if cell.mode == "loan"} == set(LOAN_SIZES)


def test_a_quick_run_measures_without_loss_and_writes_its_lines(tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        "-m",
        "bench.data",
        "--quick",
        "--limit",
        "1000",
        "--peers",
        "chronetix,chronetix-batch,memcpy,pipe",
        "--json",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    measured = {(line["peer"], line["mode"], line["size"]) for line in lines}
    assert {
        (peer, mode, 64) for peer in ("chronetix", "memcpy", "pipe") for mode in ("throughput", "roundtrip")
    } <= measured
    assert ("chronetix", "loan", 40_000_000) in measured
    assert {cell for cell in measured if cell[0] == "chronetix-batch"} == {("chronetix-batch", "throughput", 64)}
    assert all(line["sent"] == line["received"] > 0 for line in lines)
    assert "Targets" in done.stdout


def test_a_peer_that_cannot_start_is_reported_with_its_reason(tmp_path):
    blocked = tmp_path / "zmq.py"
    blocked.write_text("raise ImportError('no zmq here')")
    command = [sys.executable, "-m", "bench.data", "--quick", "--peers", "memcpy,pyzmq", "--sizes", "64"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pyzmq: could not start: ImportError: no zmq here" in done.stdout
    assert "memcpy" in done.stdout
