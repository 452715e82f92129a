"""``logs`` and ``events``: print streams of the daemon, one line or one JSON object for each item.

Rules: every item is flushed at once, so that a pipe's reader gets it; Ctrl-C cancels the call and ends with 130.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import click

from chronetix.protocol.messages import LOG_LEVELS
from chronetixctl import exits, output
from chronetixctl.again import follow
from chronetixctl.app import Session
from chronetixctl.options import COUNT, MOMENT, ORDINAL, PATTERN, command, flow_argument, node_option

_LEVEL_COLOURS = {"debug": "bright_black", "warning": "yellow", "error": "red", "critical": "red"}
_STREAM_COLOURS = {"stderr": "magenta", "daemon": "blue"}


@command(
    """
chronetixctl logs
chronetixctl logs my-flow --tail 20
chronetixctl logs my-flow --node reader -f
chronetixctl logs my-flow --previous --level warning
chronetixctl logs my-flow --run 3
chronetixctl logs my-flow --since 10m --grep 'timed? ?out'
chronetixctl logs -f -o json | jq .line
"""
)
@flow_argument(required=False)
@click.option("--flow", "flow_option", metavar="FLOW", help="The same as the argument.")
@node_option("node")
@click.option("--run", type=ORDINAL, metavar="N", help="Only lines of this run of FLOW; `ls --all` lists the runs.")
@click.option("--previous", is_flag=True, help="Only lines of the run before the last.")
@click.option("-f", "--follow", is_flag=True, help="Then show new lines as they come, until Ctrl-C.")
@click.option("--level", type=click.Choice(LOG_LEVELS), help="Only lines that are at least this severe.")
@click.option("--tail", type=COUNT, metavar="N", help="Begin with the last N lines.")
@click.option("--since", type=MOMENT, metavar="WHEN", help="Only later lines: 10m (ago), 12:30, 2026-05-01T12:30.")
@click.option("--grep", type=PATTERN, metavar="REGEX", help="Only lines that match; --tail then counts these.")
def logs(
    session: Session,
    flow: str | None,
    flow_option: str | None,
    node: str | None,
    run: int | None,
    previous: bool,
    follow: bool,
    level: str | None,
    tail: int | None,
    since: int | None,
    grep: re.Pattern[str] | None,
) -> int:
    """Show the lines that the nodes of FLOW (default: of all flows, and the daemon) printed and logged, as far as the
    daemon keeps them."""
    if None not in (flow, flow_option) and flow != flow_option:
        raise click.UsageError(f"two flows were named: {flow} and {flow_option}")
    chosen = flow_option if flow is None else flow
    if (run or previous) and chosen is None:
        raise click.UsageError("--run and --previous need a FLOW")
    if (run and previous) or (previous and follow):
        raise click.UsageError("--previous is for lines of one earlier run: leave --run and --follow out")
    arguments: dict[str, Any] = {"flow": chosen, "node": node, "level": level, "tail": tail, "since_unix_ns": since}
    arguments |= {"follow": follow or None, "run": 0 if previous else run}
    if grep is not None:
        arguments |= {"tail": None, "mark": True}
    _stream(session, "logs", arguments, lambda item: log_line(item, with_flow=chosen is None), _Grep(grep, tail))
    return exits.OK


@command(
    """
chronetixctl events
chronetixctl events my-flow -f
chronetixctl events -f -o json | jq 'select(.kind == "worker-exited")'
"""
)
@flow_argument(required=False)
@click.option("-f", "--follow", is_flag=True, help="Then show new events as they come, until Ctrl-C.")
@click.option("--tail", type=COUNT, metavar="N", help="Begin with the last N events.")
def events(session: Session, flow: str | None, follow: bool, tail: int | None) -> int:
    """Show the events of FLOW (default: of all flows and the daemon): changes of state, exits and their reasons."""
    _stream(session, "events", {"flow": flow, "follow": follow or None, "tail": tail}, event_line)
    return exits.OK


class _Grep:
    """Filters log items by a pattern. Of the items before the mark ``caught_up`` it passes only the last ``tail``. The
    filter runs in this process and not in the daemon, because a regular expression can be slow."""

    def __init__(self, pattern: re.Pattern[str] | None = None, tail: int | None = None) -> None:
        self._pattern = pattern
        self._kept: deque[Mapping[str, Any]] | None = deque(maxlen=tail) if pattern and tail is not None else None

    def __call__(self, items: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for item in items:
            if "caught_up" in item:
                yield from self._release()
            elif self._pattern is None or "dropped" in item or self._pattern.search(_searched(item)):
                if self._kept is None:
                    yield item
                else:
                    self._kept.append(item)
        yield from self._release()

    def _release(self) -> Iterator[Mapping[str, Any]]:
        kept, self._kept = self._kept or (), None
        yield from kept


def _searched(item: Mapping[str, Any]) -> str:
    fields = item.get("fields") or {}
    return " ".join([str(item.get("line") or ""), *(f"{name}={value}" for name, value in fields.items())])


def _stream(
    session: Session, verb: str, arguments: dict[str, Any], line: Any, chosen: Callable[..., Any] = iter
) -> None:
    with closing(follow(session, verb, arguments)) as items:
        for item in chosen(items):
            output.show_item(item, session.output, lambda item=item: line(item))  # type: ignore[misc]


def _missed(item: Mapping[str, Any], what: str) -> str:
    """Return the line for an item that reports how many items the daemon dropped because this reader was too slow."""
    return click.style(
        f"{output.clock(item['unix_ns'])} ({item['dropped']} {what} were missed: read faster)", fg="yellow"
    )


def log_line(item: Mapping[str, Any], with_flow: bool) -> str:
    """Return the line for a log item: ``12:30:01.250 flow/node | the line  key=value``."""
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
    """Return the line for an event: ``12:30:01.250 #17 worker-exited flow/node: what happened``."""
    if "dropped" in item:
        return _missed(item, "events")
    source = "/".join(part for part in (item.get("flow"), item.get("node")) if part)
    kind = output.printable(item["kind"])
    colour = "red" if "fail" in kind or "fault" in kind else "green" if "running" in kind else None
    head = f"{click.style(output.clock(item['unix_ns']), dim=True)} #{item['sequence']} {click.style(kind, fg=colour)}"
    message = output.first_line(item.get("message") or "")
    return f"{head} {output.printable(source)}" + (f": {message}" if message else "")
