"""What the daemon emits, what the catalogue says and what docs/events.md shows are the same. With CHRONETIX_DRAW=1 the
table there is drawn anew instead."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from chronetix.protocol.events import CATALOGUE, Kind
from chronetixd.core.death import ExitRecord
from chronetixd.core.flow.table import NEXT
from chronetixd.core.flow_messages import FlowState
from chronetixd.core.rollout import OVER
from chronetixd.records.events import Events
from chronetixd.upgrade.snapshot import Upgraded

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "events.md"
NAMES = {"flow", "node", "message"}
"""What every event may have."""

TOLD_AS_THEY_ARE = {
    "told": set(Upgraded.__struct_fields__),
    "death.essence()": set(ExitRecord(flow="f", node="n", incarnation=0, unix_ns=0, pid=1).essence()),
}
"""Data that is not named where it is emitted."""


def rollouts() -> set[str]:
    """How far a roll-out is, as ``FlowEvents.rollout`` is told."""
    text = (ROOT / "chronetixd" / "flows" / "rollout.py").read_text()
    return {*re.findall(r'flow_events\.rollout\("([a-z-]+)"', text), *map(str, OVER)}


def kinds(call: ast.expr, function: ast.AST) -> Iterator[str]:
    """What may stand for the kind of an event."""
    match call:
        case ast.Constant(value=str(kind)):
            yield kind
        case ast.IfExp():
            yield from kinds(call.body, function)
            yield from kinds(call.orelse, function)
        case ast.Name(id=name):
            for each in ast.walk(function):
                if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == name:
                    yield from kinds(each.value, function)
        case ast.JoinedStr(values=[ast.Constant(value="flow-"), _]):
            yield from (f"flow-{state}" for state in FlowState if state is not FlowState.SUBMITTED)
        case ast.JoinedStr(values=[ast.Constant(value="rollout-"), _]):
            yield from (f"rollout-{what}" for what in rollouts())
        case _:
            raise AssertionError(f"which kinds of event are {ast.unparse(call)!r}?")


@cache
def emitted() -> dict[str, set[str]]:
    """Every kind that the daemon's code emits, with the names of its data."""
    found: dict[str, set[str]] = {}
    texts = [path.read_text() for path in sorted((ROOT / "chronetixd").rglob("*.py"))]
    for text in texts:
        for function in ast.walk(ast.parse(text)) if "emit" in text else ():
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for call in ast.walk(function):
                if not (isinstance(call, ast.Call) and ast.unparse(call.func).endswith("events.emit")):
                    continue
                data: set[str] = set()
                for word in call.keywords:
                    data |= {word.arg} if word.arg else TOLD_AS_THEY_ARE[ast.unparse(word.value)]
                for kind in kinds(call.args[0], function):
                    found.setdefault(kind, set()).update(data)
    return found


def test_every_state_that_a_flow_can_enter_is_an_event() -> None:
    assert {state for states in NEXT.values() for state in states} == set(FlowState) - {FlowState.SUBMITTED}


def test_what_is_emitted_is_in_the_catalogue_and_nothing_else() -> None:
    assert set(emitted()) == set(CATALOGUE)


@pytest.mark.parametrize("kind", CATALOGUE.values(), ids=lambda kind: kind.kind)
def test_the_data_of_an_event_is_what_the_catalogue_says(kind: Kind) -> None:
    data = emitted()[kind.kind]
    assert data - NAMES == set(kind.data)
    assert {"flow": {"flow"}, "node": {"flow", "node"}, "daemon": set()}[kind.about] == data & {"flow", "node"}


@pytest.mark.parametrize("kind", CATALOGUE.values(), ids=lambda kind: kind.kind)
def test_an_entry_says_what_has_happened(kind: Kind) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.kind)
    assert len(kind.meaning) > 10
    assert not kind.meaning.endswith(".")
    assert all(kind.data.values())


def test_a_kind_that_the_catalogue_does_not_have_cannot_be_emitted() -> None:
    events = Events()
    with pytest.raises(LookupError, match="no-such-event"):
        events.emit("no-such-event")
    assert events.feed.appended == 0


def table() -> str:
    """The catalogue as the documentation shows it."""
    rows = ["| kind | about | what has happened | data |", "| --- | --- | --- | --- |"]
    for each in CATALOGUE.values():
        data = "; ".join(f"`{name}`: {meaning}" for name, meaning in each.data.items())
        rows.append(f"| `{each.kind}` | {each.about} | {each.meaning} | {data} |")
    return "\n".join(rows)


def test_the_documentation_shows_the_catalogue() -> None:
    text = DOCUMENT.read_text("utf-8")
    drawn = re.sub(
        r"(<!-- events -->\n).*?(<!-- end -->)", lambda at: f"{at[1]}{table()}\n{at[2]}", text, flags=re.DOTALL
    )
    if os.environ.get("CHRONETIX_DRAW"):
        DOCUMENT.write_text(drawn, "utf-8")
    else:
        assert text == drawn, "the catalogue has changed: make reference"
