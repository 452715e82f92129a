"""``describe``: shows one flow with its nodes, routes, timers and last exits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from chronetix.protocol.json_text import json_text
from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.listing import missing
from chronetixctl.options import command, flow_argument
from chronetixctl.output import Column

_NODES = (
    Column("NODE"),
    Column("STATE"),
    Column("ROLE"),
    Column("PID", right=True),
    Column("UP", right=True),
    Column("RESTARTS", right=True),
    Column("MEMORY", right=True),
    Column("ARTIFACT"),
)
_ROUTES = (
    Column("ROUTE"),
    Column("FROM"),
    Column("TO"),
    Column("PLANE"),
    Column("CONTENT"),
    Column("FRAMES", right=True),
    Column("BYTES", right=True),
    Column("CREDITS", right=True),
    Column("BLOCKED", right=True),
    Column("P50", right=True),
    Column("P99", right=True),
    Column("DROPPED", right=True),
)
_TIMERS = (Column("NODE"), Column("TIMER"), Column("EVERY", right=True))
_SUBSCRIPTIONS = (Column("NODE"), Column("TOPIC"), Column("DELIVERED", right=True), Column("DROPPED", right=True))
_DEATHS = (
    Column("WHEN"),
    Column("NODE"),
    Column("PID", right=True),
    Column("HOW"),
    Column("OUT OF MEMORY"),
    Column("UP", right=True),
    Column("CPU", right=True),
    Column("MAX MEMORY", right=True),
    Column("HELD"),
    Column("WHY"),
)
MAX_WHY = 80
SHOWN_DEATHS = 3
"""How many exits of each node the table shows; -o json has all that the daemon remembers."""


@command(
    """
chronetixctl describe my-flow
chronetixctl describe my-flow -o json | jq .nodes
chronetixctl describe my-flow -o json | jq '.nodes[].deaths'
"""
)
@flow_argument()
def describe(session: Session, flow: str) -> int:
    """Show FLOW: its state and the reason, every node with its process and last exits, every route with its counts."""
    with session.connect() as client:
        answer = client.call("describe", flow=flow)
    output.show(answer, session.output, lambda: "\n".join(_sections(answer)))
    return exits.OK


def _sections(flow: Mapping[str, Any]) -> Iterator[str]:
    yield f"{output.printable(flow['name'])}  {output.state(flow['state'])}"
    if flow.get("reason"):
        yield f"reason: {output.first_line(flow['reason'])}"
    if waits := missing(flow):
        yield waits
    yield ""
    yield output.table(_NODES, [_node(node) for node in flow["nodes"]])
    if flow["routes"]:
        yield ""
        yield output.table(_ROUTES, [_route(route) for route in flow["routes"]])
        for route in flow["routes"]:
            yield from (f"  {line}" for line in _notes(route))
    if flow.get("timers"):
        yield f"\n{click.style('TIMERS', bold=True)}"
        yield output.table(_TIMERS, [_timer(timer) for timer in flow["timers"]])
    if flow.get("subscriptions"):
        yield f"\n{click.style('SUBSCRIPTIONS', bold=True)}"
        yield output.table(_SUBSCRIPTIONS, [_subscription(each) for each in flow["subscriptions"]])
    for node in flow["nodes"]:
        if attach := node.get("attach"):
            yield f"\n{click.style(output.printable(node['node']), bold=True)} waits for attach; start it so:"
            yield f"  {output.printable(attach['command'])}"
        yield from _trouble(node)
        yield from _outcome(node)
    deaths = [death for node in flow["nodes"] for death in (node.get("deaths") or ())[-SHOWN_DEATHS:]]
    if deaths:
        yield f"\n{click.style('LAST EXITS', bold=True)}"
        yield output.table(_DEATHS, [_death(death) for death in sorted(deaths, key=lambda death: death["unix_ns"])])


def _node(node: Mapping[str, Any]) -> tuple[Any, ...]:
    alive = node.get("pid") and not node.get("exit")
    started = node.get("started_unix_ns")
    return (
        output.printable(node["node"]),
        output.state(node["state"]),
        output.printable(node.get("role") or ""),
        node.get("pid"),
        output.duration(time.time_ns() - started) if alive and started else "",
        node.get("incarnation", 0),
        output.size(node["memory_bytes"]) if node.get("memory_bytes") else "",
        output.printable(node.get("uri") or ""),
    )


def _route(route: Mapping[str, Any]) -> tuple[Any, ...]:
    head = tuple(output.printable(route.get(key) or "") for key in ("id", "from", "to", "plane", "content_type"))
    stats = route.get("stats")
    if not stats:
        return (*head, "", "", route.get("buffer") if route.get("plane") == "data" else "", "", "", "", "")
    return (
        *head,
        stats["committed"],
        output.size(stats["bytes"]),
        f"{stats['outstanding']}/{stats['credits']}",
        stats["would_block"],
        output.duration(stats["p50_ns"]),
        output.duration(stats["p99_ns"]),
        stats["dropped"],
    )


def _how(ended: Mapping[str, Any], before: str) -> str:
    """Return how a worker ended, with ``before`` before a signal's name. The exit of a worker that an earlier daemon
    has started cannot always be observed; an attached worker leaves by closing its connection."""
    if ended.get("signal"):
        return f"{before}{ended['signal']}"
    if ended.get("code") is not None:
        return f"exit code {ended['code']}"
    return "left" if ended.get("attached") else "not observed"


def _death(death: Mapping[str, Any]) -> tuple[Any, ...]:
    how = _how(death, "")
    last = death["fault"] or (death["stderr"][-1] if death["stderr"] else "")
    return (
        output.moment(death["unix_ns"]),
        output.printable(death["node"]),
        death["pid"],
        output.printable(how + (" from the daemon" if death["killed_with"] and death["signal"] else "")),
        "" if death["out_of_memory"] == "no" else death["out_of_memory"],
        output.duration(death["uptime_ns"]),
        output.duration(death["cpu_ns"]) if death["cpu_ns"] else "",
        output.size(death["max_rss_bytes"]) if death["max_rss_bytes"] else "",
        output.printable(", ".join(f"{held['route']}:{held['count']}" for held in death["held"])),
        output.first_line(last)[:MAX_WHY],
    )


def _notes(route: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each unusual fact about a route: frames that it lost, and why; frames that its consumer keeps;
    processes that tap it."""
    name, stats = output.printable(route["id"]), route.get("stats") or {}
    lost = [f"{count} {_REASONS[reason]}" for reason, count in (stats.get("drops") or {}).items() if count]
    if lost:
        yield f"{name} lost {', '.join(lost)}"
    if stats.get("gave_up_after_ns"):
        yield f"{name} was given up after {output.duration(stats['gave_up_after_ns'])} without a credit"
    held = route.get("held")
    if held:
        frames = "1 frame" if held["count"] == 1 else f"{held['count']} frames"
        age = output.duration(held["age_ns"])
        yield f"{name}: {output.printable(held['node'])} keeps {frames}, the oldest, {held['seq']}, since {age} ago"
    for tap in route.get("taps") or ():
        counts = f"{tap['taken']} frames, {tap['dropped']} lost" if "taken" in tap else "not linked yet"
        yield f"{name} is listened to by process {tap['pid']}: {counts}"


