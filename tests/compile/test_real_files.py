"""The orchestrator's own graph compiles to what the orchestrator itself makes of it."""

from __future__ import annotations

import json
from pathlib import Path

from chronetix.protocol.contract import parse_flow
from chronetixd.compile import compile_text

NOT_IN_THE_GRAPH = {"retry": 3, "max_inflight": 32}
"""The orchestrator's output has these for http-client; its graph does not say them and the contract has no default."""


def test_the_real_graph_means_the_real_output(data: Path) -> None:
    ours = compile_text((data / "minimal_dag.yaml").read_text(), "minimal_dag.yaml")
    theirs = json.loads((data / "minimal_compile_output.json").read_text())

    node_ids = [manifest.pop("node_id") for manifest in ours.output["manifests"]]
    for manifest in theirs["manifests"]:
        if manifest["plugin_id"] == "http-client":
            assert {key: manifest["qos"].pop(key) for key in NOT_IN_THE_GRAPH} == NOT_IN_THE_GRAPH

    assert node_ids == ["resource-net", "timer-1", "http-client", "collector-sink"]
    assert ours.output == theirs
    assert ours.warnings == ()


def test_the_real_output_passes_through_as_it_is(data: Path) -> None:
    text = (data / "minimal_compile_output.json").read_text()

    result = compile_text(text, "minimal_compile_output.json")

    assert result.output == json.loads(text)
    assert result.passed_through


def test_the_compiled_graph_is_accepted_by_the_contract_without_a_warning(data: Path) -> None:
    output = compile_text((data / "minimal_dag.yaml").read_text(), "minimal_dag.yaml").output

    checked = parse_flow(output)

    assert checked.problems == []
    assert checked.warnings == []
    assert checked.flow is not None
    assert [(route.source, route.target) for route in checked.flow.routes] == [
        ("timer-1", "http-client"),
        ("resource-net", "http-client"),
        ("http-client", "collector-sink"),
    ]


def test_the_same_graph_as_json_gives_the_same(data: Path) -> None:
    import yaml

    text = (data / "minimal_dag.yaml").read_text()
    as_json = json.dumps(yaml.safe_load(text), indent="\t")

    assert compile_text(as_json, "dag.json").output == compile_text(text, "dag.yaml").output


def test_compiling_a_compiled_flow_changes_nothing(data: Path) -> None:
    once = compile_text((data / "minimal_dag.yaml").read_text(), "a.yaml").output

    assert compile_text(json.dumps(once), "b.json").output == once
