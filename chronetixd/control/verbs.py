"""What clients can ask for: one function and one struct of typed arguments per verb, and the right that it takes.

Who may only read (:class:`chronetixd.core.access.Right`) starts nothing and learns nothing of the daemon's files. A
verb gets its arguments, checked, and ``emit`` for the items of a streaming answer; what it returns is the result. It
raises ChronetixError for what cannot be done. A verb is cancelled when its client cancels or goes away; nothing that it
began is undone then.
"""

from __future__ import annotations

import asyncio
import itertools
import platform
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from chronetix import shm
from chronetix.protocol import cbor
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.messages import LOG_LEVELS, PROTOCOL_VERSIONS, LogLevel
from chronetix.protocol.nearest import nearest
from chronetixd.bus.event_bus import Bus
from chronetixd.control.views import Ask, describe, flow_stats
from chronetixd.core.access import Right
from chronetixd.core.change import compare, described
from chronetixd.core.flow_messages import FlowState, StopMode
from chronetixd.core.rollout import Step
from chronetixd.core.worker import GONE, WorkerState
from chronetixd.dataplane.taps import find_route
from chronetixd.flows.apply import CALLED_BACK, Applied, Rollouts
from chronetixd.flows.registry import Flows, invalid, problem_maps
from chronetixd.flows.run import FlowRun
from chronetixd.loop.aside import Aside
from chronetixd.loop.turns import Pace
from chronetixd.records.audit import Audit, Record
from chronetixd.records.events import Event, Events
from chronetixd.records.feed import Feed
from chronetixd.records.log_record import LogRecord
from chronetixd.records.logs import Logs
from chronetixd.workers.pool import Spares

MAX_REPLAY = 10_000
"""Records that may wait behind those that were kept, until these are sent; the oldest make room."""

TURN = 256
"""Kept records that are sent before others get their turn."""


class Emit(Protocol):
    """Sends the items of a streaming answer."""

    def __call__(self, value: Any) -> bool:
        """Send one; False when the client's queue is full and the item was dropped."""

    def give(self, value: Any, descriptors: Sequence[int]) -> None:
        """Send one with descriptors, which are closed once they have gone; never dropped."""

    descriptors: list[int]
    """What came with the call; what is left in there is closed at its end."""

    pid: int
    """The client's process, as the kernel says."""

    goes_on: dict[str, Any]
    """What the call, should it be cut off, can be asked with again to go on where it was."""

    async def room(self) -> None:
        """Wait until the client has read most of what was sent."""


@dataclass(frozen=True, slots=True)
class Context:
    """What verbs work on."""

    flows: Flows
    rollouts: Rollouts
    bus: Bus
    events: Events
    logs: Logs
    audit: Audit
    spares: Spares
    identity: dict[str, Any]
    examine: Callable[[], list[dict[str, str]]]
    """What ``doctor`` finds in this process."""
    settings: Callable[[], list[dict[str, Any]]]
    """Those in force, each with where it comes from."""
    reads: Aside
    """Of files, for who asks for what they tell."""
    figures: Ask
    """Of processes."""
    upgrade: Callable[[UpgradeArgs, Emit], Awaitable[dict[str, Any]]]
    ending: asyncio.Event
    """Set when the daemon is about to go: calls that would last for ever end."""


Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Duration = Annotated[int, Meta(ge=0)]
"""In ns."""


class Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Arguments of a verb; unknown ones are refused."""


class NoArgs(Args, frozen=True):
    """None."""


class SubmitArgs(Args, frozen=True):
    """``wait``: return when it was accepted, when it runs, or when it has ended."""

    flow: dict[str, Any]
    name: str | None = None
    bindings: dict[str, str] = {}
    base_dir: str = ""
    wait: Literal["accepted", "running", "stopped"] = "accepted"
    timeout_ns: Duration | None = None


class ValidateArgs(Args, frozen=True):
    """As for submit."""

    flow: dict[str, Any]
    bindings: dict[str, str] = {}
    base_dir: str = ""


class DiffArgs(ValidateArgs, frozen=True):
    """``flow`` beside the one of its own name, or of ``name``."""

    name: str | None = None


class ApplyArgs(DiffArgs, frozen=True):
    """``flow`` is what the one of its own name, or of ``name``, is to become; nodes in ``replace`` get a new worker in
    any case. ``ready_ns``: how long new workers may take to be ready, by default as when a flow starts. With ``wait``
    the end is awaited."""

    replace: list[str] = []
    ready_ns: int | None = None
    wait: bool = True


class UndoArgs(Args, frozen=True):
    """Back to revision ``to``, by default the one before; else as for apply."""

    flow: str
    to: int | None = None
    ready_ns: int | None = None
    wait: bool = True


class FlowArgs(Args, frozen=True):
    """One flow by name."""

    flow: str


class StopArgs(Args, frozen=True):
    """``timeout_ns``: how long it may drain."""

    flow: str
    mode: Literal["drain", "now"] = "drain"
    timeout_ns: Duration | None = None


class LogsArgs(Args, frozen=True):
    """Lines of one flow or node, or of all, of ``level`` at least and from ``since_unix_ns`` on; the last ``tail`` of
    those kept, then, with ``follow``, all that come. With ``mark`` an item {caught_up: true} stands between the two.
    With ``after`` only what came after the record of that number: where an earlier call was cut off."""

    flow: str | None = None
    node: str | None = None
    follow: bool = False
    tail: Count | None = None
    level: LogLevel | None = None
    since_unix_ns: int | None = None
    mark: bool = False
    after: Count | None = None


class EventsArgs(Args, frozen=True):
    """Events of one flow or all; ``after``: as for logs."""

    flow: str | None = None
    follow: bool = False
    tail: Count | None = None
    after: Count | None = None


class StatsArgs(Args, frozen=True):
    """One flow or all that live."""

    flow: str | None = None


class AuditArgs(Args, frozen=True):
    """The last ``tail`` records at hand; with ``uid`` those of one user, with ``verb`` of one verb."""

    follow: bool = False
    tail: Count | None = None
    uid: int | None = None
    verb: str | None = None
    after: Count | None = None


class UpgradeArgs(Args, frozen=True):
    """``image``: the other release's chronetixd, by default what this one was started as. ``id`` is the caller's, and
    comes back in what ``version`` says of the last upgrade. ``timeout_ns``: how long it may take to begin."""

    id: str = ""
    image: str | None = None
    dry_run: bool = False
    timeout_ns: Count = 30_000_000_000


class TapArgs(Args, frozen=True):
    """``route``: id, topic, or ``from:to``. ``credits``: of the CREDIT that comes along."""

    flow: str
    route: str
    credits: int


class PublishArgs(Args, frozen=True):
    """A message for a topic."""

    topic: str
    payload: bytes
    content_type: str = "application/json"


async def _version(context: Context, _args: NoArgs, _emit: Emit) -> Any:
    return {
        **context.identity,
        "spares": {"wanted": context.spares.size, "pids": context.spares.ready},
        "output_lost": context.logs.losses(),
        "protocol": list(PROTOCOL_VERSIONS),
        "abi": shm.ABI_VERSION,
        "python": platform.python_version(),
    }


async def _submit(context: Context, args: SubmitArgs, emit: Emit) -> Any:
    run, warnings = await context.flows.submit(args.flow, args.name or None, args.bindings, args.base_dir)
    if args.wait != "accepted":
        wanted = _runs if args.wait == "running" else FlowRun.has_ended
        await _wait(run, wanted, args.timeout_ns, f"flow {run.name} {args.wait}", emit)
        await context.flows.written()
    if args.wait == "running" and run.state is FlowState.FAILED:
        raise error("flow-failed", flow=run.name, reason=run.reason)
    answer = {"flow": run.name, "state": str(run.state), "warnings": problem_maps(warnings)}
    return {**answer, "reason": run.reason} if run.reason else answer


async def _validate(context: Context, args: ValidateArgs, _emit: Emit) -> Any:
    checked = await context.flows.validate(args.flow, args.bindings, args.base_dir)
    nodes, routes = args.flow.get("manifests"), args.flow.get("routes")
    return {
        "valid": checked.flow is not None,
        "problems": problem_maps(checked.problems),
        "warnings": problem_maps(checked.warnings),
        "nodes": len(nodes) if isinstance(nodes, list) else 0,
        "routes": len(routes) if isinstance(routes, list) else 0,
    }


async def _diff(context: Context, args: DiffArgs, _emit: Emit) -> Any:
    checked = await context.flows.validate(args.flow, args.bindings, args.base_dir)
    shown = args.name or str(args.flow.get("name") or "")
    if checked.flow is None:
        raise invalid(shown or "without a name", checked.problems)
    if not shown:
        raise error("bad-argument", argument="name", verb="diff", reason="neither it nor the flow says which flow")
    run = context.flows.find(shown)
    folders = (run.plan.base_dir, args.base_dir) if args.base_dir else ("", "")
    return {"flow": run.name, "state": str(run.state), **described(compare(run.plan.flow, checked.flow, folders))}


async def _apply(context: Context, args: ApplyArgs, emit: Emit) -> Any:
    _check_ready("apply", args.ready_ns)
    name, base_dir = args.name or None, args.base_dir
    applied = await context.rollouts.apply(args.flow, name, args.bindings, base_dir, args.replace, args.ready_ns)
    return await _rolled_out(applied, args.wait, emit)


async def _undo(context: Context, args: UndoArgs, emit: Emit) -> Any:
    _check_ready("undo", args.ready_ns)
    return await _rolled_out(await context.rollouts.undo(args.flow, args.to, args.ready_ns), args.wait, emit)


def _check_ready(verb: str, ready_ns: int | None) -> None:
    if ready_ns is not None and ready_ns <= 0:
        raise error("bad-argument", argument="ready_ns", verb=verb, reason="must be more than 0")


async def _rolled_out(applied: Applied, wait: bool, emit: Emit) -> Any:
    """The end of a roll-out, or its beginning. Raises ChronetixError ``rolled-back``, ``flow-failed``."""
    run, rollout = applied.run, applied.rollout
    answer = {"flow": run.name, "change": described(applied.change), "warnings": problem_maps(applied.warnings)}
    if rollout is None:
        return {**answer, "number": None, "step": "same"}
    if wait:
        await rollout.until(_showing(rollout.progress, emit, lambda: rollout.over))
    step, why = rollout.machine.step, rollout.machine.why
    if step is Step.ROLLED_BACK and why != CALLED_BACK:
        raise error("rolled-back", flow=run.name, number=rollout.number, reason=why)
    if step is Step.ENDED:
        raise error("flow-failed", flow=run.name, reason=run.reason or why)
    return {**answer, "number": rollout.number, "step": str(step), "why": why, "cut_ns": rollout.cut_ns}


async def _rollouts(context: Context, args: FlowArgs, _emit: Emit) -> Any:
    run = context.flows.find(args.flow)
    revisions = context.flows.revisions(run.name)
    progress = run.rollout.progress() if run.rollout is not None else None
    return {
        "flow": run.name,
        "state": str(run.state),
        "current": revisions.current,
        "revisions": revisions.described(),
        "rollout": progress,
    }


async def _list(context: Context, _args: NoArgs, _emit: Emit) -> Any:
    flows = [cbor.dumps(_summary(run)) async for run in Pace().over(context.flows)]
    return cbor.Encoded(cbor.dumps({"flows": cbor.Encoded.list(flows)}))


def _summary(run: FlowRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "state": str(run.state),
        "nodes": len(run.plan.nodes),
        "routes": len(run.plan.flow.routes),
        "restarts": sum(worker.incarnation for worker in run.machine.workers.values()),
        "submitted_unix_ns": run.submitted_unix_ns,
        "changed_unix_ns": run.changed_unix_ns,
        "reason": run.reason,
    }


async def _describe(context: Context, args: FlowArgs, _emit: Emit) -> Any:
    run = context.flows.find(args.flow)
    return await describe(run, context.flows.stored(run.name).contract, context.figures)


async def _stop(context: Context, args: StopArgs, emit: Emit) -> Any:
    run = context.flows.find(args.flow)
    if run.machine.ended:
        raise error("flow-not-running", flow=run.name, state=str(run.state))
    context.flows.stop(run, StopMode(args.mode), args.timeout_ns)
    await _wait(run, FlowRun.has_ended, None, f"flow {run.name} stopped", emit)
    await context.flows.written()
    answer = {"flow": run.name, "state": str(run.state)}
    return {**answer, "reason": run.reason} if run.reason else answer


async def _logs(context: Context, args: LogsArgs, emit: Emit) -> Any:
    def wanted(record: LogRecord) -> bool:
        named = args.flow in (None, record.flow) and args.node in (None, record.node)
        return named and record.unix_ns >= since and LOG_LEVELS.index(record.level) >= least

    least = LOG_LEVELS.index(args.level) if args.level is not None else 0
    since = args.since_unix_ns or 0
    if args.flow is not None:
        context.flows.find(args.flow)
    older = context.logs.older(args.flow, args.node) if args.after is None else None
    return await _stream(context, context.logs.feed, wanted, args, emit, older, args.mark)


async def _events(context: Context, args: EventsArgs, emit: Emit) -> Any:
    def wanted(event: Event) -> bool:
        return args.flow in (None, event.flow)

    if args.flow is not None:
        context.flows.find(args.flow)
    return await _stream(context, context.events.feed, wanted, args, emit)


async def _stats(context: Context, args: StatsArgs, _emit: Emit) -> Any:
    runs = [context.flows.find(args.flow)] if args.flow is not None else context.flows.living
    return await flow_stats(runs, context.figures)


COMING = frozenset(WorkerState) - GONE - {WorkerState.STARTED, WorkerState.DRAINING, WorkerState.FINISHED}
"""States of a worker that may send again, or whose successor may; but not now."""


async def _tap(context: Context, args: TapArgs, emit: Emit) -> Any:
    run = context.flows.find(args.flow)
    if run.state is not FlowState.RUNNING:
        raise error("flow-not-running", flow=run.name, state=str(run.state))
    route = find_route(run.name, run.plan.flow.routes, args.route)

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


async def _publish(context: Context, args: PublishArgs, _emit: Emit) -> Any:
    envelope = {"topic": args.topic, "content_type": args.content_type}
    return {"subscribers": context.bus.publish(envelope, args.payload)}


async def _audit(context: Context, args: AuditArgs, emit: Emit) -> Any:
    def wanted(record: Record) -> bool:
        return args.uid in (None, record.uid) and args.verb in (None, record.verb)

    return await _stream(context, context.audit.feed, wanted, args, emit)


async def _upgrade(context: Context, args: UpgradeArgs, emit: Emit) -> Any:
    return await context.upgrade(args, emit)


async def _doctor(context: Context, _args: NoArgs, _emit: Emit) -> Any:
    return {"findings": context.examine()}


async def _config(context: Context, _args: NoArgs, _emit: Emit) -> Any:
    return {"settings": context.settings()}


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb's arguments, who may ask for it and what it does."""

    args: type[Args]
    right: Right
    run: Callable[[Context, Any, Emit], Awaitable[Any]]
    descriptors: int = 0
    """How many come with the call."""
    carries_flow: bool = False
    """Its arguments may have as many items as a frame."""
    at_once: bool = False
    """It answers from what is there: one client gets one such answer after the other."""
    streams: bool = False
    """It may last as long as the client wants, and sends what happens."""


