"""Flows whose nodes are programs of an SDK or Python plugins. A program of each SDK plays the same roles: in C
c/programs/worker.c, in Rust rust/worker/src/main.rs, in Python plugins/mixed.py."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.c import build as c
from tests.sdk.rust import build as rust

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
    """Makes manifests of nodes in an SDK's language and in Python. ``abort`` is the signal by which the program ends in
    the role ``crashes``."""

    worker: Path
    abort: str = "SIGSEGV"

    def own(self, name: str, role: str, params: Map | None = None, **more: Any) -> Map:
        """A node of the SDK's program."""
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


Run = Callable[..., dict[str, Map]]
"""Runs a flow to its end; what each node has left as its result."""


def in_c(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Nodes:
    """Nodes in C whose programs were built as ``kind``."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    return Nodes(c.library(shared, kind) / "worker")


def in_rust(_factory: pytest.TempPathFactory) -> Nodes:
    """Nodes in Rust."""
    return Nodes(rust.programs() / "chronetix-test-worker", "SIGABRT")


C = pytest.param(lambda factory: in_c(factory, "plain"), id="C", marks=c.needs_libcbor)
C_SANITIZED = pytest.param(lambda factory: in_c(factory, "address"), id="C-address", marks=c.needs_libcbor)
RUST = pytest.param(in_rust, id="Rust", marks=rust.needs_cargo)
