"""``doctor``: checks this machine, the installation and the daemon, and names a cure for each problem.

Rules: the daemon, if one answers, makes the checks that concern it. This process makes the checks that the daemon
cannot make, such as whether this user may connect. If no daemon answers, this process makes all checks, with the
settings that a daemon of this user would have.
"""

from __future__ import annotations

import os
from typing import Any

import click

from chronetix.protocol.errors import ChronetixError
from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.options import command
from chronetixctl.output import Column
from chronetixd import installed

_COLUMNS = (Column("STATUS"), Column("AREA"), Column("CHECK"), Column("FOUND"))
_COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}
ANSWER_S = 10.0


@command(
    """
chronetixctl doctor
chronetixctl doctor --problems
chronetixctl doctor -o json
"""
)
@click.option("--problems", is_flag=True, help="Show only checks that fail or warn.")
def doctor(session: Session, problems: bool) -> int:
    """Check this machine, the installation, and the daemon if one runs. Exit code 1 when something FAILs."""
    from chronetixctl.client import socket_path
    from chronetixd.doctor import Side, Surroundings, examine
    from chronetixd.settings import configure

    settings = configure({"socket": socket_path(session.socket)}, os.environ, os.geteuid()).settings
    daemon, findings, unreachable = _ask(session)
    facts = {"client_version": installed.version()}
    sides = (Side.CLIENT,) if findings is not None else (Side.DAEMON, Side.CLIENT)
    found = [finding.as_map() for finding in examine(Surroundings(settings, facts, daemon, unreachable), sides)]
    every = [*(findings or []), *found]
    shown = [finding for finding in every if not problems or finding["status"] != "PASS"]
    output.show({"daemon": daemon is not None, "findings": shown}, session.output, lambda: _table(shown))
    failures = sum(finding["status"] == "FAIL" for finding in every)
    warnings = sum(finding["status"] == "WARN" for finding in every)
    if session.output == "table":
        output.say(f"{len(every)} checks: {failures} failed, {warnings} with a warning")
    return exits.FAILED if failures else exits.OK


def _ask(session: Session) -> tuple[dict[str, Any] | None, list[dict[str, str]] | None, str]:
    """Return the daemon's version, its findings and an empty reason; or None, None and the reason why the daemon does
    not answer."""
    try:
        with session.connect() as client:
            version = client.call("version", timeout=ANSWER_S)
            return version, client.call("doctor", timeout=ANSWER_S)["findings"], ""
    except ChronetixError as reason:
        return None, None, reason.message


def _table(findings: list[dict[str, str]]) -> str:
    rows = [
        (
            click.style(finding["status"], fg=_COLOURS.get(finding["status"])),
            finding["area"],
            finding["check"],
            output.printable(finding["detail"]),
        )
        for finding in findings
    ]
    head, *lines = output.table(_COLUMNS, rows).splitlines()
    shown = [head]
    for line, finding in zip(lines, findings, strict=True):
        shown.append(line)
        if "cure" in finding:
            shown.append(f"        → {output.printable(finding['cure'])}")
    return "\n".join(shown)