VERBS: dict[str, Verb] = {
    "version": Verb(NoArgs, Right.READ, _version, at_once=True),
    "submit": Verb(SubmitArgs, Right.OPERATE, _submit, carries_flow=True),
    "validate": Verb(ValidateArgs, Right.OPERATE, _validate, carries_flow=True, at_once=True),
    "diff": Verb(DiffArgs, Right.OPERATE, _diff, carries_flow=True, at_once=True),
    "apply": Verb(ApplyArgs, Right.OPERATE, _apply, carries_flow=True),
    "undo": Verb(UndoArgs, Right.OPERATE, _undo),
    "rollouts": Verb(FlowArgs, Right.READ, _rollouts, at_once=True),
    "list": Verb(NoArgs, Right.READ, _list, at_once=True),
    "describe": Verb(FlowArgs, Right.READ, _describe, at_once=True),
    "stop": Verb(StopArgs, Right.OPERATE, _stop),
    "logs": Verb(LogsArgs, Right.READ, _logs, streams=True),
    "events": Verb(EventsArgs, Right.READ, _events, streams=True),
    "stats": Verb(StatsArgs, Right.READ, _stats, at_once=True),
    "publish": Verb(PublishArgs, Right.OPERATE, _publish),
    "tap": Verb(TapArgs, Right.OPERATE, _tap, descriptors=1, streams=True),
    "doctor": Verb(NoArgs, Right.READ, _doctor, at_once=True),
    "config": Verb(NoArgs, Right.OPERATE, _config, at_once=True),
    "audit": Verb(AuditArgs, Right.ADMIN, _audit, streams=True),
    "upgrade": Verb(UpgradeArgs, Right.ADMIN, _upgrade),
}


