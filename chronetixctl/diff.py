"""``diff``: shows what ``apply`` would change in a running flow to make it the one in a file."""

from __future__ import annotations

from typing import Any

import click

from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.json_text import json_text
from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.flowfile import load_flow
from chronetixctl.options import FLOW_NAME, command, file_argument, settling_options
from chronetixctl.submit import report_refusal

_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


@command(
    """
chronetixctl diff flow.yaml
chronetixctl diff flow.yaml --name nightly
chronetixctl diff flow.yaml --exit-code -o json
"""
)
@file_argument
@click.option("--name", type=FLOW_NAME, help="The flow to compare with.  [default: the file's]")
@settling_options
@click.option("--exit-code", "tell", is_flag=True, help="End with 1 when something differs.")
def diff(
    session: Session, file: str, name: str | None, bindings: dict[str, str], artifacts: dict[str, str], tell: bool
) -> int:
    """Compare the flow in FILE (- for stdin) with the one that the daemon has.

    Lists what `apply` would change: nodes and routes that it would add (+), remove (-) or replace (~), with the fields
    that differ. Differences that no worker is told of are listed as notes.
    """
    flow = load_flow(file, artifacts, bindings)
    with session.connect() as client:
        try:
            found = client.call(
                "diff", flow=flow.flow, name=name, bindings=bindings or None, base_dir=flow.base_dir or None
            )
        except ChronetixError as reason:
            report_refusal(reason, flow)
            return exits.exit_code(reason.code, reason.name)
    output.show(found, session.output, lambda: "\n".join(lines(found)))
    if found["same"] and session.output == "table":
        output.say(f"nothing that runs differs in {output.printable(found['flow'])}")
    return exits.FAILED if tell and not found["same"] else exits.OK


def lines(found: dict[str, Any]) -> list[str]:
    """Return the lines for the verb ``diff``'s answer: one for each difference, with its fields indented below it."""
    told = []
    for what in ("node", "route"):
        for each in found[f"{what}s"]:
            sign, colour = _SIGNS[each["kind"]]
            told.append(click.style(f"{sign} {what} {output.printable(each['name'])}", fg=colour))
            told += [f"    {_field(field)}" for field in each["fields"]]
    return [*told, *(f"  note: {_field(field)}" for field in found["notes"])]


def _field(field: dict[str, Any]) -> str:
    old, new = (output.printable(json_text(field[side])) for side in ("old", "new"))
    return f"{output.printable(field['path'])}: {old} → {new}"
