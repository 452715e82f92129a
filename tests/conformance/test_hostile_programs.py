"""A program that breaks every rule fails its checks, and never the kit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chronetixctl.conformance.check import PROFILES
from chronetixctl.conformance.program import Subject
from chronetixctl.conformance.run import Verdict, cases, run_case

HERE = Path(__file__).parent
LIES = [
    line.split('"')[1]
    for line in (HERE / "liar.py").read_text().partition("SAYS: ")[2].splitlines()
    if line.startswith('    "')
]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", ["comes-up", "frames-return"])
def test_it_fails_and_the_kit_says_why(lie: str, name: str) -> None:
    (case,) = cases(PROFILES["minimal-sink"], only=[name])
    subject = Subject([sys.executable, str(HERE / "liar.py"), lie], timeout_s=0.5, start_timeout_s=1.0)
    outcome = run_case(subject, case)
    assert outcome.verdict is Verdict.FAILED
    assert outcome.expected
    assert outcome.came
