"""Artifacts of kind Dylib: a shared library in a process of its own, whose crash is one worker's death."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from tests.sdk.c.build import HERE, SDK, library, needs_libcbor, run
from tests.sdk.nodes import PLUGINS, Nodes, Run

pytestmark = needs_libcbor

FINE, CRASHES, OTHER_ABI, FAILS, SMALLEST, SOURCE = range(6)
Map = dict[str, Any]


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the daemon: where the host is."""
    shared = tmp_path_factory.getbasetemp()
    made = library(shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared, "plain")
    return {"CHRONETIX_DYLIB_HOST": str(made / "chronetix-dylib-host")}


def plugin(folder: Path, kind: int) -> Path:
    made = folder / f"plugin{kind}.so"
    flags = ["-shared", "-fPIC", "-Wno-override-init", f"-I{SDK / 'include'}", f"-DKIND={kind}"]
    run("cc", *flags, HERE / "programs" / "plugin.c", "-o", made)
    return made


def node(name: str, path: Path, **more: Any) -> Map:
    common = {"plugin_id": name, "node_id": name, "version": "1.0.0"}
    return {**common, "artifact": {"kind": "Dylib", "uri": f"file://{path}"}, **more}


def test_libraries_are_a_source_a_map_and_a_sink(nodes: Nodes, run: Run, tmp_path: Path) -> None:
    fine = plugin(tmp_path, FINE)
    source = node("source", plugin(tmp_path, SOURCE), params={"count": 500})
    results = run(nodes.line(source, node("map", fine), node("sink", fine)))
    assert (results["map"], results["sink"]) == (500, 500)


def test_the_example_counts_bytes(nodes: Nodes, run: Run, settings: dict[str, str]) -> None:
    counter = Path(settings["CHRONETIX_DYLIB_HOST"]).parent / "examples" / "counter.so"
    line = nodes.line(
        nodes.python("source", "items", {"count": 100}), node("counter", counter), nodes.own("sink", "counts")
    )
    results = run(line)
    assert (results["counter"], results["sink"]["frames"]) == (800, 100)


def test_ticks_and_messages_reach_a_library(client: Client, tmp_path: Path) -> None:
    timers = [{"id": "beat", "schedule": {"interval_ms": 5}}]
    flow = {"manifests": [node("clock", plugin(tmp_path, FINE), timers=timers)], "routes": [], "schemas": []}
    answer = client.call("submit", flow=flow, base_dir="/", wait="running")
    lines = []
    for entry in client.stream("logs", flow=answer["flow"], follow=True):
        lines.append(entry["line"])
        if entry["line"] == "heard 3":
            break
    assert "a plugin of the tests" in lines
    assert client.call("stop", flow=answer["flow"])["state"] == "stopped"


def test_a_crash_is_one_workers_death_and_is_explained(nodes: Nodes, client: Client, tmp_path: Path) -> None:
    flow = nodes.line(
        nodes.own("source", "items", {"count": 100}),
        node("map", plugin(tmp_path, CRASHES)),
        nodes.own("sink", "counts"),
    )
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped")
    assert answer["state"] == "failed"
    assert "SIGSEGV" in answer["reason"]
    assert client.call("version")


def test_a_crash_is_survived_by_a_node_that_is_restarted(nodes: Nodes, client: Client, tmp_path: Path) -> None:
    restart = {"policy": "transient", "max": 100, "backoff_ms": 1}
    crashing = node("map", plugin(tmp_path, CRASHES), restart=restart)
    flow = nodes.line(nodes.own("source", "items", {"count": 5}), crashing, nodes.own("sink", "counts"))
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped")
    assert answer["state"] == "stopped", answer["reason"]
    assert "node-restarted" in [event["kind"] for event in client.stream("events", flow=answer["flow"])]


@pytest.mark.parametrize(
    ("kind", "words"), [(OTHER_ABI, "table of ABI 2"), (FAILS, "init does not like this")], ids=["abi", "init"]
)
def test_a_library_that_cannot_begin_says_why(
    kind: int, words: str, nodes: Nodes, client: Client, tmp_path: Path
) -> None:
    flow = nodes.line(nodes.own("source", "items", {"count": 3}), node("sink", plugin(tmp_path, kind)))
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped")
    assert answer["state"] == "failed"
    assert words in answer["reason"]


def test_what_is_behind_the_size_of_a_table_is_not_believed(nodes: Nodes, client: Client, tmp_path: Path) -> None:
    flow = nodes.line(nodes.own("source", "items", {"count": 3}), node("sink", plugin(tmp_path, SMALLEST)))
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped")
    assert answer["state"] == "stopped"


def test_validate_and_submit_refuse_the_same_library(client: Client, nodes: Nodes) -> None:
    flow = {"manifests": [node("x", nodes.worker)], "routes": [], "schemas": []}
    validated = client.call("validate", flow=flow, base_dir="/")
    with pytest.raises(ChronetixError) as refused:
        client.call("submit", flow=flow, base_dir="/")
    assert validated["problems"] == refused.value.details["problems"]
    assert "exports no chronetix_plugin_v1" in validated["problems"][0]["message"]
