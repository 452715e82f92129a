"""A worker that lies about its memory is named, and its honest peer is neither blamed nor restarted."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.e2e.conftest import PLUGINS

TRANSIENT = {"policy": "transient", "max": 100, "backoff_ms": 1}

LIES = {
    # by what it is and how it lies: the node that is charged, and words of the reason
    ("source", "wrong epoch"): "its epoch is 7, but the port says 0",
    ("source", "wrong credits"): "its credits is 32, but the port says 64",
    ("source", "wrong base"): "it begins at 9, the one before ends at 0",
    ("source", "wrong policy"): "its policy is latest, but the port says block",
    ("source", "describes what is nowhere"): "1048576 bytes at 0 are not in segment 0 of 65536",
    ("source", "has flags of its own"): "flags 0x100 are not known",
    ("source", "stamps a foreign slot"): "its stamp of slot 0 is 6",
    ("source", "closes where it is not"): "it has closed the stream at position 76",
    ("source", "finishes with an open output"): "is not closed",
    ("source", "accuses the innocent"): "the memory of the route does not show it",
    ("source", "accuses of a route that is not there"): "is not linked to node 'liar'",
    ("sink", "wrong epoch"): "its epoch is 7, but the port says 0",
    ("sink", "wrong credits"): "its credits is 32, but the port says 64",
    ("sink", "wrong base"): "its base_seq is 9, but the port says 0",
    ("sink", "returns what was not sent"): "it has returned 1000 frames",
    ("sink", "finishes with an open input"): "has not ended, and it has not detached",
    ("sink", "finishes with frames out"): "were not returned",
    ("sink", "accuses the innocent"): "the memory of the route does not show it",
    ("sink", "accuses of a route that is not there"): "is not linked to node 'liar'",
}


@pytest.mark.parametrize(("role", "lie"), LIES)
def test_a_liar_is_named_and_its_peer_is_not_restarted(role: str, lie: str, submit: Any, client: Any) -> None:
    artifact = {"kind": "Process", "uri": f"file://{sys.executable}"}
    params = {"args": [str(PLUGINS / "lying_worker.py"), role, lie]}
    liar = {"plugin_id": "liar", "node_id": "liar", "version": "1", "artifact": artifact, "params": params}
    plugin = "hostile:nothing" if role == "source" else "lied_to:few" if lie.endswith("out") else "lied_to:endless"
    honest = submit.node("honest", plugin, restart=TRANSIENT)
    ends = ("liar", "honest") if role == "source" else ("honest", "liar")
    answer = submit([liar, honest], [submit.edge(*ends)])
    assert answer["state"] == "failed"
    assert "'liar'" in answer["reason"].split(" ", 2)[1]
    assert LIES[role, lie] in answer["reason"]
    kinds = [event["kind"] for event in client.stream("events", flow=answer["flow"])]
    assert "node-restarting" not in kinds
