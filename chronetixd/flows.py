"""All flows of the daemon by name: those that live, and the last ones that ended, until their name is used again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chronetixd.artifacts import artifact_problems
from chronetixd.core.flow_words import Limits, StopMode
from chronetixd.flowrun import FlowRun, Services
from chronetixd.plan import make_plan, unsupported
from protocol.contract import Problem, Validation, parse_flow
from protocol.contract.reading import unfit_name
from protocol.errors import error
from protocol.nearest import nearest

MAX_ENDED = 100
"""Flows that have ended and are still listed."""


class Flows:
    """Submits flows and finds them again."""

    def __init__(self, services: Services, limits: Limits) -> None:
        self._services = services
        self._limits = limits
        self._runs: dict[str, FlowRun] = {}
        self._serial = 0
        self.stopping = False

    def __iter__(self) -> Iterator[FlowRun]:
        return iter(tuple(self._runs.values()))

    def find(self, name: str) -> FlowRun:
        """The flow ``name``. Raises ChronetixError ``flow-not-found``."""
        run = self._runs.get(name)
        if run is None:
            raise error("flow-not-found", flow=name, nearest=nearest(name, self._runs))
        return run

    @property
    def living(self) -> list[FlowRun]:
        """Flows that have not ended."""
        return [run for run in self._runs.values() if not run.machine.ended]

    def worker_pids(self) -> set[int]:
        """Processes that belong to a flow."""
        return {pid for run in self._runs.values() for pid in run.pids}

    def submit(
        self, raw: Mapping[str, Any], name: str | None, bindings: Mapping[str, str], base_dir: str
    ) -> tuple[FlowRun, list[Problem]]:
        """Start a flow; with its warnings. All or nothing: raises ChronetixError ``flow-invalid``, ``flow-exists`` or
        ``daemon-stopping``, and then nothing was started and nothing is listed."""
        if self.stopping:
            raise error("daemon-stopping")
        if name and unfit_name(name):
            raise error("bad-argument", argument="name", verb="submit", reason=unfit_name(name))
        checked = validate(raw, bindings, base_dir)
        if checked.flow is None or checked.problems:
            shown = name or raw.get("name") or "without a name"
            raise invalid(str(shown), checked.problems)
        chosen = name or checked.flow.name or self._free_name()
        earlier = self._runs.get(chosen)
        if earlier is not None and not earlier.machine.ended:
            raise error("flow-exists", flow=chosen, state=str(earlier.state))
        run = FlowRun(make_plan(chosen, checked.flow, base_dir), self._services, self._limits)
        self._runs.pop(chosen, None)
        self._runs[chosen] = run
        self._forget_old()
        run.launch()
        return run, checked.warnings

    def stop_all(self, mode: StopMode) -> None:
        """Ask every flow to end and take no new ones."""
        self.stopping = True
        for run in self.living:
            run.stop(mode)

    def _free_name(self) -> str:
        while True:
            self._serial += 1
            if f"flow-{self._serial}" not in self._runs:
                return f"flow-{self._serial}"

    def _forget_old(self) -> None:
        ended = [name for name, run in self._runs.items() if run.machine.ended]
        for name in ended[: max(0, len(ended) - MAX_ENDED)]:
            del self._runs[name]


def validate(raw: Mapping[str, Any], bindings: Mapping[str, str], base_dir: str) -> Validation:
    """The contract's checks, what this version cannot do, and whether the artifacts are there."""
    checked = parse_flow(raw, bindings=bindings)
    if checked.flow is None:
        return checked
    problems, warnings = unsupported(checked.flow)
    problems = [*checked.problems, *problems, *artifact_problems(checked.flow, base_dir)]
    return Validation(checked.flow if not problems else None, problems, [*checked.warnings, *warnings])


def invalid(name: str, problems: list[Problem]) -> Exception:
    """The refusal of a flow, with every problem in its details."""
    first = str(problems[0]) if problems else "unknown"
    return error("flow-invalid", flow=name, count=len(problems), first=first, problems=problem_maps(problems))


def problem_maps(problems: list[Problem]) -> list[dict[str, str]]:
    """Problems as they travel."""
    return [{"path": each.path, "message": each.message, "suggestion": each.suggestion} for each in problems]