_REASONS = {
    "no_credit": "for want of a credit",
    "no_room": "for want of room",
    "overwritten": "to newer ones",
    "given_up": "after it was given up",
    "unread": "unread, because its consumer had finished",
}


def _timer(timer: Mapping[str, Any]) -> tuple[Any, ...]:
    return output.printable(timer["node"]), output.printable(timer["id"]), output.duration(timer["interval_ns"])


def _subscription(each: Mapping[str, Any]) -> tuple[Any, ...]:
    return output.printable(each["node"]), output.printable(each["topic"]), each["delivered"], each["dropped"]


def _trouble(node: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines about a node's last or next restart and about the frames over which its plugin raised."""
    name, restart, failed = output.printable(node["node"]), node.get("restart"), node.get("failed_frames")
    if restart and restart.get("last_reason"):
        due = restart.get("next_restart_unix_ns")
        when = f"restarts in {output.duration(max(0, due - time.time_ns()))}" if due else "was restarted"
        yield f"\n{click.style(name, bold=True)} {when}: it {output.first_line(restart['last_reason'])}"
    if failed and any(failed.values()):
        told = "  ".join(f"{key}={value}" for key, value in failed.items())
        yield f"\n{click.style(name, bold=True)} frames that made it raise: {output.printable(told)}"


def _outcome(node: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines about a node's exit code or signal, its fault, its last lines of stderr and its result."""
    name = output.printable(node["node"])
    ended = node.get("exit")
    if ended:
        how = _how(ended, "signal ")
        if ended.get("signal") or ended.get("code"):
            yield f"\n{click.style(name, bold=True)} ended with {output.printable(how)}"
            yield from _last_words(ended.get("fault"), _lines(ended.get("stderr_tail")))
    if node.get("result_left_out"):
        size = output.size(node["result_left_out"])
        yield f"\n{click.style(name, bold=True)} result of {size} is not shown: too large for one answer"
    if node.get("result") is not None:
        yield f"\n{click.style(name, bold=True)} result"
        yield from (f"  {output.printable(line)}" for line in json_text(node["result"], indent=2).splitlines())


def _last_words(fault: Any, tail: list[str]) -> Iterator[str]:
    """Yield the exception that the plugin raised, and the last lines of stderr. The traceback is shown once, also when
    stderr ends with it."""
    trace: list[str] = []
    if isinstance(fault, Mapping):
        phase, error, message = (output.first_line(fault.get(key) or "?") for key in ("phase", "error", "message"))
        yield f"  in {phase}: {error}: {message}"
        trace = _lines(fault.get("traceback"))
    elif fault:
        yield f"  {output.printable(fault)}"
    if trace and tail[-len(trace) :] == trace:
        trace = []
    yield from (f"  | {output.printable_line(line)}" for line in [*trace, *tail])


def _lines(tail: Any) -> list[str]:
    return [str(line) for line in tail] if isinstance(tail, list) else str(tail or "").splitlines()
