"""``rm``: makes the daemon forget flows that have ended."""

from __future__ import annotations

import click

from chronetix.protocol.errors import ChronetixError
from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.options import command, flow_argument
from chronetixd.core.flow_messages import ENDED

_NO_LONGER_ENDED = ("flow-not-found", "flow-not-ended")
"""What may become of a flow between the list and its turn: somebody removes it, or starts it again."""


@command(
    """
chronetixctl rm my-flow
chronetixctl rm my-flow another-flow
chronetixctl rm --all
"""
)
@flow_argument(required=False, several=True)
@click.option("--all", "everything", is_flag=True, help="Remove all flows that have ended.")
def rm(session: Session, flow: tuple[str, ...], everything: bool) -> int:
    """Remove each FLOW, which must have ended, with its exits, its log files, its revisions and its earlier runs; end
    at the first that cannot be removed."""
    if bool(flow) == everything:
        raise click.UsageError("name the flows to remove, or give --all")
    results = []
    with session.connect() as client:
        listed = client.call("list")["flows"] if everything else ()
        names = flow or [each["name"] for each in listed if each["state"] in ENDED]
        for name in dict.fromkeys(names):
            try:
                results.append(client.call("remove", flow=name))
            except ChronetixError as reason:
                if everything and reason.name in _NO_LONGER_ENDED:
                    continue
                raise
            if session.output == "table":
                click.echo(f"{output.printable(name)} removed")
    if session.output != "table":
        output.show(results if everything or len(flow) > 1 else results[0], session.output, str)
    return exits.OK
