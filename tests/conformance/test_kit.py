"""The conformance kit: our own worker passes every check, and each check finds the faults that it is there for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chronetixctl.conformance.catalogue import CHECKS
from chronetixctl.conformance.check import PROFILES
from chronetixctl.conformance.forms import Form
from chronetixctl.conformance.program import Subject
from chronetixctl.conformance.run import Case, Verdict, cases, run_case
from tests.conformance.faults import FOUND

HERE = Path(__file__).parent
EVERYTHING = cases(PROFILES["full"])

LONG_S = 60.0
"""A time limit that only ends what hangs."""

SHORT_S = 2.0
"""How long a check waits for what a faulty worker does not do. Where a slow machine lets it fail earlier, it would say
something else."""


def subject(*argv: str, timeout_s: float = LONG_S) -> Subject:
    return Subject([sys.executable, *argv], timeout_s=timeout_s, start_timeout_s=LONG_S)


@pytest.mark.parametrize("case", EVERYTHING, ids=[f"{case.form}-{case.check.name}" for case in EVERYTHING])
def test_our_own_worker_passes(case: Case) -> None:
    outcome = run_case(subject(str(HERE / "worker.py")), case)
    assert outcome.verdict is Verdict.PASSED, f"expected: {outcome.expected}; came: {outcome.came}"


TABLE = [(name, *each) for name, found in FOUND.items() for each in found]


@pytest.mark.parametrize(("name", "form", "fault", "said"), TABLE, ids=[f"{each[0]}-{each[2]}" for each in TABLE])
def test_a_check_finds_the_fault_that_it_is_there_for(name: str, form: str, fault: str, said: str) -> None:
    check = next(each for each in CHECKS if each.name == name)
    outcome = run_case(subject(str(HERE / "mutants.py"), fault, timeout_s=SHORT_S), Case(check, Form(form)))
    assert outcome.verdict is Verdict.FAILED
    assert said in f"expected: {outcome.expected}; came: {outcome.came}"


def test_no_check_is_blind() -> None:
    assert set(FOUND) == {check.name for check in CHECKS}


def test_no_two_checks_have_one_name() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
