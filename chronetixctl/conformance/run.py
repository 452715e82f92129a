"""Runs checks one after another, each with a process of its own, and says how each has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from chronetixctl.conformance.catalogue import CHECKS
from chronetixctl.conformance.check import PROFILES, Check, Profile
from chronetixctl.conformance.forms import EVERY, Failed, Form, NotChecked
from chronetixctl.conformance.program import Subject
from chronetixctl.conformance.rig import Rig

FIRST: Final = "comes-up"
"""The check without which no other one in the same form is made."""


class Verdict(StrEnum):
    """How a check has ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Case(NamedTuple):
    """A check in one form."""

    check: Check
    form: Form

    @property
    def profile(self) -> str:
        """The lowest profile that asks for it."""
        return self.check.profile(self.form)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case has ended. ``expected`` is also the reason of what was skipped."""

    case: Case
    verdict: Verdict
    expected: str = ""
    came: str = ""
    seconds: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether it keeps the program from what it claims to be."""
        return self.verdict is Verdict.FAILED and self.case.check.mandatory


def cases(profile: Profile, forms: Sequence[Form] = EVERY, only: Sequence[str] = ()) -> list[Case]:
    """Return the cases of a profile, in these forms; with ``only`` those whose names match one of the patterns."""
    return [
        Case(check, form)
        for form in profile.forms
        if form in forms
        for check in CHECKS
        if form in check.forms and check.level <= profile.level
        if not only or any(fnmatchcase(check.name, pattern) for pattern in only)
    ]


def run_case(subject: Subject, case: Case) -> Outcome:
    """Make one check. Raises OSError when the program cannot be started."""
    begun = time.monotonic()
    try:
        with Rig(subject, case.form) as rig:
            case.check.run(rig)
    except Failed as failed:
        return Outcome(case, Verdict.FAILED, failed.expected, failed.came, time.monotonic() - begun)
    except NotChecked as reason:
        return Outcome(case, Verdict.SKIPPED, str(reason), "", time.monotonic() - begun)
    return Outcome(case, Verdict.PASSED, seconds=time.monotonic() - begun)


def run_cases(
    subject: Subject,
    chosen: Sequence[Case],
    on_begin: Callable[[Case, int], None],
    on_end: Callable[[Outcome], None],
) -> list[Outcome]:
    """Make the checks in order. What does not come up in a form is not checked further in it."""
    outcomes: list[Outcome] = []
    down: set[Form] = set()
    for number, case in enumerate(chosen):
        on_begin(case, number)
        if case.form in down:
            outcome = Outcome(case, Verdict.SKIPPED, f"the program does not come up as a {case.form}")
        else:
            outcome = run_case(subject, case)
        if case.check.name == FIRST and outcome.verdict is Verdict.FAILED:
            down.add(case.form)
        outcomes.append(outcome)
        on_end(outcome)
    return outcomes


def met(outcomes: Sequence[Outcome]) -> dict[str, bool | None]:
    """Return for each profile whose own checks were made whether the program meets it: None where no mandatory check
    has failed but not all were made, those of the profiles below it included."""
    made = {outcome.case for outcome in outcomes}
    failed = {outcome.case for outcome in outcomes if outcome.counts}
    found: dict[str, bool | None] = {}
    for profile in PROFILES.values():
        asked = set(cases(profile))
        if any(case.profile == profile.name for case in made):
            found[profile.name] = False if asked & failed else True if asked <= made else None
    return found
