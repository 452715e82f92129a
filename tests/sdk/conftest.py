"""A real daemon, and the programs of each SDK for its flows."""

from __future__ import annotations

import pytest

from chronetixctl.client import Client
from tests.e2e.conftest import client, daemon, settings, start
from tests.sdk.nodes import C_SANITIZED, PLUGINS, RUST, C, Map, Nodes, Run

__all__ = ["client", "daemon", "settings", "start"]


@pytest.fixture(params=[C, RUST])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Nodes:
    made: Nodes = request.param(tmp_path_factory)
    return made


@pytest.fixture(params=[C, C_SANITIZED, RUST])
def any_nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Nodes:
    """Those in C also with the sanitizers."""
    made: Nodes = request.param(tmp_path_factory)
    return made


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
