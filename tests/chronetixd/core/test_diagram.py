"""docs/states.md shows what the machines' tables say. With CHRONETIX_DRAW=1 it is drawn anew instead."""

from __future__ import annotations

import os
import re
from pathlib import Path

from chronetixd.core import worker
from chronetixd.core.diagram import flow_diagram, worker_diagram
from chronetixd.core.flow_messages import FlowState

LIVES = Path(__file__).parents[3] / "docs" / "states.md"


def drawn(text: str) -> str:
    for name, diagram in (("flow", flow_diagram()), ("worker", worker_diagram())):
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{diagram}\n\g<2>", text, flags=re.DOTALL)
    return text


def test_the_documentation_shows_the_tables_as_they_are() -> None:
    text = LIVES.read_text("utf-8")
    if os.environ.get("CHRONETIX_DRAW"):
        LIVES.write_text(drawn(text), "utf-8")
    else:
        assert text == drawn(text), "the tables have changed: make reference"


def test_every_state_is_drawn() -> None:
    assert all(f" {state}" in flow_diagram() for state in FlowState)
    assert all(f" {state}" in worker_diagram() or f"`{state}`" in worker_diagram() for state in worker.WorkerState)


def test_an_arrow_is_drawn_for_every_way_that_few_states_share() -> None:
    assert "draining --> finished: HasFinished" in worker_diagram()
    assert "`SignalSent` leads to `terminating` from" in worker_diagram()