def find(name: str) -> Verb:
    """The verb ``name``. Raises ChronetixError ``unknown-verb``."""
    verb = VERBS.get(name)
    if verb is None:
        raise error("unknown-verb", verb=name, nearest=nearest(name, VERBS))
    return verb


async def call(context: Context, name: str, raw: dict[str, Any], emit: Emit) -> Any:
    """Run verb ``name``. Raises ChronetixError: ``unknown-verb``, ``bad-argument``, or the verb's own."""
    verb = find(name)
    try:
        args = msgspec.convert(raw, verb.args)
    except msgspec.ValidationError as reason:
        raise _bad_argument(name, verb, raw, str(reason)) from None
    return await verb.run(context, args, emit)


def _bad_argument(name: str, verb: Verb, raw: dict[str, Any], reason: str) -> ChronetixError:
    """msgspec says where (``at `$.flow```) and what; unknown names get the nearest known one."""
    known = {field.name for field in msgspec.structs.fields(verb.args)}
    unknown = next((key for key in raw if key not in known), None)
    if unknown is not None:
        near = nearest(unknown, known)
        text = f"there is no such argument{f', did you mean {near}?' if near else ''}"
        return error("bad-argument", argument=unknown, verb=name, reason=text)
    what, _, where = reason.partition(" - at `$.")
    argument = where.rstrip("`") or (what.split("`")[1] if "`" in what else "args")
    return error("bad-argument", argument=argument, verb=name, reason=what)


