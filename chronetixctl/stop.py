"""``stop``: drains flows, or terminates their workers at once."""

from __future__ import annotations

from typing import Any

import click

from chronetix.protocol.errors import ChronetixError
from chronetixctl import exits, interrupted, output
from chronetixctl.app import Session, say_failed
from chronetixctl.client import Client
from chronetixctl.options import SPAN, command, flow_argument

_OVER = ("stopped", "failed")
"""States of a flow that has ended."""

_ENDED_MEANWHILE = ("flow-not-running", "flow-not-found")
"""Errors for a flow that ended after it was listed."""


@command(
    """
chronetixctl stop my-flow
chronetixctl stop my-flow another-flow --timeout 30s
chronetixctl stop --all --now
"""
)
@flow_argument(required=False, several=True)
@click.option("--all", "everything", is_flag=True, help="Stop all flows that have not ended.")
@click.option("--now", is_flag=True, help="Terminate the workers without draining; frames under way are lost.")
@click.option("--timeout", type=SPAN, help="How long draining may take; then the workers are terminated.")
def stop(session: Session, flow: tuple[str, ...], everything: bool, now: bool, timeout: float | None) -> int:
    """Stop each FLOW, one after the other, and wait until it has stopped; end at the first that cannot be stopped.
    Sources end first; frames that were sent are still processed."""
    if bool(flow) == everything:
        raise click.UsageError("name the flows to stop, or give --all")
    arguments = {"mode": "now" if now else "drain", "timeout_ns": None if timeout is None else int(timeout * 1e9)}
    code = exits.OK
    results = []
    with session.connect() as client:
        names = list(dict.fromkeys(_living(client) if everything else flow))
        for at, name in enumerate(names):
            progress = interrupted.progress()
            try:
                result = client.call("stop", on_item=progress.show, flow=name, **arguments)
            except KeyboardInterrupt:
                progress.end()
                return interrupted.while_stopping(name, names[at + 1 :], answered=bool(progress.flow))
            except ChronetixError as reason:
                if everything and reason.name in _ENDED_MEANWHILE:
                    continue
                raise
            finally:
                progress.end()
            results.append(result)
            if session.output == "table":
                click.echo(f"{output.printable(result['flow'])} {output.state(result['state'])}")
            if result["state"] == "failed":
                code = say_failed(result)
    if session.output != "table":
        output.show(results if everything or len(flow) > 1 else results[0], session.output, str)
    return code


def _living(client: Client) -> list[str]:
    """Return the names of the flows that have not ended."""
    listed: list[dict[str, Any]] = client.call("list")["flows"]
    return [each["name"] for each in listed if each["state"] not in _OVER]
