"""``logs`` and ``events``: streams of the daemon, one line or one JSON object for each element.

Rules: what is shown is let through at once, so that pipes see it; Ctrl-C takes the call back and ends with
130.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import click

from chronetixd.cli import exits, output
from chronetixd.cli.app import Session
from chronetixd.cli.options import command, flow_argument

_LEVEL_COLOURS = {"debug": "bright_black", "warning": "yellow", "error": "red", "critical": "red"}
_STREAM_COLOURS = {"stderr": "magenta", "daemon": "blue"}


@command(
    """
chronetixctl logs
chronetixctl logs my-flow --tail 20
chronetixctl logs my-flow --node reader -f
chronetixctl logs -f -o json | jq .line
"""
)
@flow_argument(required=False)
@click.option("--flow", "flow_option", metavar="FLOW", help="The same as the argument.")
@click.option("--node", metavar="NODE", help="Only this node.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines.")
def logs(
    session: Session, flow: str | None, flow_option: str | None, node: str | None, follow: bool, tail: int | None
) -> int:
    """Show what the nodes of FLOW (default: of all flows, and the daemon) printed and logged."""
    if flow and flow_option and flow != flow_option:
        raise click.UsageError(f"two flows were named: {flow} and {flow_option}")
    chosen = flow or flow_option
    arguments = {"flow": chosen, "node": node, "follow": follow or None, "tail": tail}
    _stream(session, "logs", arguments, lambda item: log_line(item, with_flow=chosen is None))
    return exits.OK


@command(
    """
chronetixctl events
chronetixctl events my-flow -f
chronetixctl events -f -o json | jq 'select(.kind == "worker-exited")'
"""
)
@flow_argument(required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N events.")
def events(session: Session, flow: str | None, follow: bool, tail: int | None) -> int:
    """Show what happened to FLOW (default: to all): changes of state, exits and their reasons."""
    _stream(session, "events", {"flow": flow, "follow": follow or None, "tail": tail}, event_line)
    return exits.OK


def _stream(session: Session, verb: str, arguments: dict[str, Any], line: Any) -> None:
    with session.connect() as client, closing(client.stream(verb, **arguments)) as items:
        for item in items:
            output.show_item(item, session.output, lambda item=item: line(item))  # type: ignore[misc]


def _missed(item: Mapping[str, Any], what: str) -> str:
    """What the daemon sends when this reader was too slow for a while."""
    return click.style(
        f"{output.clock(item['unix_ns'])} ({item['dropped']} {what} were missed: read faster)", fg="yellow"
    )


def log_line(item: Mapping[str, Any], with_flow: bool) -> str:
    """``12:30:01.250 flow/node | the line  key=value``."""
    if "dropped" in item:
        return _missed(item, "lines")
    source = "/".join(part for part in (item.get("flow") if with_flow else "", item.get("node")) if part)
    stream = str(item.get("stream") or "")
    level = str(item.get("level") or "")
    text = output.printable_line(str(item.get("line") or ""))
    colour = _LEVEL_COLOURS.get(level)
    if colour:
        text = click.style(text, fg=colour)
    if stream == "log" and level not in ("", "info"):
        text = f"{level}: {text}"
    fields = item.get("fields") or {}
    tail = "".join(f"  {click.style(key, dim=True)}={output.printable(value)}" for key, value in fields.items())
    head = click.style(output.printable(source or "chronetixd"), fg=_STREAM_COLOURS.get(stream, "cyan"))
    return f"{click.style(output.clock(item['unix_ns']), dim=True)} {head} | {text}{tail}"


def event_line(item: Mapping[str, Any]) -> str:
    """``12:30:01.250 #17 worker-exited flow/node: what happened``."""
    if "dropped" in item:
        return _missed(item, "events")
    source = "/".join(part for part in (item.get("flow"), item.get("node")) if part)
    kind = output.printable(item["kind"])
    colour = "red" if "fail" in kind or "fault" in kind else "green" if "running" in kind else None
    head = f"{click.style(output.clock(item['unix_ns']), dim=True)} #{item['sequence']} {click.style(kind, fg=colour)}"
    message = output.first_line(item.get("message") or "")
    return f"{head} {output.printable(source)}" + (f": {message}" if message else "")
