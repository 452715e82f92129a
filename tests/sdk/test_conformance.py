"""The worker of each SDK passes the conformance kit. Where a language's tools are missing, its tests are left out."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from chronetixctl.conformance.check import PROFILES
from chronetixctl.conformance.program import Subject
from chronetixctl.conformance.run import Case, Verdict, cases, run_case
from tests.sdk.languages import LANGUAGES, Language

LONG_S = 60.0
"""A time limit that only ends what hangs."""

BUILT = [each for each in LANGUAGES if each.build is not None]
EVERYTHING = [(language, case) for language in BUILT for case in cases(PROFILES["full"])]


def named(case: Case) -> str:
    return f"{case.form}-{case.check.name}"


def program(language: Language, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once for all processes of the tests."""
    assert language.missing is not None
    assert language.build is not None
    if lack := language.missing():
        pytest.skip(f"{language.sdk}: {lack}")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made = shared / f"tested-{language.name}"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.symlink_to(language.build(shared))
    return made


@pytest.mark.parametrize(
    ("language", "case"), EVERYTHING, ids=[f"{language.name}-{named(case)}" for language, case in EVERYTHING]
)
def test_the_worker_of_an_sdk_passes(language: Language, case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    subject = Subject([str(program(language, tmp_path_factory))], timeout_s=LONG_S, start_timeout_s=LONG_S)
    outcome = run_case(subject, case)
    wanted = Verdict.FAILED if named(case) in language.fails else Verdict.PASSED
    assert outcome.verdict is wanted, f"expected: {outcome.expected}; came: {outcome.came}"


def test_what_a_language_is_known_to_fail_is_a_case() -> None:
    every = {named(case) for case in cases(PROFILES["full"])}
    assert {name for language in LANGUAGES for name in language.fails} <= every
