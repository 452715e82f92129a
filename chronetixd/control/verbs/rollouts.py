"""Verbs about roll-outs: apply, undo, restart, rollouts."""

from __future__ import annotations

from typing import Any, Literal

from chronetix.protocol import cbor
from chronetix.protocol.errors import error
from chronetixd.control.verbs.base import Args, Count, Duration, Emit, FlowArgs, Verb, VerbContext
from chronetixd.control.verbs.flows import DiffArgs, runs
from chronetixd.control.verbs.waiting import showing, wait
from chronetixd.core.access import Right
from chronetixd.core.change import described
from chronetixd.core.flow_messages import FlowState, StopMode
from chronetixd.core.rollout import RolloutStep
from chronetixd.flows.apply import ROLLBACK_REQUESTED, Applied
from chronetixd.flows.registry import check_name
from chronetixd.flows.run import FlowRun
from chronetixd.flows.validation import problem_maps


class ApplyArgs(DiffArgs, frozen=True):
    """Arguments of ``apply``: the running flow of the name ``name``, or of ``flow``'s own name, becomes ``flow``. Nodes
    in ``replace`` get a new worker even if they do not differ. ``ready_ns``: how long new workers may take to get
    ready, by default as when a flow starts. With ``wait`` the call returns when the roll-out has ended, else when it
    has begun."""

    replace: list[str] = []
    ready_ns: int | None = None
    wait: bool = True


class UndoArgs(Args, frozen=True):
    """Arguments of ``undo``: go back to revision ``to``, by default the one before. ``present_code``: also when the
    plugins' files have changed since then; new workers load them as they are now. The others as for ``apply``."""

    flow: str
    to: Count | None = None
    present_code: bool = False
    ready_ns: int | None = None
    wait: bool = True


class RestartArgs(Args, frozen=True):
    """Arguments of ``restart``: ``nodes`` get new workers by a roll-out; without ``nodes`` the flow is stopped, if it
    has not ended, and submitted again. ``mode`` and ``timeout_ns``: how it is stopped, as for ``stop``. ``wait``: until
    the roll-out has ended, or the flow runs. An item with ``run`` says that the flow was submitted again."""

    flow: str
    nodes: list[str] = []
    mode: Literal["drain", "now"] = "drain"
    timeout_ns: Duration | None = None
    ready_ns: int | None = None
    wait: bool = True


async def _apply(context: VerbContext, args: ApplyArgs, emit: Emit) -> Any:
    _check_ready("apply", args.ready_ns)
    check_name("apply", args.name)
    applied = await context.rollouts.apply(
        args.flow, args.name, args.bindings, args.base_dir, args.replace, args.ready_ns, asker=emit.asker
    )
    return await _rolled_out(applied, args.wait, emit)


async def _undo(context: VerbContext, args: UndoArgs, emit: Emit) -> Any:
    _check_ready("undo", args.ready_ns)
    return await _rolled_out(
        await context.rollouts.undo(args.flow, args.to, args.ready_ns, args.present_code, emit.asker), args.wait, emit
    )


async def _restart(context: VerbContext, args: RestartArgs, emit: Emit) -> Any:
    _check_ready("restart", args.ready_ns)
    flows = context.flows
    run = flows.find(args.flow)
    if args.nodes:
        return await _rolled_out(await context.rollouts.renew(run.name, args.nodes, args.ready_ns), args.wait, emit)
    if not run.machine.ended:
        flows.stop(run, StopMode(args.mode), args.timeout_ns)
        await wait(run, FlowRun.has_ended, None, f"flow {run.name} stopped", emit)
    stored = flows.stored(run.name)
    again, _ = await flows.submit(cbor.loads(stored.contract), run.name, stored.bindings, stored.base_dir)
    emit({**again.progress(), "run": flows.stored(run.name).run})
    if args.wait:
        await wait(again, runs, None, f"flow {run.name} running", emit)
        await flows.written()
        if again.state is FlowState.FAILED:
            raise error("flow-failed", flow=run.name, reason=again.reason)
    return {"flow": run.name, "state": str(again.state), "run": flows.stored(run.name).run}


def _check_ready(verb: str, ready_ns: int | None) -> None:
    if ready_ns is not None and ready_ns <= 0:
        raise error("bad-argument", argument="ready_ns", verb=verb, reason="must be more than 0")


async def _rolled_out(applied: Applied, wait: bool, emit: Emit) -> Any:
    """Return the answer about a roll-out that has begun, with ``wait`` after its end. Raises ChronetixError
    ``rolled-back``, ``flow-failed``, and ``flow-not-running`` when the flow was stopped meanwhile."""
    run, rollout = applied.run, applied.rollout
    answer = {"flow": run.name, "change": described(applied.change), "warnings": problem_maps(applied.warnings)}
    if rollout is None:
        return {**answer, "number": None, "step": "same"}
    if wait:
        await rollout.until(showing(rollout.progress, emit, lambda: rollout.over))
    step, why = rollout.machine.step, rollout.machine.why
    if step is RolloutStep.ROLLED_BACK and why != ROLLBACK_REQUESTED:
        raise error("rolled-back", flow=run.name, number=rollout.number, reason=why)
    if step is RolloutStep.ENDED and run.state is not FlowState.FAILED:
        raise error("flow-not-running", flow=run.name, state=str(run.state))
    if step is RolloutStep.ENDED:
        raise error("flow-failed", flow=run.name, reason=run.reason or why)
    return {**answer, "number": rollout.number, "step": str(step), "why": why, "cut_ns": rollout.cut_ns}


async def _rollouts(context: VerbContext, args: FlowArgs, _emit: Emit) -> Any:
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


VERBS: dict[str, Verb] = {
    "apply": Verb(ApplyArgs, Right.OPERATE, _apply, carries_flow=True),
    "restart": Verb(RestartArgs, Right.OPERATE, _restart),
    "undo": Verb(UndoArgs, Right.OPERATE, _undo),
    "rollouts": Verb(FlowArgs, Right.READ, _rollouts, at_once=True),
}
