"""Diagrams (Mermaid) of the states of flows and workers, drawn from the tables that the state machines run on."""

from __future__ import annotations

from collections.abc import Iterable

from chronetixd.core import worker
from chronetixd.core.flow import table
from chronetixd.core.flow_messages import FlowState

SHARED = 5
"""An event that leads to the same state from at least this many states is described by a sentence below the diagram
instead of by arrows.
"""


def flow_diagram() -> str:
    """Return the diagram of all states of a flow and the transitions between them."""
    arrows = [(str(state), str(target), "") for state, targets in table.NEXT.items() for target in targets]
    ends = [state for state, targets in table.NEXT.items() if not targets]
    return _diagram(FlowState.SUBMITTED, arrows, ends)


def worker_diagram() -> str:
    """Return the diagram of all states of a worker, with the events that lead from one to the next."""
    cells = [
        (state, worker.EVENTS[column].__name__, target)
        for state, row in worker.TABLE.items()
        for column, cell in enumerate(row)
        for target in (cell if isinstance(cell, tuple) else (cell,))
        if target is not None and target is not state
    ]
    ways: dict[tuple[str, str], list[str]] = {}
    for state, event, to in cells:
        ways.setdefault((event, str(to)), []).append(str(state))
    labels: dict[tuple[str, str], list[str]] = {}
    for (event, target), states in ways.items():
        for source in states if len(states) < SHARED else ():
            labels.setdefault((source, target), []).append(event)
    arrows = [(source, target, ", ".join(events)) for (source, target), events in labels.items()]
    shared = [
        f"`{event}` leads to `{target}` from {_named(states)}."
        for (event, target), states in ways.items()
        if len(states) >= SHARED
    ]
    return "\n\n".join([_diagram(worker.WorkerState.SPAWNING, arrows, ()), *shared])


def _named(states: list[str]) -> str:
    """Return the names of states that share a transition, as part of a sentence."""
    if len(states) + 1 == len(worker.WorkerState):
        return "every other state"
    return ", ".join(f"`{state}`" for state in states)


def _diagram(first: str, arrows: Iterable[tuple[str, str, str]], ends: Iterable[str]) -> str:
    lines = [f"    [*] --> {first}"]
    lines += [f"    {state} --> {target}{f': {label}' if label else ''}" for state, target, label in arrows]
    lines += [f"    {state} --> [*]" for state in ends]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])
