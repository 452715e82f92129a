"""``attach-token``: prints what a worker that starts by itself needs to attach to a flow."""

from __future__ import annotations

import click

from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.options import command, flow_argument


@command(
    """
CHRONETIX_ATTACH_TOKEN="$(chronetixctl attach-token my-flow)" python worker.py
chronetixctl attach-token my-flow -o json
chronetixctl attach-token my-flow parse -o json | jq -r .nodes[].command
"""
)
@flow_argument()
@click.argument("node", required=False)
def attach_token(session: Session, flow: str, node: str | None) -> int:
    """Print the attach token of FLOW: the secret that a worker names which starts by itself and attaches.

    NODE, by its own name or by that in attach://NAME, must be one whose worker attaches. -o json also has the path of
    the control socket, and for each such node its name, its state and the command line that starts its worker. The
    token stays the same for later runs of the flow; `chronetixctl rm` ends it.
    """
    with session.connect() as client:
        answer = client.call("attach_token", flow=flow, node=node)
    output.show(answer, session.output, lambda: output.printable(answer["token"]))
    return exits.OK
