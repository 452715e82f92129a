"""Flows whose nodes are Rust programs or Python plugins, under a real daemon."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client
from tests.e2e.conftest import client, daemon, settings, start
from tests.sdk.rust.build import programs

__all__ = ["client", "daemon", "settings", "start"]

Map = dict[str, Any]
PLUGINS = Path(__file__).parent / "plugins"
PYTHON = {
    "sized": "sized",
    "items": "items",
    "forward": "forward",
    "check": "Check",
    "reads_notes": "Notes",
    "doubles": "Doubles",
}
"""The plugin of plugins/mixed.py that does what the role does."""


@dataclass(frozen=True)
class Nodes:
    """Makes manifests of nodes in Rust and in Python."""

    worker: Path

    def rust(self, name: str, role: str, params: Map | None = None, **more: Any) -> Map:
        """A node of worker/src/main.rs."""
        artifact = {"kind": "Process", "uri": f"file://{self.worker}"}
        return self._node(name, artifact, {"role": role, **(params or {})}, more)

    def python(self, name: str, role: str, params: Map | None = None, **more: Any) -> Map:
        """The same in Python."""
        artifact = {"kind": "Python", "uri": f"python://mixed.py:{PYTHON[role]}"}
        return self._node(name, artifact, {"role": role, **(params or {})}, more)

    @staticmethod
    def _node(name: str, artifact: Map, params: Map, more: Map) -> Map:
        common = {"plugin_id": name, "node_id": name, "version": "1.0.0"}
        return {**common, "artifact": artifact, "params": params, **more}

    @staticmethod
    def edge(source: str, target: str, **more: Any) -> Map:
        """A data route of raw bytes."""
        route = {"from": source, "to": target, "plane": "data", "topic": f"{source}/{target}", "schema_ver": "v1"}
        return route | {"content_type": "application/octet-stream"} | more

    def line(self, *nodes: Map, **more: Any) -> Map:
        """A flow of these nodes, one behind the other."""
        names = [node["node_id"] for node in nodes]
        routes = [self.edge(*ends, **more) for ends in itertools.pairwise(names)]
        return {"manifests": list(nodes), "routes": routes, "schemas": []}


@pytest.fixture
def nodes() -> Nodes:
    return Nodes(programs() / "chronetix-test-worker")


Run = Callable[..., dict[str, Map]]


@pytest.fixture
def run(client: Client) -> Run:
    """Runs a flow to its end; what each node has left as its result."""

    def to_the_end(flow: Map) -> dict[str, Map]:
        answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped")
        described = client.call("describe", flow=answer["flow"])
        shown = [(node["node"], node["exit"]) for node in described["nodes"]]
        assert answer["state"] == "stopped", (answer["reason"], shown)
        return {node["node"]: node.get("result") for node in described["nodes"]}

    return to_the_end
