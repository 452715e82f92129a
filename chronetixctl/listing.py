"""``ls``: lists the daemon's flows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.options import command
from chronetixctl.output import Column
from chronetixd.core.flow_messages import FlowState

_STATE = click.Choice([str(state) for state in FlowState])
_COLUMNS = (
    Column("FLOW"),
    Column("STATE"),
    Column("NODES", right=True),
    Column("ROUTES", right=True),
    Column("RESTARTS", right=True),
    Column("SINCE", right=True),
    Column("REASON"),
)


def returning(flow: Mapping[str, Any]) -> str:
    """Return a note on how many workers of a flow have not reattached yet since an earlier daemon ended; empty if none
    is missing."""
    count = flow.get("returning")
    return f"{count} worker{'s' * (count != 1)} not back yet from an earlier daemon" if count else ""


@command(
    """
chronetixctl ls
chronetixctl ls --state running -q
chronetixctl ls -o json
"""
)
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("--state", "states", multiple=True, type=_STATE, help="Only flows in this state. Repeatable.")
def ls(session: Session, quiet: bool, states: tuple[str, ...]) -> int:
    """List the flows of the daemon: the running ones, and the last that stopped or failed."""
    with session.connect() as client:
        answer = client.call("list")
    flows = [flow for flow in answer["flows"] if not states or flow["state"] in states]
    if quiet:
        for flow in flows:
            click.echo(flow["name"])
        return exits.OK
    now = time.time_ns()
    rows = [
        (
            output.printable(flow["name"]),
            output.state(flow["state"]),
            flow["nodes"],
            flow["routes"],
            flow.get("restarts", 0),
            output.duration(now - flow["changed_unix_ns"]),
            output.first_line(flow.get("reason") or returning(flow)),
        )
        for flow in flows
    ]
    output.show({"flows": flows}, session.output, lambda: output.table(_COLUMNS, rows) if rows else "")
    if not flows and session.output == "table":
        output.say(
            "no flows" + (f" in state {', '.join(states)}" if states else "; submit one: chronetixctl submit FILE")
        )
    return exits.OK
