"""``restart``: starts a flow anew, or gives nodes of a running flow new workers."""

from __future__ import annotations

from typing import Any

import click

from chronetix.protocol.errors import ChronetixError
from chronetixctl import exits, interrupted, output
from chronetixctl.app import Session, report
from chronetixctl.apply import ready_option, roll_out
from chronetixctl.options import SPAN, command, flow_argument, node_option


@command(
    """
chronetixctl restart my-flow
chronetixctl restart my-flow --now
chronetixctl restart my-flow --node parse --node store
"""
)
@flow_argument()
@node_option("nodes", multiple=True, help="Only this node: it gets a new worker by a roll-out. Repeatable.")
@click.option("--now", is_flag=True, help="Stop the flow without draining; frames under way are lost.")
@click.option("--timeout", type=SPAN, help="How long draining may take; then the workers are terminated.")
@ready_option
def restart(
    session: Session, flow: str, nodes: tuple[str, ...], now: bool, timeout: float | None, ready: float | None
) -> int:
    """Stop FLOW, if it has not ended, and submit it again as it is; or replace workers of single nodes.

    A node that is restarted by --node loses no frame, and its new worker loads the plugin's files as they are now.
    """
    if nodes and (now or timeout is not None):
        raise click.UsageError("--now and --timeout are for whole flows, not for --node")
    if not nodes and ready is not None:
        raise click.UsageError("--ready-timeout is for --node")
    if nodes:
        try:
            return roll_out(session, "restart", {"flow": flow, "nodes": list(nodes)}, ready, True)
        except ChronetixError as reason:
            report(reason)
            return exits.exit_code(reason.code, reason.name)
    arguments = {"mode": "now" if now else "drain", "timeout_ns": None if timeout is None else int(timeout * 1e9)}
    progress, started = interrupted.progress(), False

    def show(item: Any) -> None:
        nonlocal started
        started = started or (isinstance(item, dict) and "run" in item)
        progress.show(item)

    with session.connect() as client:
        try:
            result = client.call("restart", on_item=show, flow=flow, **arguments)
        except KeyboardInterrupt:
            progress.end()
            return interrupted.while_restarting(flow, answered=bool(progress.flow), started=started)
        finally:
            progress.end()
    name, state = output.printable(result["flow"]), output.state(result["state"])
    output.show(result, session.output, lambda: f"{name} {state}, run {result['run']}")
    return exits.OK
