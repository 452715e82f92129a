"""``graph``: each language, hostile names, and flows that cannot be drawn."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.contract import parse_flow
from chronetixctl.graph import as_dot, as_mermaid, in_order

FLOW = """
name: drawn
nodes:
  - {id: the sink, kind: sink, entry: "python://m.py:sink"}
  - {id: source, kind: source, entry: "python://m.py:source"}
  - {id: map, plugin: {artifact: "python://m.py:map"}}
edges:
  - {from: source, to: map, content_type: application/json, buffer: 8}
  - {from: map, to: the sink, content_type: image/png, policy: latest}
  - {from: the sink, to: source, channel: event-bus, topic: back/again}
"""


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    path = tmp_path / "flow.yaml"
    path.write_text(FLOW)
    return path


def test_text_shows_nodes_in_the_order_of_the_data_and_where_each_sends(ctl: Any, drawn: Path) -> None:
    assert ctl("graph", str(drawn)).out.splitlines() == [
        "source (Source, python://m.py:source)",
        "  ──> map  json, 8",
        "map (SourceTransform, python://m.py:map)",
        "  ──> the sink  image/png, 64, latest",
        "the sink (Sink, python://m.py:sink)",
        "  ╌╌> source  back/again",
    ]


def test_mermaid_numbers_the_nodes_and_dashes_control_routes(ctl: Any, drawn: Path) -> None:
    assert ctl("graph", str(drawn), "--as", "mermaid").out.splitlines() == [
        "flowchart LR",
        '    n0["the sink"]',
        '    n1["source"]',
        '    n2["map"]',
        '    n1 -->|"json, 8"| n2',
        '    n2 -->|"image/png, 64, latest"| n0',
        '    n0 -.->|"back/again"| n1',
    ]


def test_dot_quotes_every_name(ctl: Any, drawn: Path) -> None:
    assert ctl("graph", str(drawn), "--as", "dot").out.splitlines() == [
        "digraph flow {",
        "    rankdir=LR;",
        "    node [shape=box];",
        '    "source";',
        '    "map";',
        '    "the sink";',
        '    "source" -> "map" [label="json, 8"];',
        '    "map" -> "the sink" [label="image/png, 64, latest"];',
        '    "the sink" -> "source" [label="back/again", style=dashed];',
        "}",
    ]


def test_svg_is_what_graphviz_draws_of_it(
    ctl: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "dot"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "drawn $1"\ncat\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    out = ctl("graph", str(drawn), "--as", "svg").out
    assert out.startswith("drawn -Tsvg\ndigraph flow {")


def test_svg_without_graphviz_says_what_to_install(
    ctl: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = ctl("graph", str(drawn), "--as", "svg")
    assert ended.code == 2
    assert "install graphviz" in ended.err


def test_json_has_nodes_in_order_and_what_routes_carry(ctl: Any, drawn: Path) -> None:
    told = json.loads(ctl("graph", str(drawn), "-o", "json").out)
    assert [node["node"] for node in told["nodes"]] == ["source", "map", "the sink"]
    assert told["routes"][0] == {
        "id": "dataport/source-map",
        "from": "source",
        "to": "map",
        "plane": "data",
        "content_type": "application/json",
        "buffer": 8,
        "policy": "block",
    }
    assert told["routes"][2]["topic"] == "back/again"


def test_another_language_and_json_at_once_is_wrong_usage(ctl: Any, drawn: Path) -> None:
    assert ctl("graph", str(drawn), "--as", "dot", "-o", "json").code == 2


def test_a_flow_with_problems_is_not_drawn(ctl: Any, tmp_path: Path) -> None:
    flow = {"manifests": [{"plugin_id": "a", "artifact": {"kind": "Python", "uri": "m:f"}}], "routes": [{"from": "x"}]}
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(flow))
    ended = ctl("graph", str(path))
    assert (ended.code, ended.out) == (1, "")
    assert "routes[0].to" in ended.err


names = st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable() and not any(map(str.isspace, text)))


@given(st.lists(names, min_size=1, max_size=5, unique=True))
def test_no_name_says_anything_in_either_language(ids: list[str]) -> None:
    manifests = [{"node_id": id, "plugin_id": "p", "artifact": {"kind": "Python", "uri": "m:f"}} for id in ids]
    pairs = itertools.pairwise(ids)
    routes = [{"from": start, "to": end, "plane": "control", "topic": start} for start, end in pairs]
    flow = parse_flow({"manifests": manifests, "routes": routes}).flow
    assert flow is not None
    assert in_order(flow) == ids
    for line in as_mermaid(flow).splitlines()[1:]:
        assert re.fullmatch(r'    n\d+(\["[^"]*"\]| -\.->\|"[^"]*"\| n\d+)', line)
    quoted = r'"(?:[^"\\]|\\.)*"'
    for line in as_dot(flow).splitlines()[3:-1]:
        assert re.fullmatch(rf"    {quoted}( -> {quoted} \[label={quoted}, style=dashed\])?;", line)
