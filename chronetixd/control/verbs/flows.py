"""Verbs about flows: submit, validate, diff, list, describe, stop, remove."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chronetix.protocol import cbor
from chronetix.protocol.errors import error
from chronetixd.control.verbs.base import Args, Duration, Emit, FlowArgs, Verb, VerbContext
from chronetixd.control.verbs.waiting import wait
from chronetixd.control.views import describe, returning
from chronetixd.core.access import Right
from chronetixd.core.change import compare, described
from chronetixd.core.flow_messages import FlowState, StopMode
from chronetixd.flows import attach
from chronetixd.flows.registry import check_name, invalid
from chronetixd.flows.run import FlowRun
from chronetixd.flows.validation import problem_maps
from chronetixd.loop.turns import Pace


class SubmitArgs(Args, frozen=True):
    """Arguments of ``submit``. ``wait``: return when the flow is accepted, when it runs, or when it has ended."""

    flow: dict[str, Any]
    name: str | None = None
    bindings: dict[str, str] = {}
    base_dir: str = ""
    wait: Literal["accepted", "running", "stopped"] = "accepted"
    timeout_ns: Duration | None = None


class ValidateArgs(Args, frozen=True):
    """Arguments of ``validate``, with the same meaning as for ``submit``."""

    flow: dict[str, Any]
    bindings: dict[str, str] = {}
    base_dir: str = ""


class DiffArgs(ValidateArgs, frozen=True):
    """Arguments of ``diff``: ``flow`` is compared with the running flow of its own name, or of ``name``."""

    name: str | None = None


class ListArgs(Args, frozen=True):
    """Arguments of ``list``. ``all``: with the earlier runs of each flow."""

    all: bool = False


class StopArgs(Args, frozen=True):
    """Arguments of ``stop``. ``timeout_ns``: how long the flow may drain."""

    flow: str
    mode: Literal["drain", "now"] = "drain"
    timeout_ns: Duration | None = None


class AttachTokenArgs(Args, frozen=True):
    """Arguments of ``attach_token``. ``node``: only this node."""

    flow: str
    node: str = ""


async def _submit(context: VerbContext, args: SubmitArgs, emit: Emit) -> Any:
    run, warnings = await context.flows.submit(args.flow, args.name, args.bindings, args.base_dir, emit.asker)
    if args.wait != "accepted":
        wanted = runs if args.wait == "running" else FlowRun.has_ended
        await wait(run, wanted, args.timeout_ns, f"flow {run.name} {args.wait}", emit)
        await context.flows.written()
    if args.wait == "running" and run.state is FlowState.FAILED:
        raise error("flow-failed", flow=run.name, reason=run.reason)
    answer = {"flow": run.name, "state": str(run.state), "warnings": problem_maps(warnings)}
    return {**answer, "reason": run.reason} if run.reason else answer


def runs(run: FlowRun) -> bool:
    """Whether the flow runs or has run; False for a flow that fails before it has run."""
    begun = run.state not in (FlowState.SUBMITTED, FlowState.VALIDATED, FlowState.STARTING, FlowState.DRAINING)
    return begun or (run.state is FlowState.DRAINING and run.machine.failure is None)


async def _validate(context: VerbContext, args: ValidateArgs, _emit: Emit) -> Any:
    checked = await context.flows.validate(args.flow, args.bindings, args.base_dir)
    nodes, routes = args.flow.get("manifests"), args.flow.get("routes")
    return {
        "valid": checked.flow is not None,
        "problems": problem_maps(checked.problems),
        "warnings": problem_maps(checked.warnings),
        "nodes": len(nodes) if isinstance(nodes, list) else 0,
        "routes": len(routes) if isinstance(routes, list) else 0,
    }


async def _diff(context: VerbContext, args: DiffArgs, _emit: Emit) -> Any:
    check_name("diff", args.name)
    checked = await context.flows.validate(args.flow, args.bindings, args.base_dir)
    shown = args.name or str(args.flow.get("name") or "")
    if checked.flow is None:
        raise invalid(shown or "without a name", checked.problems)
    if not shown:
        raise error("bad-argument", argument="name", verb="diff", reason="neither it nor the flow says which flow")
    run = context.flows.find(shown)
    folders = (run.plan.base_dir, args.base_dir) if args.base_dir else ("", "")
    code = await context.flows.code(checked.flow, args.base_dir)
    both = context.flows.compared_code(run, checked.flow, args.base_dir, code)
    change = compare(run.plan.flow, checked.flow, folders, code=both)
    return {"flow": run.name, "state": str(run.state), **described(change)}


async def _list(context: VerbContext, args: ListArgs, _emit: Emit) -> Any:
    def summary(run: FlowRun) -> dict[str, Any]:
        stored = context.flows.stored(run.name)
        earlier = {"runs": [msgspec.structs.asdict(each) for each in stored.runs]} if args.all else {}
        return {**_summary(run), "run": stored.run, **earlier}

    flows = [cbor.dumps(summary(run)) async for run in Pace().over(context.flows)]
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
        "returning": returning(run),
        "attachable": len(run.attachable),
    }


async def _describe(context: VerbContext, args: FlowArgs, _emit: Emit) -> Any:
    run = context.flows.find(args.flow)
    contract = context.flows.stored(run.name).contract
    return await describe(run, contract, context.figures, context.identity["socket"])


async def _stop(context: VerbContext, args: StopArgs, emit: Emit) -> Any:
    run = context.flows.find(args.flow)
    if run.machine.ended:
        raise error("flow-not-running", flow=run.name, state=str(run.state))
    context.flows.stop(run, StopMode(args.mode), args.timeout_ns)
    await wait(run, FlowRun.has_ended, None, f"flow {run.name} stopped", emit)
    await context.flows.written()
    answer = {"flow": run.name, "state": str(run.state)}
    return {**answer, "reason": run.reason} if run.reason else answer


async def _remove(context: VerbContext, args: FlowArgs, _emit: Emit) -> Any:
    run = context.flows.find(args.flow)
    context.flows.remove(run)
    await context.flows.written()
    return {"flow": run.name, "state": str(run.state)}


async def _attach_token(context: VerbContext, args: AttachTokenArgs, _emit: Emit) -> Any:
    run, socket = context.flows.find(args.flow), context.identity["socket"]
    nodes = [each for each in attach.described(run, socket) if args.node in ("", each["node"], each["name"])]
    if not nodes:
        raise error("attach-nothing", flow=run.name, node=args.node or None)
    token = context.flows.attach_token(run.name)
    await context.flows.written()
    return {"flow": run.name, "token": token, "socket": socket, "nodes": nodes}


VERBS: dict[str, Verb] = {
    "submit": Verb(SubmitArgs, Right.OPERATE, _submit, carries_flow=True),
    "validate": Verb(ValidateArgs, Right.OPERATE, _validate, carries_flow=True, at_once=True),
    "diff": Verb(DiffArgs, Right.OPERATE, _diff, carries_flow=True, at_once=True),
    "list": Verb(ListArgs, Right.READ, _list, at_once=True),
    "describe": Verb(FlowArgs, Right.READ, _describe, at_once=True),
    "stop": Verb(StopArgs, Right.OPERATE, _stop),
    "attach_token": Verb(AttachTokenArgs, Right.OPERATE, _attach_token),
    "remove": Verb(FlowArgs, Right.OPERATE, _remove),
}
