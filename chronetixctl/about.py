"""``version`` and ``errors``: show the versions of client and daemon, and look up errors of the catalogue."""

from __future__ import annotations

import platform
from typing import Any

import click

from chronetix.protocol.errors import CATALOGUE, ChronetixError, Entry
from chronetix.protocol.messages import PROTOCOL_VERSIONS
from chronetix.protocol.nearest import did_you_mean
from chronetixctl import exits, output
from chronetixctl.app import Session, report
from chronetixctl.options import command
from chronetixctl.output import Column
from chronetixd import installed

_COLUMNS = (Column("CODE", right=True), Column("NAME"), Column("WHAT HAPPENED"))


@command(
    """
chronetixctl version
chronetixctl version --client
chronetixctl version -o json
"""
)
@click.option("--client", "client_only", is_flag=True, help="Do not ask the daemon.")
def version(session: Session, client_only: bool) -> int:
    """Show the versions of this program and of the daemon, and where the documents and C headers are installed."""
    value: dict[str, Any] = {
        "client": {
            "version": installed.version(),
            "protocol": list(PROTOCOL_VERSIONS),
            "python": platform.python_version(),
            "documents": str(installed.documents() or ""),
            "headers": str(installed.headers()),
        }
    }
    code = exits.OK
    if not client_only:
        try:
            with session.connect() as client:
                value["daemon"] = client.call("version")
        except ChronetixError as reason:
            report(reason)
            code = exits.exit_code(reason.code, reason.name)
    output.show(value, session.output, lambda: "\n".join(_lines(value)))
    return code


def _lines(value: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for who, facts in value.items():
        for key, fact in facts.items():
            shown = ", ".join(map(str, fact)) if isinstance(fact, list) else output.printable(fact)
            if key.endswith("_unix_ns"):
                key, shown = key.removesuffix("_unix_ns"), output.moment(int(fact))
            lines.append(f"{who:<7} {key:<10} {shown}")
    return lines


@command(
    """
chronetixctl errors
chronetixctl errors 3001
chronetixctl errors flow-not-found
"""
)
@click.argument("which", metavar="[CODE|NAME]", nargs=-1)
def errors(session: Session, which: tuple[str, ...]) -> int:
    """Look up an error by its code or name, or list all of them."""
    asked = which[1:] if which[:1] == ("lookup",) else which
    if not asked:
        entries = list(CATALOGUE.values())
        rows = [(entry.code, entry.name, entry.message) for entry in entries]
        output.show([_plain(entry) for entry in entries], session.output, lambda: output.table(_COLUMNS, rows))
        return exits.OK
    found = [_lookup(word) for word in asked]
    shown = [_plain(entry) for entry in found]
    text = "\n\n".join(
        f"{entry.code} {click.style(entry.name, bold=True)}\n  what: {entry.message}\n  next: {entry.hint}"
        for entry in found
    )
    output.show(shown[0] if len(shown) == 1 else shown, session.output, lambda: text)
    return exits.OK


def _lookup(word: str) -> Entry:
    for entry in CATALOGUE.values():
        if word in (entry.name, str(entry.code)):
            return entry
    hint = did_you_mean(word, CATALOGUE, "`chronetixctl errors` lists all of them")
    raise click.ClickException(f'there is no error "{word}"; {hint}')


def _plain(entry: Entry) -> dict[str, Any]:
    return {"code": entry.code, "name": entry.name, "fault": entry.fault, "message": entry.message, "hint": entry.hint}
