"""Verbs that observe flows: logs, events, stats, tap."""

from __future__ import annotations

from typing import Any

from chronetix.protocol.errors import error
from chronetix.protocol.messages import LOG_LEVELS, LogLevel
from chronetix.protocol.nearest import nearest
from chronetixd.control.verbs.base import Args, Count, Emit, Verb, VerbContext
from chronetixd.control.verbs.streaming import StreamArgs, stream
from chronetixd.control.views import flow_stats
from chronetixd.core.access import Right
from chronetixd.core.flow_messages import FlowState
from chronetixd.core.worker import GONE, WorkerState
from chronetixd.dataplane.taps import find_route
from chronetixd.records.events import Event
from chronetixd.records.log_record import LogRecord
from chronetixd.store.journal_file import StoredFlow

FOR_EVER = 1 << 63
"""A point in time (Unix time in ns) that never comes."""


class LogsArgs(StreamArgs, frozen=True):
    """Arguments of ``logs``: lines of one flow or node, or of all, of at least ``level`` and from ``since_unix_ns`` on.
    ``run``: only lines of this run of the flow; 0 is the run before the last. With ``mark`` an item {caught_up: true}
    is sent between the stored lines and the new ones."""

    flow: str | None = None
    node: str | None = None
    level: LogLevel | None = None
    since_unix_ns: int | None = None
    run: Count | None = None
    mark: bool = False


class EventsArgs(StreamArgs, frozen=True):
    """Arguments of ``events``: events of one flow, or all events."""

    flow: str | None = None


class StatsArgs(Args, frozen=True):
    """Arguments of ``stats``: one flow, or all flows that have not ended."""

    flow: str | None = None


class TapArgs(Args, frozen=True):
    """Arguments of ``tap``. ``route``: id, topic, or ``from:to``. ``credits``: number of credits of the CREDIT memory
    that comes with the call."""

    flow: str
    route: str
    credits: int


async def _logs(context: VerbContext, args: LogsArgs, emit: Emit) -> Any:
    def wanted(record: LogRecord) -> bool:
        named = args.flow in (None, record.flow) and args.node in (None, record.node)
        return named and since <= record.unix_ns < until and LOG_LEVELS.index(record.level) >= least

    least = LOG_LEVELS.index(args.level) if args.level is not None else 0
    since, until = args.since_unix_ns or 0, FOR_EVER
    if args.run is not None and args.flow is None:
        raise error("bad-argument", argument="run", verb="logs", reason="it needs a flow")
    if args.flow is not None:
        run = context.flows.find(args.flow)
        if args.node is not None and args.node not in run.plan.nodes:
            raise error("node-not-found", flow=run.name, node=args.node, nearest=nearest(args.node, run.plan.nodes))
        if args.run is not None:
            begin, until = run_span(context.flows.stored(run.name), args.run)
            since = max(since, begin)
    elif args.node is not None and not args.follow:
        known = sorted({node for run in context.flows for node in run.plan.nodes})
        if args.node not in known:
            raise error("node-not-found", flow=None, node=args.node, nearest=nearest(args.node, known))
    older = context.logs.older(args.flow, args.node) if args.after is None else None
    return await stream(context, context.logs.feed, wanted, args, emit, older, args.mark)


def run_span(stored: StoredFlow, number: int) -> tuple[int, int]:
    """Return from when to when lines belong to run ``number`` of a flow (Unix time in ns): from its submission to that
    of the next run. 0 is the run before the last. Raises ChronetixError ``run-not-found``."""
    begins = {each.number: each.submitted_unix_ns for each in stored.runs} | {stored.run: stored.submitted_unix_ns}
    wanted = number or stored.run - 1
    if wanted not in begins:
        raise error("run-not-found", flow=stored.name, number=number or "before the last one")
    return begins[wanted], begins.get(wanted + 1, FOR_EVER)


async def _events(context: VerbContext, args: EventsArgs, emit: Emit) -> Any:
    def wanted(event: Event) -> bool:
        return args.flow in (None, event.flow)

    if args.flow is not None:
        context.flows.find(args.flow)
    return await stream(context, context.events.feed, wanted, args, emit)


async def _stats(context: VerbContext, args: StatsArgs, _emit: Emit) -> Any:
    runs = [context.flows.find(args.flow)] if args.flow is not None else context.flows.living
    return await flow_stats(runs, context.figures)


COMING = frozenset(WorkerState) - GONE - {WorkerState.STARTED, WorkerState.DRAINING, WorkerState.FINISHED}
"""States of a worker that does not send now, but that may send later, or whose successor may."""


async def _tap(context: VerbContext, args: TapArgs, emit: Emit) -> Any:
    run = context.flows.find(args.flow)
    if run.state is not FlowState.RUNNING:
        raise error("flow-not-running", flow=run.name, state=str(run.state))
    told = [node.configure for node in run.plan.nodes.values()]
    topics = {topic for each in told for topic in (*each.subscriptions, *each.publications)}
    route = find_route(run.name, run.plan.flow.routes, args.route, topics)

    def settled() -> bool:
        return run.machine.ended or run.machine.workers[route.source].state not in COMING

    await run.until(settled)
    tap = run.taps.open(route, args.credits, emit.pid, emit.descriptors)
    try:
        while (update := await tap.next()) is not None:
            emit.give(*update)
        again = run.state is FlowState.RUNNING and run.machine.workers[route.source].state in COMING
        return {"reason": tap.end, "again": again}
    finally:
        run.taps.close(tap)


VERBS: dict[str, Verb] = {
    "logs": Verb(LogsArgs, Right.READ, _logs, streams=True),
    "events": Verb(EventsArgs, Right.READ, _events, streams=True),
    "stats": Verb(StatsArgs, Right.READ, _stats, at_once=True),
    "tap": Verb(TapArgs, Right.OPERATE, _tap, descriptors=1, streams=True),
}
