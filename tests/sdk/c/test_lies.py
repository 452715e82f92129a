"""A peer that lies about its memory is accused by the worker in C that finds it, which is not restarted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chronetixctl.client import Client
from tests.e2e.conftest import PLUGINS
from tests.e2e.test_lies import LIES, TRANSIENT
from tests.sdk.c.build import needs_libcbor
from tests.sdk.nodes import Nodes

pytestmark = needs_libcbor

FOUND = [
    ("source", "describes what is nowhere"),
    ("source", "has flags of its own"),
    ("source", "stamps a foreign slot"),
    ("source", "closes where it is not"),
    ("sink", "returns what was not sent"),
]


@pytest.mark.parametrize(("role", "lie"), FOUND)
def test_a_liar_is_named_by_a_worker_in_c(role: str, lie: str, nodes: Nodes, client: Client) -> None:
    artifact = {"kind": "Process", "uri": f"file://{sys.executable}"}
    params = {"args": [str(PLUGINS / "lying_worker.py"), role, lie]}
    liar = {"plugin_id": "liar", "node_id": "liar", "version": "1", "artifact": artifact, "params": params}
    honest = nodes.own("honest", "counts" if role == "source" else "items", restart=TRANSIENT)
    flow = nodes.line(*((liar, honest) if role == "source" else (honest, liar)))
    answer = client.call("submit", flow=flow, base_dir=str(Path("/")), wait="stopped")
    assert answer["state"] == "failed"
    assert "'liar'" in answer["reason"].split(" ", 2)[1]
    assert LIES[role, lie] in answer["reason"]
    kinds = [event["kind"] for event in client.stream("events", flow=answer["flow"])]
    assert "node-restarting" not in kinds
