"""``top``: shows the routes of running flows: rates, credits, latency, and which route holds the flow up.

Rules: everything shown is computed by ``rates`` from two snapshots of the daemon's counters. On a terminal the table
is redrawn in place; elsewhere it is printed again after every interval, and with ``--once`` a single time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from chronetixctl import exits, output
from chronetixctl.again import Asking
from chronetixctl.app import Session
from chronetixctl.options import SPAN, command, flow_argument
from chronetixctl.output import Column
from chronetixctl.rates import NodeRate, RouteRate, bottlenecks, merged, node_rates, route_rates

if TYPE_CHECKING:
    from rich.text import Text

_ROUTES = (
    Column("FLOW"),
    Column("ROUTE"),
    Column("FROM"),
    Column("TO"),
    Column("FRAMES/S", right=True),
    Column("MB/S", right=True),
    Column("CREDITS", right=True),
    Column("WOULDBLOCK", right=True),
    Column("P50", right=True),
    Column("P99", right=True),
    Column("DROPPED", right=True),
    Column(""),
)
_NODES = (
    Column("FLOW"),
    Column("NODE"),
    Column("STATE"),
    Column("PID", right=True),
    Column("CPU", right=True),
    Column("RSS", right=True),
    Column("UNIQUE", right=True),
    Column("MSGS DROPPED", right=True),
)


@command(
    """
chronetixctl top
chronetixctl top my-flow --interval 500ms
chronetixctl top --once -o json
"""
)
@flow_argument(required=False)
@click.option("--once", is_flag=True, help="Print one table and end.")
@click.option("--interval", type=SPAN, default="1s", show_default=True, help="Time between two snapshots.")
def top(session: Session, flow: str | None, once: bool, interval: float) -> int:
    """Watch the data routes of FLOW (default: of all flows).

    A route is marked BOTTLENECK when it stands at its watermark and its consumer is not itself held up by a route: the
    flow waits for that consumer.
    """
    with Asking(session) as client:
        before = client.call("stats", flow=flow)
        if not once and session.output == "table" and sys.stdout.isatty():
            _live(client, flow, before, interval)
            return exits.OK
        while True:
            time.sleep(interval)
            after = client.call("stats", flow=flow)
            _print(before, after, session.output, once)
            if once:
                return exits.OK
            before = after


def _print(before: dict[str, Any], after: dict[str, Any], fmt: str, once: bool) -> None:
    routes, nodes = route_rates(before, after), node_rates(before, after)
    value = merged(before, after)
    if once:
        output.show(value, fmt, lambda: text(routes, nodes))
    else:
        output.show_item(value, fmt, lambda: text(routes, nodes) + "\n")


def text(routes: Sequence[RouteRate], nodes: Sequence[NodeRate]) -> str:
    """Return the two tables, and a line for each bottleneck, as text."""
    parts = [output.table(_ROUTES, [_route_row(rate) for rate in routes]) if routes else "no data routes"]
    parts += ["", output.table(_NODES, [_node_row(rate) for rate in nodes])] if nodes else []
    for rate in bottlenecks(routes):
        where = f"{output.printable(rate.flow)}: {output.printable(rate.target)}"
        parts += [
            "",
            f"{where} is what the flow waits for: route {output.printable(rate.route)} stands at its watermark",
        ]
    return "\n".join(parts)


def _route_row(rate: RouteRate) -> tuple[Any, ...]:
    mark = click.style("BOTTLENECK", fg="red", bold=True) if rate.bottleneck else "closed" if rate.closed else " "
    credits = f"{rate.outstanding}/{rate.credits}"
    return (
        *(output.printable(name) for name in (rate.flow, rate.route, rate.source, rate.target)),
        f"{rate.frames_per_s:,.0f}",
        f"{rate.bytes_per_s / 1e6:,.1f}",
        click.style(credits, fg="yellow") if rate.pressed else credits,
        rate.would_block,
        output.duration(rate.p50_ns),
        output.duration(rate.p99_ns),
        click.style(str(rate.dropped), fg="red") if rate.dropped else "0",
        mark,
    )


def _node_row(rate: NodeRate) -> tuple[Any, ...]:
    return (
        output.printable(rate.flow),
        output.printable(rate.node),
        output.state(rate.state),
        rate.pid,
        f"{rate.cpu:.0%}",
        output.size(rate.rss_bytes) if rate.rss_bytes else "",
        output.size(rate.unique_bytes) if rate.unique_bytes else "",
        click.style(str(rate.dropped_messages), fg="red") if rate.dropped_messages else "0",
    )


def _live(client: Asking, flow: str | None, before: dict[str, Any], interval: float) -> None:
    """Redraw the tables after every interval until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    color = click.get_current_context().find_root().color
    console = Console(no_color=color is False, highlight=False)
    with Live(_frame(before, before), console=console, auto_refresh=False, screen=True) as live:
        while True:
            live.update(_frame(before, after := client.call("stats", flow=flow)), refresh=True)
            time.sleep(interval)
            before = after


def _frame(before: dict[str, Any], after: dict[str, Any]) -> Text:
    from rich.text import Text

    shown = Text.from_ansi(text(route_rates(before, after), node_rates(before, after)))
    shown.no_wrap = True
    shown.append("\n\nCtrl-C ends", style="dim")
    return shown