# -- waiting and streaming ---------------------------------------------------------------------------------


def _runs(run: FlowRun) -> bool:
    """It runs, or ran; one that is on its way to failure does not."""
    begun = run.state not in (FlowState.SUBMITTED, FlowState.VALIDATED, FlowState.STARTING, FlowState.DRAINING)
    return begun or (run.state is FlowState.DRAINING and run.machine.failure is None)


async def _wait(run: FlowRun, wanted: Callable[[FlowRun], bool], timeout_ns: int | None, what: str, emit: Emit) -> None:
    """Until ``wanted``, showing progress. Raises ChronetixError ``timed-out``."""
    seconds = None if timeout_ns is None else timeout_ns / 1e9
    try:
        async with asyncio.timeout(seconds):
            await run.until(_showing(run.progress, emit, lambda: wanted(run)))
    except TimeoutError:
        raise error("timed-out", what=what, seconds=seconds) from None


def _showing(progress: Callable[[], Any], emit: Emit, reached: Callable[[], bool]) -> Callable[[], bool]:
    """``reached``, which shows progress whenever it is asked."""
    shown: Any = None

    def look() -> bool:
        nonlocal shown
        now = progress()
        if now != shown:
            shown = now
            emit(now)
        return reached()

    return look


async def _unhurried(
    aside: Aside, records: Iterator[Any], wanted: Callable[[Any], bool], tail: int | None, emit: Emit
) -> AsyncIterator[Any]:
    """Those that are ``wanted``, the last ``tail`` if given; read beside the loop, at the reader's pace."""
    last: deque[Any] = deque(maxlen=tail)
    while some := await aside.ask(lambda: list(itertools.islice(records, TURN))):
        if tail is None:
            await emit.room()
        for record in some:
            if wanted(record):
                if tail is None:
                    yield record
                else:
                    last.append(record)
    for record in last:
        yield record


async def _stream(
    context: Context,
    feed: Feed[Any],
    wanted: Callable[[Any], bool],
    args: LogsArgs | EventsArgs | AuditArgs,
    emit: Emit,
    older: Iterator[Any] | None = None,
    mark: bool = False,
) -> dict[str, int]:
    """Send what is kept (``older`` before what is in memory), then, with ``follow``, what comes, until cancelled or the
    daemon ends. A client that reads too slowly misses what comes, never what was kept; it is told how many as soon as
    it reads again."""
    dropped = 0
    kept: deque[tuple[int, Any]] | None = None

    def show(record: Any) -> None:
        nonlocal dropped
        if not wanted(record):
            return
        if kept is not None:
            dropped += len(kept) == kept.maxlen
            kept.append((feed.appended, record))
            return
        send(feed.appended, record)

    def send(number: int | None, record: Any) -> None:
        nonlocal dropped
        if number is not None:
            emit.goes_on["after"] = number
        if dropped and emit({"dropped": dropped, "unix_ns": time.time_ns()}):
            dropped = 0
        if not emit(msgspec.to_builtins(record, builtin_types=(bytes,))):
            dropped += 1

    tail = args.tail
    kept = deque(feed.numbered(wanted, tail, args.after or 0))
    before = kept[0][0] - 1 if kept else feed.appended
    missing = None if tail is None else tail - len(kept)
    kept = deque(kept, maxlen=max(MAX_REPLAY, len(kept)))
    unfollow = feed.follow(show) if args.follow else None
    try:
        if older is not None and missing != 0:
            async for record in _unhurried(context.reads, older, wanted, missing, emit):
                send(None, record)
        emit.goes_on["after"] = before
        while kept:
            await emit.room()
            for _ in range(min(TURN, len(kept))):
                send(*kept.popleft())
            await asyncio.sleep(0)
        kept = None
        if mark:
            emit({"caught_up": True})
        if unfollow is not None:
            await context.ending.wait()
            raise error("daemon-stopping")
    finally:
        if unfollow is not None:
            unfollow()
    return {"dropped": dropped}
