"""Flows whose nodes are written in Go. The tests are left out where there is no Go, and say so in one line."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import *  # noqa: F403 - the daemon, its settings and clients
from tests.e2e.conftest import Submit

Map = dict[str, Any]
ROOT = Path(__file__).parents[3]
SDK = ROOT / "sdk" / "go"
PLUGINS = Path(__file__).parent / "plugins"
GO = shutil.which("go")


RACE = bool(os.environ.get("CHRONETIX_GO_RACE"))
"""Build with the race detector (`make go`): a worker that has found a race exits with status 66, and its flow fails."""


def build(package: str, to: Path) -> None:
    """Build one program of the SDK, without cgo unless for the race detector; what the compiler says is the error."""
    assert GO is not None
    command = [GO, "build", "-buildvcs=false", *(["-race"] if RACE else []), "-o", str(to), package]
    environment = os.environ | {"CGO_ENABLED": str(int(RACE))}
    built = subprocess.run(command, cwd=SDK, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program of the tests, built once for all of their processes."""
    if GO is None:
        pytest.skip("Go is missing: the tests of sdk/go are left out")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "go"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "testnode").exists():
            build("./internal/testnode", folder / "testnode")
    return folder


@pytest.fixture
def go(programs: Path, tmp_path: Path) -> Callable[..., Map]:
    """Makes manifests of nodes in Go: the program's role is its name."""

    def node(name: str, role: str, **more: Any) -> Map:
        program = tmp_path / "go" / role
        program.parent.mkdir(exist_ok=True)
        if not program.exists():
            program.symlink_to(programs / "testnode")
        artifact = {"kind": "Process", "uri": f"file://{program}"}
        return {"plugin_id": name, "node_id": name, "version": "1.0.0", "artifact": artifact, **more}

    return node


@pytest.fixture
def py() -> Callable[..., Map]:
    """Makes manifests of nodes in Python, which do the same."""
    names = {"source": "source", "map": "forward", "sink": "Sink"}

    def node(name: str, role: str, **more: Any) -> Map:
        artifact = {"kind": "Python", "uri": f"python://{PLUGINS}/patterns.py:{names[role]}"}
        return {"plugin_id": name, "node_id": name, "version": "1.0.0", "artifact": artifact, **more}

    return node


def result_of(client: Any, flow: str, node: str) -> Any:
    """What a node has left."""
    return next(entry["result"] for entry in client.call("describe", flow=flow)["nodes"] if entry["node"] == node)


edge = Submit.edge
