"""All flows of the daemon by name: those that run, and the last ones that ended, until their name is used again.

A flow is in the journal before it is launched. A flow that ended because the daemon stopped is still wanted and runs
again under the next daemon. A flow that was stopped, or has ended by itself, is only listed. This file is longer than
400 lines because each way by which a flow comes into the list or leaves it also changes the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from chronetix.protocol import cbor
from chronetix.protocol.contract import Flow, Problem, Validation, parse_flow
from chronetix.protocol.contract.reading import unfit_flow_name
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.messages import Hello
from chronetix.protocol.nearest import nearest
from chronetixd.core.access import Asker, Peer
from chronetixd.core.change import Digests
from chronetixd.core.flow_messages import ENDED, FlowState, Limits, StopMode
from chronetixd.core.packed import Key
from chronetixd.flows import attach
from chronetixd.flows.artifacts import check_users
from chronetixd.flows.attach import AttachTokens
from chronetixd.flows.code import Code, by_node, code_of
from chronetixd.flows.context import Services
from chronetixd.flows.pack import PackedRun, packed_run, unpack_run
from chronetixd.flows.plan import make_plan
from chronetixd.flows.recovery import ReattachRequest
from chronetixd.flows.revisions import Revisions
from chronetixd.flows.run import FlowRun
from chronetixd.flows.validation import problem_maps, validate, validate_again
from chronetixd.flows.worker_records import end_leftovers, is_alive
from chronetixd.packing import Bag, Packed, Unbag
from chronetixd.store.descriptor_names import Stored
from chronetixd.store.journal import Journal
from chronetixd.store.journal_file import Recovered, StoredFlow, StoredRevision, StoredRun, StoredWorker, Wanted
from chronetixd.workers.process import WorkerProcess

LIVING = ("running", "draining")
"""States in which workers may have done what cannot be done again."""

MAX_ENDED = 100
"""Flows that have ended and are still listed."""

MAX_RUNS = 10
"""Earlier runs that are listed for a flow."""

MAX_REASON = 200
"""Characters of the reason of an earlier run that are kept."""


class PackedListed(Packed, frozen=True):
    """A flow: its record in the journal, and its present state."""

    stored: StoredFlow
    run: PackedRun
    revisions: list[StoredRevision] = []


class PackedFlows(Packed, frozen=True):
    """All listed flows, in their order."""

    flows: list[PackedListed]
    serial: int


class Flows:
    """Submits flows and finds them again."""

    def __init__(self, services: Services, limits: Limits, journal: Journal) -> None:
        self._services = services
        self.limits = limits
        """The limits of flows that are submitted from now on."""
        self._journal = journal
        self._runs: dict[str, FlowRun] = {}
        self._stored: dict[str, StoredFlow] = {}
        self._revisions: dict[str, Revisions] = {}
        self._serial = 0
        self._attach_tokens = AttachTokens()
        self._pending: set[str] = set()
        """Names of flows that are launched as soon as the journal has recorded them."""
        self.stopping = False

    def __iter__(self) -> Iterator[FlowRun]:
        return iter(tuple(self._runs.values()))

    def find(self, name: str) -> FlowRun:
        """Return the flow ``name``. Raises ChronetixError ``flow-not-found``."""
        run = self._runs.get(name)
        if run is None:
            raise error("flow-not-found", flow=name, nearest=nearest(name, self._runs))
        return run

    def revisions(self, name: str) -> Revisions:
        """Return the revisions of the flow ``name``."""
        return self._revisions[name]

    def stored(self, name: str) -> StoredFlow:
        """Return the journal's record of the flow ``name``."""
        return self._stored[name]

    def revised(self, stored: StoredFlow) -> None:
        """Replace the record of a flow by ``stored``, which the journal has already."""
        self._stored[stored.name] = stored

    @property
    def living(self) -> list[FlowRun]:
        """Flows that have not ended."""
        return [run for run in self._runs.values() if not run.machine.ended]

    @property
    def pending(self) -> list[str]:
        """Names of flows that wait for the journal."""
        return sorted(self._pending)

    def worker_pids(self) -> set[int]:
        """Return the process ids of all workers of flows."""
        return {pid for run in self._runs.values() for pid in run.pids}

    async def submit(
        self,
        raw: Mapping[str, Any],
        name: str | None,
        bindings: Mapping[str, str],
        base_dir: str,
        asker: Asker | None = None,
    ) -> tuple[FlowRun, list[Problem]]:
        """Start a flow once the journal has recorded it; returns it with its warnings. ``asker``: who has to be allowed
        to have its nodes run as the users that it names; None for a flow that was accepted before. Raises
        ChronetixError ``flow-invalid``, ``not-allowed``, ``user-not-possible``, ``flow-exists``, ``journal-unusable``
        or ``daemon-stopping``, and then nothing was started or listed. A caller that is cancelled while the disk is
        written has submitted the flow."""
        check_name("submit", name)
        checked = await self.validate(raw, bindings, base_dir)
        if self.stopping:
            raise error("daemon-stopping")
        if checked.flow is None or checked.problems:
            shown = name or raw.get("name") or "without a name"
            raise invalid(str(shown), checked.problems)
        if asker is not None:
            await self.check_users(checked.flow, asker)
        chosen = name or checked.flow.name or self._free_name()
        earlier = self._runs.get(chosen)
        if earlier is not None and not earlier.machine.ended:
            raise error("flow-exists", flow=chosen, state=str(earlier.state))
        if chosen in self._pending:
            raise error("flow-exists", flow=chosen, state=str(FlowState.SUBMITTED))
        self._pending.add(chosen)
        flow, services, limits = checked.flow, self._services, self.limits
        try:
            run, contract, code = await services.checks.ask(
                lambda: (
                    FlowRun(make_plan(chosen, flow, base_dir), services, limits),
                    cbor.dumps(raw),
                    code_of(flow, base_dir),
                )
            )
        except BaseException:
            self._pending.discard(chosen)
            raise
        stored = StoredFlow(
            name=chosen,
            submitted_unix_ns=run.submitted_unix_ns,
            contract=contract,
            bindings=dict(bindings),
            base_dir=base_dir,
            code=code,
            **self._earlier_runs(chosen),
        )
        told: asyncio.Future[ChronetixError | None] = self._services.loop.create_future()
        self._journal.submitted(stored, partial(self._submitted, run, stored, told))
        refusal = await asyncio.shield(told)
        if refusal is not None:
            raise refusal
        return run, checked.warnings

    def _submitted(
        self,
        run: FlowRun,
        stored: StoredFlow,
        told: asyncio.Future[ChronetixError | None],
        refusal: ChronetixError | None,
    ) -> None:
        """Launch ``run``, which the journal has recorded, or pass on a ``refusal``, also that of a daemon that stops
        meanwhile."""
        self._pending.discard(run.name)
        if refusal is None and self.stopping:
            refusal = error("daemon-stopping")
            earlier = self._stored.get(run.name)
            self._journal.forgotten(run.name) if earlier is None else self._journal.flow(earlier)
        elif refusal is None:
            self._list(run, stored)
            run.launch()
        told.set_result(refusal)

    async def validate(self, raw: Mapping[str, Any], bindings: Mapping[str, str], base_dir: str) -> Validation:
        """Check a contract in a thread of its own, as flows may be large and files anywhere. See :func:`validate`."""
        return await self._services.checks.ask(lambda: validate(raw, bindings, base_dir))

    async def check_users(self, flow: Flow, asker: Asker) -> None:
        """Check in a thread of its own whether ``asker`` may have ``flow``. See :func:`check_users`."""
        if any(manifest.user for manifest in flow.manifests):
            await self._services.checks.ask(lambda: check_users(flow, asker))

    async def code(self, flow: Flow, base_dir: str) -> Code:
        """Return the digests of the code of ``flow`` as it is now, found in a thread of its own."""
        return await self._services.checks.ask(lambda: code_of(flow, base_dir))

    def compared_code(self, run: FlowRun, flow: Flow, base_dir: str, code: Code) -> tuple[Digests, Digests]:
        """Return the code of ``run`` and of ``flow``, for the comparison of both. Paths in different folders are not
        compared: every worker is told its folder, and is replaced when that differs."""
        if base_dir != run.plan.base_dir:
            return {}, {}
        return by_node(run.plan.flow, self._stored[run.name].code), by_node(flow, code)

    async def written(self) -> None:
        """Wait until the journal has everything that has happened to flows by now, or until it cannot be waited for."""
        told: asyncio.Future[None] = self._services.loop.create_future()
        self._journal.when_written(lambda: None if told.done() else told.set_result(None))
        await told

    def stop(self, run: FlowRun, mode: StopMode, drain_ns: int | None = None) -> None:
        """End ``run`` for good. A drain begins when the journal has recorded that."""
        self._store(run.name, wanted="stopped")
        self._when_known(mode, lambda: None if run.machine.ended else run.stop(mode, drain_ns))

    def restore(self, left: Recovered, kept: Stored) -> list[FlowRun]:
        """List the flows of the last daemon. Returns those that go on with workers and memory that outlived it, or
        begin anew. ``kept`` are the descriptors that the service manager has stored; each flow takes its own."""
        again = []
        lives: dict[str, list[StoredWorker]] = {}
        for life in left.workers:
            lives.setdefault(life.flow, []).append(life)
        was: dict[str, list[StoredRevision]] = {}
        for revision in left.revisions:
            was.setdefault(revision.flow, []).append(revision)
        for stored in left.flows:
            raw = cbor.loads(stored.contract)
            flow = parse_flow(raw, bindings=stored.bindings).flow
            if flow is None:
                self._services.events.emit(
                    "flow-unreadable", flow=stored.name, message="this release cannot read its contract"
                )
                continue
            run = FlowRun(make_plan(stored.name, flow, stored.base_dir), self._services, self.limits)
            run.submitted_unix_ns = stored.submitted_unix_ns
            revisions = Revisions(self._journal, was.get(stored.name, ()))
            self._list(run, stored, revisions)
            mine = lives.get(stored.name, [])
            whole = not revisions.interrupted()
            survives = flow.on_daemon_loss == "survive" and stored.state in LIVING and whole
            if survives and (any(map(is_alive, mine)) or kept.has(stored.name)):
                again.append(run)
                found = kept.take(run.name, run.plan.nodes, (route.id for route in run.plan.data_routes))
                run.resume(mine, found, whole=not kept.has(run.name))
                if stored.wanted == "stopped" or stored.again:
                    run.stop(StopMode.DRAIN)
                continue
            end_leftovers(mine)
            self._stored[run.name] = msgspec.structs.replace(stored, again=False)
            if stored.wanted == "stopped":
                self._list_ended(run, stored)
            elif problems := validate_again(raw, stored.bindings, stored.base_dir).problems:
                run.refuse(f"it cannot run again: {problems[0]}")
            else:
                again.append(run)
                self._stored[run.name] = msgspec.structs.replace(
                    self._stored[run.name], code=code_of(flow, stored.base_dir)
                )
                run.launch()
        return again

    @property
    def upgrade_blockers(self) -> list[str]:
        """The reasons why flows cannot be handed over to the next image now, as sentences."""
        return [f"flow {run.name} {what}" for run in self if (what := run.upgrade_blocker)]

    def packed(self, bag: Bag) -> PackedFlows:
        """Return the whole state; descriptors go into ``bag``. There must be no ``upgrade_blockers``."""
        flows = [
            PackedListed(
                stored=self._stored[run.name], run=packed_run(run, bag), revisions=list(self._revisions[run.name])
            )
            for run in self
        ]
        return PackedFlows(flows=flows, serial=self._serial)

    def unpack(self, packed: PackedFlows, bag: Unbag) -> None:
        """Restore the flows that ``packed`` lists. Raises ValueError when this release cannot read a flow, OSError."""
        self._serial = packed.serial
        for listed in packed.flows:
            stored = listed.stored
            flow = parse_flow(cbor.loads(stored.contract), bindings=stored.bindings).flow
            if flow is None:
                raise ValueError(f"this release cannot read the contract of flow {stored.name!r}")
            run = FlowRun(make_plan(stored.name, flow, stored.base_dir), self._services, listed.run.machine.limits)
            try:
                unpack_run(run, listed.run, bag)
            except ValueError as reason:
                raise ValueError(f"flow {stored.name!r}: {reason}") from reason
            self._list(run, stored, Revisions(self._journal, listed.revisions))

    def resume_after_upgrade(self, packed: PackedFlows) -> None:
        """Resume all flows, after all of them were unpacked."""
        for listed in packed.flows:
            run = self._runs.get(listed.stored.name)
            if run is not None:
                run.resume_after_upgrade([node for node, worker in listed.run.workers.items() if worker.asked])

    def worker(self, key: Key) -> WorkerProcess:
        """Return the worker that ``key`` names. Raises ValueError when there is none."""
        flow, node = key
        run = self._runs.get(flow)
        worker = None if run is None else run.workers.get(node)
        if worker is None:
            raise ValueError(f"flow {flow!r} has no worker {node!r}")
        return worker

    def _list_ended(self, run: FlowRun, stored: StoredFlow) -> None:
        """List a flow that is not wanted any more. If it was about to end when the daemon died, it ended with the
        daemon."""
        state = FlowState(stored.state)
        if state in ENDED:
            run.list_ended(state, stored.reason, stored.changed_unix_ns)
        else:
            run.list_ended(FlowState.STOPPED, "the daemon died while it was about to end", stored.changed_unix_ns)
            self._changed(run)

    def reattach(self, request: ReattachRequest) -> None:
        """Take back a worker that has outlived an earlier daemon. Raises ChronetixError when no flow awaits it, OSError
        when no descriptors are left; the socket stays the caller's then."""
        run = self._runs.get(request.message.flow)
        if run is None or run.recovery is None:
            reason = "no such flow waits for its workers"
            raise error("reattach-refused", flow=request.message.flow, node=request.message.node, reason=reason)
        run.recovery.reattached(request)

    def attach_token(self, name: str) -> str:
        """Return the attach token of the flow ``name``, which is made when it is first asked for."""
        stored = self._stored[name]
        if not stored.attach_token:
            stored = self._stored[name] = msgspec.structs.replace(stored, attach_token=AttachTokens.make())
            self._attach_tokens.add(name, stored.attach_token)
            self._journal.flow(stored)
        return stored.attach_token

    def find_attachable(self, hello: Hello, peer: Peer) -> tuple[FlowRun, str]:
        """Return the flow and its node that wait for the worker which ``peer`` is to become, having sent ``hello``.
        Raises ChronetixError with the reason and the next step."""
        run = self._runs[self._attach_tokens.flow(hello.token)]
        return run, attach.find_node(run, hello, peer)

    def _list(self, run: FlowRun, stored: StoredFlow, revisions: Revisions | None = None) -> None:
        self._runs.pop(run.name, None)
        self._runs[run.name] = run
        self._stored[run.name] = stored
        self._attach_tokens.add(run.name, stored.attach_token)
        self._revisions[run.name] = revisions or Revisions(self._journal)
        run.watch(lambda: self._changed(run))
        self._forget_old()

    def _changed(self, run: FlowRun) -> None:
        """Record the flow's state in the journal. A flow that ends because the daemon stops stays wanted."""
        if self._runs.get(run.name) is not run:
            return
        if run.machine.ended and not self.stopping:
            if self._stored[run.name].again and self._stored[run.name].wanted == "running":
                self._services.loop.call_soon(self._run_again, run)
                return
            self._store(run.name, wanted="stopped")
        stored = self._stored[run.name]
        if stored.state != run.state:
            now = {"state": str(run.state), "reason": run.reason, "changed_unix_ns": run.changed_unix_ns}
            self._stored[run.name] = changed = msgspec.structs.replace(stored, **now)
            survives = run.plan.flow.on_daemon_loss == "survive"
            (self._journal.flow if survives else self._journal.soon)(changed)

    def _store(self, name: str, wanted: Wanted) -> None:
        stored = self._stored[name]
        if stored.wanted != wanted:
            self._stored[name] = changed = msgspec.structs.replace(stored, wanted=wanted)
            self._journal.flow(changed)

    def stop_all(self, mode: StopMode) -> None:
        """End every flow until the next daemon runs, and refuse new ones. A drain begins when the journal knows that
        the flow is still wanted: if this daemon dies meanwhile, the workers look as if they had finished."""
        self.stopping = True
        wanted = [run.name for run in self.living if self._stored[run.name].wanted == "running"]
        self._stored |= {name: msgspec.structs.replace(self._stored[name], again=True) for name in wanted}
        self._journal.flow(*(self._stored[name] for name in wanted))

        def begin() -> None:
            for run in self.living:
                run.stop(mode)

        self._when_known(mode, begin)

    def _when_known(self, mode: StopMode, begin: Callable[[], None]) -> None:
        """Begin to end flows: a drain when the next daemon will know the reason, any other mode at once."""
        if mode is StopMode.DRAIN:
            self._journal.when_written(begin)
        else:
            begin()

    def _run_again(self, ended: FlowRun) -> None:
        """Launch a wanted flow again that has drained only because the last daemon died while it was stopping."""
        earlier = self._stored[ended.name]
        if self._runs.get(ended.name) is not ended or self.stopping:
            return
        run = FlowRun(ended.plan, self._services, self.limits)
        run.submitted_unix_ns = earlier.submitted_unix_ns
        stored = msgspec.structs.replace(earlier, again=False, state="submitted", reason="")
        self._journal.flow(stored)
        self._list(run, stored, self._revisions[run.name])
        run.launch()

    def _earlier_runs(self, name: str) -> dict[str, Any]:
        """Return the fields of the record of the next run of the flow ``name``: its number, and the earlier runs."""
        run, stored = self._runs.get(name), self._stored.get(name)
        if run is None or stored is None:
            return {}
        ended = StoredRun(
            number=stored.run,
            submitted_unix_ns=stored.submitted_unix_ns,
            ended_unix_ns=run.changed_unix_ns,
            state=str(run.state),
            reason=run.reason.partition("\n")[0][:MAX_REASON],
        )
        earlier = {"run": stored.run + 1, "runs": [*stored.runs, ended][-MAX_RUNS:]}
        return {**earlier, "attach_token": stored.attach_token}

    def _free_name(self) -> str:
        while True:
            self._serial += 1
            if f"flow-{self._serial}" not in self._runs.keys() | self._pending:
                return f"flow-{self._serial}"

    def _forget_old(self) -> None:
        ended = [name for name, run in self._runs.items() if run.machine.ended and name not in self._pending]
        for name in ended[: max(0, len(ended) - MAX_ENDED)]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        nodes = list(self._runs[name].plan.nodes)
        self._services.exit_records.forget(name, nodes)
        if self._services.logs.files is not None:
            self._services.logs.files.forget(name, nodes)
        self._attach_tokens.remove(self._stored[name].attach_token)
        del self._runs[name], self._stored[name], self._revisions[name]
        self._journal.forgotten(name)

    def remove(self, run: FlowRun) -> None:
        """Forget a flow that has ended, with its exits, log files, revisions and earlier runs. Raises ChronetixError
        ``flow-not-ended``."""
        if not run.machine.ended or run.name in self._pending:
            raise error("flow-not-ended", flow=run.name, state=str(run.state))
        self._forget(run.name)


def check_name(verb: str, name: str | None) -> None:
    """Raise ChronetixError ``bad-argument`` for a name that no flow can have. None leaves the name to the flow."""
    reason = "" if name is None else unfit_flow_name(name)
    if reason:
        raise error("bad-argument", argument="name", verb=verb, reason=f"it {reason}")


def invalid(name: str, problems: list[Problem]) -> Exception:
    """Return the error that refuses a flow, with every problem in its details."""
    first = str(problems[0]) if problems else "unknown"
    return error("flow-invalid", flow=name, count=len(problems), first=first, problems=problem_maps(problems))
