"""C to C: the program runs, loses nothing, and its report says what was measured and what was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.ctoc import CASES, SOURCE, document

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="each end needs a processor of its own")


def test_every_case_is_measured_and_written(tmp_path):
    rows = tmp_path / "rows.json"
    command = [sys.executable, "-m", "bench.ctoc", "--trips", "200", "--json", str(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(row["ends"], row["touched"]) for row in written] == list(CASES)
    assert all(row["ns"] == min(row["rounds"]) > 0 for row in written)
    assert "not measured here" in done.stdout


def test_the_report_has_a_line_for_each_case_and_none_that_was_not_measured():
    assert document([], "a machine").splitlines()[0] == "a machine"
    assert "two threads" not in document([], "a machine").split("iceoryx2")[0]


def test_the_program_compiles_without_a_warning(tmp_path):
    strict = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
    include = f"-I{ROOT / 'shm' / 'include'}"
    made = subprocess.run(
        ["gcc", *strict, include, str(SOURCE), "-o", str(tmp_path / "pingpong"), "-lpthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
