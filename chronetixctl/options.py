"""Options and arguments that commands share, and the decorator that makes a function a command.

Rules: the global options may stand behind a command too; durations are seconds or carry a unit; the completion of a
flow's name asks the daemon for at most COMPLETION_TIMEOUT_S and offers nothing when the daemon does not answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from datetime import time as clock
from functools import wraps
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from chronetix.protocol.contract.reading import quote, unfit_flow_name
from chronetixctl import output
from chronetixctl.app import Session, adopt
from chronetixd import interrupt

_Function = TypeVar("_Function", bound=Callable[..., Any])

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2})?")
_UNITS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

COMPLETION_TIMEOUT_S = 0.5
"""How long the completion of a flow's name may wait for the daemon."""


YEAR_S = 365 * 86400

LONGEST_S = 100 * YEAR_S
"""The longest span of time that an option accepts: in ns it fits into the protocol's 64-bit integers."""


def _seconds(match: re.Match[str]) -> float:
    return float(match.group(1)) * _UNITS[match.group(2)]


class Span(click.ParamType[float]):
    """The option type of a span of time, converted to seconds: ``5``, ``500ms``, ``2m``, ``1h``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = _SPAN.fullmatch(str(value))
        if match is None or float(match.group(1)) == 0:
            self.fail(f'"{value}" is no duration; write seconds, or 500ms, 30s, 2m, 1h', param, ctx)
        seconds = _seconds(match)
        if seconds > LONGEST_S:
            self.fail(f'"{value}" is too long: at most {LONGEST_S // YEAR_S} years', param, ctx)
        return seconds


SPAN = Span()


class Moment(click.ParamType[int]):
    """The option type of a point in time, converted to Unix time in ns: a span before now, a time of this day, or a
    date; a time without a zone is local time."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        match = _SPAN.fullmatch(text)
        if match is not None:
            return max(0, time.time_ns() - round(min(_seconds(match), LONGEST_S) * 1e9))
        try:
            if _CLOCK.fullmatch(text):
                found = datetime.combine(datetime.now().date(), clock.fromisoformat(text.zfill(5)))
            else:
                found = datetime.fromisoformat(text)
            seconds = found.timestamp()
        except (ValueError, OverflowError):
            self.fail(f'"{value}" is no time; write 10m (ago), 12:30 or 2026-05-01T12:30', param, ctx)
        if seconds > time.time() + LONGEST_S:
            self.fail(f'"{value}" is too far away', param, ctx)
        return max(0, round(seconds * 1e9))


MOMENT = Moment()


class Pattern(click.ParamType["re.Pattern[str]"]):
    """The option type of a regular expression."""

    name = "regex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> re.Pattern[str]:
        if isinstance(value, re.Pattern):
            return value
        try:
            return re.compile(str(value))
        except re.error as reason:
            self.fail(f'"{value}" is no regular expression: {reason}', param, ctx)


PATTERN = Pattern()

MAX_COUNT = 1 << 53
"""The largest count that an option accepts: more than the daemon keeps of anything, and within the protocol's
integers."""

COUNT = click.IntRange(0, MAX_COUNT)
"""The option type of a count that may be 0."""

ORDINAL = click.IntRange(1, MAX_COUNT)
"""The option type of a number that begins at 1: a position, or a count that may not be 0."""


