"""Nodes in Go beside nodes in Python: every frame, every byte, in order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sdk.go.conftest import edge, result_of

SIZES = [0, 1, 7, 64, 255, 4095, 4096, 70_000, 1 << 20]


@pytest.mark.parametrize("sink", ["go", "py"])
@pytest.mark.parametrize("between", ["go", "py"])
@pytest.mark.parametrize("source", ["go", "py"])
def test_every_byte_arrives_whatever_the_nodes_are_written_in(
    request: Any, submit: Any, client: Any, source: str, between: str, sink: str
) -> None:
    make = request.getfixturevalue
    nodes = [
        make(source)("source", "source", params={"count": 600, "sizes": SIZES}),
        make(between)("between", "map"),
        make(sink)("sink", "sink"),
    ]
    answer = submit(nodes, [edge("source", "between"), edge("between", "sink")], name="mix")
    assert answer["state"] == "stopped", client.call("describe", flow="mix")["reason"]
    assert result_of(client, "mix", "sink") == {"seen": 600, "faults": [], "again": 0}


@pytest.mark.parametrize(("source", "sink"), [("go", "go"), ("go", "py"), ("py", "go")])
def test_frames_of_64_megabytes_make_the_arena_grow(
    request: Any, submit: Any, client: Any, source: str, sink: str
) -> None:
    make = request.getfixturevalue
    nodes = [
        make(source)("source", "source", params={"count": 9, "sizes": [64 << 20, 100, 0]}),
        make(sink)("sink", "sink"),
    ]
    answer = submit(nodes, [edge("source", "sink", buffer=2, watermark=1)], name="big")
    assert answer["state"] == "stopped", client.call("describe", flow="big")["reason"]
    assert result_of(client, "big", "sink") == {"seen": 9, "faults": [], "again": 0}
