"""``rollout``: shows how far a change of a running flow is and which revisions there were, and undoes a change."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from chronetix.protocol.errors import ChronetixError
from chronetixctl import exits, output
from chronetixctl.app import Session, report
from chronetixctl.apply import ready_option, roll_out, wait_option
from chronetixctl.diff import lines
from chronetixctl.options import ORDINAL, command, flow_argument
from chronetixctl.output import Column


@click.group(
    epilog="\b\nExamples:\n"
    "  chronetixctl rollout status my-flow\n"
    "  chronetixctl rollout history my-flow\n"
    "  chronetixctl rollout undo my-flow\n",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def rollout() -> None:
    """Show the roll-outs of a flow, or undo the last one."""


@command(
    """
chronetixctl rollout status my-flow
chronetixctl rollout status my-flow -o json
"""
)
@flow_argument()
def status(session: Session, flow: str) -> int:
    """Show the last roll-out of FLOW: how far it is, what it changes and, if it was rolled back, why."""
    with session.connect() as client:
        found = client.call("rollouts", flow=flow)
    output.show(found, session.output, lambda: "\n".join(_status(found)))
    return exits.OK


@command(
    """
chronetixctl rollout history my-flow
chronetixctl rollout history my-flow -o json
"""
)
@flow_argument()
def history(session: Session, flow: str) -> int:
    """List the revisions of FLOW, with those that were rolled back. The present one is marked with *."""
    with session.connect() as client:
        found = client.call("rollouts", flow=flow)
    columns = [Column("REVISION"), Column("AT"), Column("OUTCOME"), Column("CHANGE")]
    rows = [_row(each) for each in found["revisions"]]
    output.show(found["revisions"], session.output, lambda: output.table(columns, rows))
    return exits.OK


@command(
    """
chronetixctl rollout undo my-flow
chronetixctl rollout undo my-flow --to 1
chronetixctl rollout undo my-flow --present-code
"""
)
@flow_argument()
@click.option("--to", type=ORDINAL, metavar="N", help="The revision to go back to.  [default: the one before]")
@click.option("--present-code", is_flag=True, help="Go back even if plugins' files have changed since.")
@ready_option
@wait_option
def undo(session: Session, flow: str, to: int | None, present_code: bool, ready: float | None, wait: bool) -> int:
    """Change FLOW back to an earlier revision, by a further roll-out.

    A roll-out that is still preparing has changed nothing yet: it is cancelled instead. The daemon keeps no copies of
    the plugins' files: if a new worker would load another file than that revision had, the error names the file and
    nothing is changed.
    """
    try:
        return roll_out(session, "undo", {"flow": flow, "to": to, "present_code": present_code or None}, ready, wait)
    except ChronetixError as reason:
        report(reason)
        return exits.exit_code(reason.code, reason.name)


def _status(found: dict[str, Any]) -> list[str]:
    if not found["revisions"]:
        return [f"{output.printable(found['flow'])} is as it was submitted"]
    last, now = found["revisions"][-1], found["rollout"]
    under_way = now is not None and now["number"] == last["number"] and last["outcome"] in ("preparing", "committed")
    state = now["step"] if under_way and now is not None else last["outcome"]
    told = [f"{output.printable(found['flow'])} roll-out {last['number']} {output.state(state)}"]
    if under_way and now is not None and now["waits_for"]:
        told.append(f"  waits for {', '.join(map(output.printable, now['waits_for']))}")
    if last["why"]:
        told.append(f"  {output.printable(last['why'])}")
    return [*told, *(f"  {line}" for line in lines(last["change"]))]


def _row(revision: dict[str, Any]) -> tuple[str, str, str, str]:
    at = datetime.fromtimestamp(revision["unix_ns"] / 1e9).strftime("%Y-%m-%d %H:%M:%S")
    change = revision["change"]
    parts = [
        f"{each['kind']} {what} {each['name']}" for what in ("node", "route") for each in change.get(f"{what}s", ())
    ]
    mark = "*" if revision["current"] else ""
    told = ", ".join(parts) or ("" if revision["number"] == 1 else "nothing that runs")
    return f"{revision['number']}{mark}", at, output.state(revision["outcome"]), output.printable(told)


for each in (status, history, undo):
    rollout.add_command(each)
