"""Applies a flow to the running flow of the same name: what is refused, how a roll-out begins, and how to go back.

A change is refused with a reason, and before anything is changed, if a running flow cannot become the new one, or if a
worker lacks a feature that the change needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chronetix.protocol import cbor
from chronetix.protocol.contract import Flow, Problem
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.messages import HANDOVER
from chronetix.protocol.nearest import nearest
from chronetixd.core import rollout as core
from chronetixd.core.access import Asker
from chronetixd.core.change import Change, compare, described, refusals
from chronetixd.core.flow_messages import FlowState
from chronetixd.flows.code import Code, changed_files, loaded_by
from chronetixd.flows.context import Services
from chronetixd.flows.plan import Plan, make_plan
from chronetixd.flows.registry import Flows, invalid
from chronetixd.flows.rollout import Rollout
from chronetixd.flows.run import FlowRun
from chronetixd.store.journal_file import StoredRevision

ROLLBACK_REQUESTED = "a rollback was requested"

SHOWN_FILES = 3
"""Files that an error names."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of applying a flow. ``rollout`` is None when nothing differs."""

    run: FlowRun
    change: Change
    rollout: Rollout | None
    warnings: list[Problem]


class Rollouts:
    """Begins the roll-outs of all flows."""

    def __init__(self, flows: Flows, services: Services) -> None:
        self._flows = flows
        self._services = services

    async def apply(
        self,
        raw: Mapping[str, Any],
        name: str | None,
        bindings: Mapping[str, str],
        base_dir: str,
        replace: Collection[str] = (),
        ready_ns: int | None = None,
        wanted: Code | None = None,
        anew: Collection[str] = (),
        asker: Asker | None = None,
    ) -> Applied:
        """Begin to make the flow that runs under ``name`` the flow that ``raw`` describes, with the plugins' code as it
        is now. ``wanted``: the code that the flow is to have; then only nodes whose code was another one are replaced
        for that reason, and ``code-changed`` is raised when a new worker would load other code, except for nodes in
        ``anew``. ``asker``: as for a submission. Raises ChronetixError ``flow-invalid``, ``not-allowed``,
        ``user-not-possible``, ``flow-not-found``, ``flow-not-running``, ``rollout-under-way``, ``change-refused``,
        ``code-changed``, ``node-not-found``, ``bad-argument``, ``journal-unusable`` or ``daemon-stopping``, and then
        nothing has changed."""
        checked = await self._flows.validate(raw, bindings, base_dir)
        if checked.flow is not None and asker is not None:
            await self._flows.check_users(checked.flow, asker)
        present = await self._flows.code(checked.flow, base_dir) if checked.flow is not None else {}
        if self._flows.stopping:
            raise error("daemon-stopping")
        shown = name or str(raw.get("name") or "")
        if checked.flow is None:
            raise invalid(shown or "without a name", checked.problems)
        if not shown:
            raise error("bad-argument", argument="name", verb="apply", reason="neither it nor the flow says which flow")
        run = self._flows.find(shown)
        if run.state is not FlowState.RUNNING or run.recovery is not None:
            raise error("flow-not-running", flow=run.name, state=str(run.state))
        if run.rollout is not None and not run.rollout.over:
            raise error("rollout-under-way", flow=run.name, step=str(run.rollout.machine.step))
        if self._flows.revisions(run.name).planning:
            raise error("rollout-under-way", flow=run.name, step=str(core.RolloutStep.PREPARING))
        for node in replace:
            if node not in run.plan.nodes:
                raise error("node-not-found", flow=run.name, node=node, nearest=nearest(node, run.plan.nodes))
        plan = make_plan(run.name, checked.flow, base_dir)
        code = present if wanted is None else wanted
        both = self._flows.compared_code(run, checked.flow, base_dir, code)
        change = compare(run.plan.flow, checked.flow, (run.plan.base_dir, base_dir), replace, both)
        refused = next(refusals(run.plan.flow, checked.flow), None) or next(handover_refusals(run, change), None)
        if refused is not None:
            raise error("change-refused", flow=run.name, reason=refused)
        begun_anew = (change.named("added") | change.named("changed")) - set(anew)
        if files := changed_files(checked.flow, begun_anew, code, present):
            more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
            raise error("code-changed", flow=run.name, files=", ".join(files[:SHOWN_FILES]) + more)
        if not (change or change.notes or flow_options(run.plan.flow) != flow_options(checked.flow)):
            return Applied(run, change, None, checked.warnings)
        ready = self._flows.limits.start_ns if ready_ns is None else ready_ns
        told: asyncio.Future[Rollout | ChronetixError] = self._services.loop.create_future()

        def planned(stored: StoredRevision | None, refusal: ChronetixError | None) -> None:
            told.set_result(refusal if stored is None else self._begin(run, plan, change, stored.number, ready))  # type: ignore[arg-type]

        stored = self._flows.stored(run.name)
        kept_code = code | loaded_by(checked.flow, anew, present)
        self._flows.revisions(run.name).plan(stored, raw, bindings, base_dir, kept_code, described(change), planned)
        begun = await asyncio.shield(told)
        if isinstance(begun, ChronetixError):
            raise begun
        return Applied(run, change, begun, checked.warnings)

    def _begin(self, run: FlowRun, plan: Plan, change: Change, number: int, ready: int) -> Rollout | ChronetixError:
        """Begin the roll-out that the journal has recorded, unless the flow has ended meanwhile."""
        revisions = self._flows.revisions(run.name)
        if run.state is not FlowState.RUNNING or run.recovery is not None:
            refusal = error("flow-not-running", flow=run.name, state=str(run.state))
            revisions.ended(number, "rolled-back", str(refusal))
            return refusal

        def commit() -> None:
            self._flows.revised(revisions.committed(number, was))

        def revoke() -> None:
            self._flows.revised(revisions.revoked(number, was))

        def end(step: core.RolloutStep, why: str) -> None:
            revisions.ended(number, OUTCOMES[step], why)

        was = self._flows.stored(run.name)
        rollout = Rollout(run, self._services, plan, change, number, ready, commit, revoke, end)
        run.roll_out(rollout)
        return rollout

    async def undo(
        self,
        name: str,
        to: int | None,
        ready_ns: int | None,
        present_code: bool = False,
        asker: Asker | None = None,
    ) -> Applied:
        """Roll back a roll-out that has not been committed. Otherwise begin to go back to the revision ``to``, by
        default the one before the present one. The files of the plugins have to be as they were then, except with
        ``present_code``. Raises ChronetixError ``revision-not-found``, and all errors of :meth:`apply`."""
        run = self._flows.find(name)
        rollout = run.rollout
        if to is None and rollout is not None and not rollout.over and rollout.roll_back(ROLLBACK_REQUESTED):
            return Applied(run, rollout.change, rollout, [])
        back = self._flows.revisions(run.name).before(to)
        if back is None:
            raise error("revision-not-found", flow=run.name, number=to or "before the present one")
        raw = cbor.loads(back.contract)
        wanted = None if present_code else back.code
        return await self.apply(
            raw, run.name, back.bindings, back.base_dir, ready_ns=ready_ns, wanted=wanted, asker=asker
        )

    async def renew(self, name: str, nodes: Collection[str], ready_ns: int | None) -> Applied:
        """Begin to replace the workers of ``nodes`` by new ones of the same flow, which load the code as it is now.
        Raises the errors of :meth:`apply`."""
        stored = self._flows.stored(self._flows.find(name).name)
        return await self.apply(
            cbor.loads(stored.contract),
            name,
            stored.bindings,
            stored.base_dir,
            nodes,
            ready_ns,
            stored.code,
            nodes,
        )


OUTCOMES: dict[core.RolloutStep, Any] = {
    core.RolloutStep.DONE: "done",
    core.RolloutStep.ROLLED_BACK: "rolled-back",
    core.RolloutStep.ENDED: "ended",
}


def flow_options(flow: Flow) -> dict[str, Any]:
    """Return the properties of a flow that belong to no node and no route."""
    return {name: value for name, value in flow.raw.items() if name not in ("manifests", "routes", "name")}


def handover_refusals(run: FlowRun, change: Change) -> Iterator[str]:
    """Yield a sentence for each worker that would have to hand over and lacks the feature."""
    for node in sorted(change.ends | change.named("changed")):
        worker = run.workers.get(node)
        if worker is not None and worker.alive and HANDOVER not in worker.features:
            yield f"the worker of node {node!r} cannot be replaced while it runs: it lacks the feature 'handover'"
