"""Every command shown in README.md and docs/ is run, and prints what is shown; every listing is the file it names.

In a ``console`` block a line that starts with ``$`` is a command, what follows its output; ``…`` stands for anything.
``$ chronetixd &`` is the daemon that the test has started. A fenced block headed by a file's name must be that file.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BY_CI = {"make demo", "make test"}
"""The README's two commands: the checks of a submission run them as they stand."""
BENCHES = ("data", "flow", "c", "start", "idle", "fan", "recover", "upgrade", "loop", "compile")
UNITS = ("tests/protocol/test_framing.py", '"tests/shm -k latest"')
BY_HAND = {
    """py-spy dump --pid "$(chronetixctl describe FLOW -o json | jq '.nodes[] | select(.node == "NODE").pid')\"""",
    "py-spy top --pid PID",
    "py-spy record --pid PID --output profile.svg",
    '/opt/chronetix/bin/python -m pip install "scipy>=1.14"',
    'python -m pip install --target vendor "scipy>=1.14"',
    "make chaos",
    "make lint",
    "make wheel",
    *(f"make unit T={some}" for some in UNITS),
    *(f"make bench-{name}" for name in BENCHES),
}
"""A part of the second; some of the tests that run just now; minutes of measuring, which tests/bench runs shortened;
an hour of storm, of which tests/chaos plays a short one; the wheel, which tests/packaging builds and installs; py-spy,
which test_guides.py runs where it may; what pip would load from elsewhere."""


def console(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Commands of a page with the output lines shown for each."""
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for chunk in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = chunk.rstrip("\n").split("\n")
            while command.endswith("\\"):
                command = command[:-1] + shown.pop(0)
            yield command, shown


def as_pattern(shown: list[str]) -> str:
    """A regular expression for the shown output: ``…`` is anything, runs of blanks are alike."""
    lines = [r"\s+".join(re.escape(word).replace("…", ".*") for word in line.split()) for line in shown]
    return r"\s*".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_do_what_the_page_shows(page: Path, daemon: Any, tmp_path: Path) -> None:
    for command, shown in console(page):
        if command in BY_CI | BY_HAND | {"chronetixd &"}:
            continue
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=ROOT,
            env=daemon.environment | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        assert re.search(as_pattern(shown), ran.stdout + ran.stderr, re.DOTALL), (
            f"{command}\nprinted\n{ran.stdout}{ran.stderr}\ninstead of\n" + "\n".join(shown)
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_listings_are_the_files_they_name(page: Path) -> None:
    listings = re.findall(r"^`([\w/.-]+)`:?\n\n?```\w+\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for name, text in listings:
        assert text == (ROOT / name).read_text(), f"{page.name} shows another {name}"


def test_the_two_commands_are_the_readmes() -> None:
    commands = {command for command, _ in console(ROOT / "README.md")}
    assert commands >= BY_CI
    assert all(command in (ROOT / ".ci" / "run").read_text() for command in BY_CI)
