"""``stop``: drains a flow, or terminates its workers at once."""

from __future__ import annotations

import click

from chronetixctl import exits, output
from chronetixctl.app import Session, say_failed
from chronetixctl.options import SPAN, command, flow_argument


@command(
    """
chronetixctl stop my-flow
chronetixctl stop my-flow --timeout 30s
chronetixctl stop my-flow --now
"""
)
@flow_argument()
@click.option("--now", is_flag=True, help="Terminate the workers without draining; frames under way are lost.")
@click.option("--timeout", type=SPAN, help="How long draining may take; then the workers are terminated.")
def stop(session: Session, flow: str, now: bool, timeout: float | None) -> int:
    """Stop FLOW and wait until it has stopped. Sources end first; frames that were sent are still processed."""
    with session.connect() as client:
        result = client.call(
            "stop",
            flow=flow,
            mode="now" if now else "drain",
            timeout_ns=None if timeout is None else int(timeout * 1e9),
        )
    output.show(result, session.output, lambda: f"{output.printable(result['flow'])} {output.state(result['state'])}")
    if result["state"] == "failed":
        return say_failed(result)
    return exits.OK
