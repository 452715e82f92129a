"""What the outcomes of checks are as data, by profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chronetixctl.conformance.check import PROFILES, Check
from chronetixctl.conformance.run import Case, Outcome, Verdict, met


def section(check: Check) -> str:
    """Return where a specification says what the check expects."""
    file, heading = check.section
    return f"{file}, {heading}"


def described(case: Case) -> dict[str, Any]:
    """Return a case as data."""
    return {
        "profile": case.profile,
        "check": case.check.name,
        "as": case.form.value,
        "mandatory": case.check.mandatory,
        "about": case.check.about,
        "section": section(case.check),
    }


def reported(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as data."""
    found = {**described(outcome.case), "verdict": outcome.verdict.value, "seconds": round(outcome.seconds, 3)}
    if outcome.verdict is Verdict.FAILED:
        found |= {"expected": outcome.expected, "came": outcome.came}
    elif outcome.verdict is Verdict.SKIPPED:
        found |= {"reason": outcome.expected}
    return found


def by_profile(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Return for each profile how many of its own checks passed, failed and were skipped, how many failed that only
    advise, and whether the program meets it."""
    claims = met(outcomes)
    found = {}
    for name in PROFILES:
        own = [each for each in outcomes if each.case.profile == name]
        if own:
            counts = {verdict.value: sum(each.verdict is verdict for each in own) for verdict in Verdict}
            advice = sum(each.verdict is Verdict.FAILED and not each.counts for each in own)
            found[name] = {**counts, "advised": advice, "met": claims[name]}
    return found
