"""What several protocol tests need: the real compiled flow and the byte vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

MINIMAL = Path(__file__).parent / "data" / "minimal_compile_output.json"


@pytest.fixture
def minimal() -> dict[str, Any]:
    """The orchestrator's own output, as it is; a copy for every test."""
    flow: dict[str, Any] = json.loads(MINIMAL.read_bytes())
    return flow


@pytest.fixture
def manifest() -> Callable[..., dict[str, Any]]:
    """The smallest manifest with that node id; keywords add fields."""

    def make(node: str, **fields: Any) -> dict[str, Any]:
        artifact = {"kind": "Python", "uri": "python://module:object"}
        return {"node_id": node, "plugin_id": "plugin", "artifact": artifact, **fields}

    return make


@pytest.fixture
def data_route() -> Callable[..., dict[str, Any]]:
    """The smallest data route between two endpoints; keywords add fields."""

    def make(source: str, target: str, **fields: Any) -> dict[str, Any]:
        return {"from": source, "to": target, "plane": "data", **fields}

    return make


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """vectors.json, as any implementation would load it."""
    loaded: dict[str, Any] = json.loads(resources.files("protocol").joinpath("vectors.json").read_bytes())
    return loaded
