"""What a sender may send, and what the receiver makes of it, is the same in worker processes, in one process with the
whole flow, and in a plugin's unit test."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronetix.testing import run

PLUGINS = Path(__file__).parent / "plugins"
ROOT = Path(__file__).parents[2]
OCTETS, JSON, CBOR, NPY = (f"application/{kind}" for kind in ("octet-stream", "json", "cbor", "x-npy"))

PICTURE = "array uint16 (4, 6) " + str(np.arange(24).reshape(4, 6).tolist()) + " "
COLUMNS = "array uint16 (6, 4) " + str(np.arange(24).reshape(4, 6).T.tolist()) + " by columns"
HALF = "array uint16 (4, 3) " + str(np.arange(24).reshape(4, 6)[:, ::2].tolist()) + " "
NUMBER = "array float64 () 1.5 "

SEEN = {
    JSON: ["1.5", "245", "[0, 12]", "{'n': 0.5}", "{'a': 1}", "'2026-01-01T00:00:00Z'"],
    CBOR: [
        "1.5",
        "245",
        "array uint16 (2,) [0, 12] ",
        "{'1': 'b', 1: 'a'}",
        r"b'\x05'",
        "5",
        f"list of {(1 << 20) + 1}",
        "datetime.datetime(2026, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)",
    ],
    NPY: [PICTURE, COLUMNS, HALF, NUMBER, f"{{'camera': 3, 'picture': {PICTURE}}}", PICTURE],
    OCTETS: ["memory b'raw'", r"memory b'\x00\x00\x06\x00\x0c\x00\x12\x00'"],
}
ARRAYS = [PICTURE, COLUMNS, HALF, NUMBER, PICTURE, PICTURE]
META = r"{'at': [1.5, b'\x00'], 'camera': 3, 1: 'one'}"
STAMP = "1700000000000000001"

REFUSED = {
    JSON: {
        5: "no NaN",
        6: "no JSON text",
        7: r"at [0]: JSON has no bytes",
        8: "would be the same, '1'",
        9: "object",
        11: "a time without a time zone",
    },
    CBOR: {6: "after the end of the item", 9: "a time without a time zone", 10: "object"},
    NPY: {6: "ends at byte", 7: "pickled", 8: "send numpy.asarray"},
    OCTETS: {2: "pointers", 3: "send text.encode()", 4: "need content_type application/json"},
}
BUS = [
    "a topic is text with at least one character, not ''",
    "a topic has at most 1024 characters, not 2000",
    "a topic is text with at least one character, not 5",
    "a message of type publish cannot be sent: ",
]


def expected(content_type: str) -> list[str]:
    lines = []
    for number, value in enumerate(SEEN[content_type]):
        more = ""
        if content_type == NPY:
            more = f" | {ARRAYS[number]} | False | True | 0"
        lines += [f"{value} | {{}} | 0{more}", f"{value} | {META} | {STAMP}{more}"]
    return lines


def check(content_type: str, sender: list[str], receiver: Any, *, bus: bool = True, relayed: bool = False) -> None:
    told = [*receiver["seen"]]
    lines = expected(content_type)
    if relayed:  # what a frame brings along is its sender's, not that of who sends it on
        lines = [line.replace(f"{META} | {STAMP}", "{} | 0") for line in lines]
    assert told == lines
    assert receiver["kept"]
    refused = [line for line in sender if line[:2].strip().isdigit()]
    wanted = [(number, text) for number, text in REFUSED[content_type].items() for _ in range(2)]
    assert len(refused) == len(wanted)
    for line, (number, text) in zip(refused, wanted, strict=True):
        assert line.startswith(f"{number} a value of type "), line
        assert f"cannot be sent as {content_type} on route " in line
        assert text in line
    if bus:
        ends = [line for line in sender if line not in refused]
        assert [line[: len(end)] for line, end in zip(ends, BUS, strict=True)] == BUS


def flow_of(content_type: str, source: str, relayed: bool) -> dict[str, Any]:
    def node(name: str, entry: str) -> dict[str, Any]:
        artifact = {"kind": "Python", "uri": f"python://data.py:{entry}"}
        return {"plugin_id": name, "node_id": name, "version": "1.0.0", "artifact": artifact}

    def route(start: str, end: str) -> dict[str, Any]:
        common = {"plane": "data", "topic": f"{start}/{end}", "schema_ver": "v1", "content_type": content_type}
        return {"from": start, "to": end, **common}

    nodes, ends = [node("sender", source), node("receiver", "Receiver")], ["sender", "receiver"]
    if relayed:
        nodes.append(node("relay", "relay"))
        ends.insert(1, "relay")
    return {"manifests": nodes, "routes": [route(*pair) for pair in pairwise(ends)], "schemas": []}


CASES = [(kind, source, relayed) for kind in SEEN for source, relayed in (("Sender", False), ("AsyncSender", True))]


@pytest.mark.parametrize(("content_type", "source", "relayed"), CASES)
def test_of_worker_processes(submit: Any, client: Any, content_type: str, source: str, relayed: bool) -> None:
    flow = flow_of(content_type, source, relayed)
    client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped", name="data")
    nodes = {entry["node"]: entry["result"] for entry in client.call("describe", flow="data")["nodes"]}
    check(content_type, nodes["sender"], nodes["receiver"], bus=source == "Sender", relayed=relayed)


@pytest.mark.parametrize(("content_type", "source", "relayed"), CASES)
def test_of_one_process(tmp_path: Path, content_type: str, source: str, relayed: bool) -> None:
    (tmp_path / "flow.json").write_text(json.dumps(flow_of(content_type, source, relayed)))
    command = [sys.executable, "-m", "chronetix.nodeworker.inprocess.command", str(tmp_path / "flow.json")]
    done = subprocess.run(
        [*command, "-o", "json", "--base-dir", str(PLUGINS)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    nodes = json.loads(done.stdout)["nodes"]
    check(content_type, nodes["sender"], nodes["receiver"], bus=source == "Sender", relayed=relayed)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(PLUGINS))
    import data

    return data


@pytest.mark.parametrize("content_type", list(SEEN))
def test_of_a_unit_test(plugins: Any, content_type: str) -> None:
    sent = run(plugins.Sender, content_type=content_type)
    values = [line.split(" | ")[0] for line in expected(content_type)]
    assert [plugins.shown(memoryview(v) if content_type == OCTETS else v) for v in sent.sent] == values
    refused = [number for number in REFUSED[content_type] for _ in range(2)]
    assert [int(line.split()[0]) for line in sent.result[: len(refused)]] == refused
    assert [line[: len(end)] for line, end in zip(sent.result[len(refused) :], BUS, strict=True)] == BUS
