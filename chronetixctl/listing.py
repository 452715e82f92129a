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
    Column("RUN", right=True),
    Column("STATE"),
    Column("NODES", right=True),
    Column("ROUTES", right=True),
    Column("RESTARTS", right=True),
    Column("SINCE", right=True),
    Column("REASON"),
)


def missing(flow: Mapping[str, Any]) -> str:
    """Return a note on how many workers of a flow are waited for: that have not reattached yet since an earlier daemon
    ended, or that start by themselves and have not attached; empty if none is missing."""
    notes = []
    if count := flow.get("returning"):
        notes.append(f"{count} worker{'s' * (count != 1)} not back yet from an earlier daemon")
    if count := flow.get("attachable"):
        notes.append(f"{count} node{'s' * (count != 1)} waiting for attach")
    return "; ".join(notes)


@command(
    """
chronetixctl ls
chronetixctl ls --state running -q
chronetixctl ls --all
chronetixctl ls -o json
"""
)
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("-a", "--all", "everything", is_flag=True, help="With the earlier runs of each flow.")
@click.option("--state", "states", multiple=True, type=_STATE, help="Only flows in this state. Repeatable.")
def ls(session: Session, quiet: bool, everything: bool, states: tuple[str, ...]) -> int:
    """List the flows of the daemon: the running ones, and the last that stopped or failed. A run is one submission of a
    flow; --all lists the last earlier runs too."""
    with session.connect() as client:
        answer = client.call("list", all=everything or None)
    flows = [flow for flow in answer["flows"] if not states or flow["state"] in states]
    if quiet:
        for flow in flows:
            click.echo(flow["name"])
        return exits.OK
    now = time.time_ns()
    rows: list[tuple[Any, ...]] = []
    for flow in flows:
        rows += [_row(flow, each, now) for each in flow.get("runs") or ()]
        rows.append(_row(flow, flow, now))
    columns: tuple[Column, ...] = _COLUMNS
    if not everything:
        columns, rows = (columns[0], *columns[2:]), [(row[0], *row[2:]) for row in rows]
    output.show({"flows": flows}, session.output, lambda: output.fitting(columns, rows) if rows else "")
    if not flows and session.output == "table":
        output.say(
            "no flows" + (f" in state {', '.join(states)}" if states else "; submit one: chronetixctl submit FILE")
        )
    return exits.OK


def _row(flow: Mapping[str, Any], run: Mapping[str, Any], now: int) -> tuple[Any, ...]:
    """Return the row of a run of ``flow``: of an earlier one, or, if ``run`` is ``flow`` itself, of the last one."""
    name, state = output.printable(flow["name"]), output.state(run["state"])
    if run is not flow:
        since = output.duration(now - run["ended_unix_ns"])
        return name, run["number"], state, "", "", "", since, output.first_line(run["reason"])
    since = output.duration(now - flow["changed_unix_ns"])
    reason = output.first_line(flow.get("reason") or missing(flow))
    return name, flow.get("run", 1), state, flow["nodes"], flow["routes"], flow.get("restarts", 0), since, reason