class FlowName(click.ParamType[str]):
    """The option type of a new flow's name."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        reason = unfit_flow_name(str(value))
        if reason:
            self.fail(f"{quote(str(value))} is no usable name: it {reason}", param, ctx)
        return str(value)


FLOW_NAME = FlowName()


def command(examples: str, **settings: Any) -> Callable[[_Function], click.Command]:
    """Return a decorator that makes a function a command; the function's first argument is the session, and
    ``examples`` are shown at the end of its help."""
    epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())

    def decorate(function: _Function) -> click.Command:
        @wraps(function)
        def run(socket_: str | None, output_: str | None, no_color_: bool, **arguments: Any) -> Any:
            session = adopt(click.get_current_context(), socket_, output_, no_color_)
            with interrupt.Raised():
                return function(session, **arguments)

        return _as_command(_global_options(run), epilog=epilog, **settings)

    return decorate


def _as_command(function: Callable[..., Any], name: str | None = None, **settings: Any) -> click.Command:
    made: click.Command = click.command(name, click.Command, **settings)(function)
    return made


def _global_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--no-color", "no_color_", is_flag=True, help="No colours."),
        click.option("-o", "--output", "output_", type=click.Choice(output.FORMATS), help="How to print data."),
        click.option("--socket", "socket_", metavar="PATH", help="The daemon's control socket."),
    ):
        function = option(function)
    return function


def _flow_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from chronetix.protocol.errors import ChronetixError
    from chronetixctl.client import Client

    session = ctx.find_object(Session)
    try:
        with Client.connect(session.socket if session else None, timeout=COMPLETION_TIMEOUT_S) as client:
            flows = client.call("list", timeout=COMPLETION_TIMEOUT_S)["flows"]
    except ChronetixError:
        return []  # a message here would land in the middle of the line that is being typed
    return [CompletionItem(flow["name"], help=flow["state"]) for flow in flows if flow["name"].startswith(incomplete)]


def flow_argument(required: bool = True, several: bool = False) -> Callable[[_Function], _Function]:
    """Return a decorator that adds the argument FLOW, completed from the daemon's list of flows. With ``several`` the
    function receives a tuple of names."""
    return click.argument(
        "flow",
        metavar=("FLOW" if required else "[FLOW]") + ("..." if several else ""),
        required=required,
        nargs=-1 if several else 1,
        shell_complete=_flow_names,
    )


def _node_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from chronetix.protocol.errors import ChronetixError
    from chronetixctl.client import Client

    session, flow = ctx.find_object(Session), ctx.params.get("flow")
    if not flow:
        return []
    try:
        with Client.connect(session.socket if session else None, timeout=COMPLETION_TIMEOUT_S) as client:
            nodes = client.call("describe", timeout=COMPLETION_TIMEOUT_S, flow=flow)["nodes"]
    except ChronetixError:
        return []
    return [CompletionItem(each["node"], help=each["state"]) for each in nodes if each["node"].startswith(incomplete)]


def node_option(name: str, multiple: bool = False, help: str = "Only this node.") -> Callable[[_Function], _Function]:
    """Return a decorator that adds the option ``--node``, which the function receives as ``name``; it is completed from
    the nodes of the flow that is named before it."""
    return click.option("--node", name, metavar="NODE", multiple=multiple, help=help, shell_complete=_node_names)


def file_argument(function: _Function) -> _Function:
    """Add the argument FILE; ``-`` is stdin."""
    return click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True))(
        function
    )


def settling_options(function: _Function) -> _Function:
    """Add the repeatable options ``--bind ENDPOINT=NODE`` and ``--artifact NODE=URI``, which settle what a flow's file
    leaves open. The function receives them as dicts."""
    bind = click.option(
        "--bind",
        "bindings",
        metavar="ENDPOINT=NODE",
        multiple=True,
        callback=_pairs,
        help="The node that a route's endpoint stands for, when its name is not the node's; #2 is the second one. "
        "Repeatable.",
    )
    artifact = click.option(
        "--artifact",
        "artifacts",
        metavar="NODE=URI",
        multiple=True,
        callback=_pairs,
        help="Run this instead of the artifact that the file names; paths start from the file's folder. Repeatable.",
    )
    return bind(artifact(function))


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        name, separator, meant = value.partition("=")
        if not (name and separator and meant):
            raise click.BadParameter(f'"{value}" is not {param.metavar}', ctx, param)
        if name in pairs:
            raise click.BadParameter(f'"{name}" is given twice', ctx, param)
        pairs[name] = meant
    return pairs
