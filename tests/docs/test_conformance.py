"""docs/conformance.md has every profile and every check, with the section that says what is checked."""

from __future__ import annotations

import re

from chronetixctl.conformance.catalogue import CHECKS
from chronetixctl.conformance.check import PROFILES, Check, Level
from chronetixctl.conformance.run import cases
from tests.docs.pages import ROOT, shows, table
from tests.sdk.languages import LANGUAGES

PAGE = ROOT / "docs" / "conformance.md"
INCLUDES = {
    "minimal-sink": "",
    "sink": "minimal-sink",
    "map": "the same checks, in this form",
    "source": "those of them that need no inputs, in this form",
    "full": "all others",
}


def profiles() -> str:
    assert set(INCLUDES) == set(PROFILES)
    rows = [(f"`{each.name}`", each.about, INCLUDES[each.name]) for each in PROFILES.values()]
    return table(("profile", "a program that", "includes"), rows)


def anchor(heading: str) -> str:
    """As GitHub and MyST make it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def row(check: Check) -> tuple[str, str, str, str]:
    file, heading = check.section
    level = {Level.MINIMAL: "minimal", Level.USUAL: "usual", Level.FULL: "full"}[check.level]
    forms = ", ".join(form.value for form in check.forms)
    about = check.about if check.mandatory else f"{check.about} (advice)"
    link = f"[{file.rpartition('/')[2]}, {heading}](../{file}#{anchor(heading)})"
    return f"`{check.name}`", about, f"{level}: {forms}", link


def test_the_page_shows_every_profile_and_every_check() -> None:
    head = ("check", "a worker that passes", "level and forms", "where it is written")
    shows(PAGE, {"profiles": profiles(), "checks": table(head, map(row, CHECKS))})


def languages() -> str:
    rows = []
    for language in LANGUAGES:
        cells = []
        for name in PROFILES:
            own = [case for case in cases(PROFILES["full"]) if case.profile == name]
            failed = sum(f"{case.form}-{case.check.name}" in language.fails for case in own)
            cells.append(f"{len(own) - failed} of {len(own)}")
        rows.append((language.name, f"`{language.sdk}`", *cells))
    return table(("language", "SDK", *PROFILES), rows)


def test_the_table_of_languages_is_what_their_tests_hold() -> None:
    shows(ROOT / "docs" / "your-language.md", {"languages": languages()})


def test_every_section_that_a_check_names_is_there() -> None:
    headings = {
        file: re.findall(r"^#+ (.*)$", (ROOT / file).read_text("utf-8"), re.MULTILINE)
        for file in {check.section[0] for check in CHECKS}
    }
    assert {check.section for check in CHECKS if check.section[1] not in headings[check.section[0]]} == set()
