"""The folder in which a program was started: nothing there is imported by daemon, launcher, workers or command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client
from tests.e2e.conftest import ROOT, Daemon
from tests.e2e.test_upgrade import upgrade

pytestmark = pytest.mark.cold

NAMES = (
    *(
        "array",
        "cbor2",
        "chronetix",
        "click",
        "ctypes",
        "difflib",
        "inspect",
        "json",
        "msgspec",
        "nodeworker",
        "numpy",
        "protocol",
    ),
    *("shm", "signal", "socket", "sqlite3", "structlog", "subprocess", "threading", "tomllib", "traceback", "uvloop"),
)
"""Modules that the programs import, of the standard library, of others, and our own."""

PLUGIN = """
import helper
def source(ctx):
    yield helper.WORD
def sink(frame, ctx):
    assert bytes(frame) == b"here"
"""


@pytest.fixture
def imported(tmp_path: Path) -> Callable[[], list[str]]:
    """Puts a module of each of ``NAMES`` into the test's folder; returns which were imported by now."""
    told = tmp_path / "imported"
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"with open({str(told)!r}, 'a') as file: file.write({name!r} + ' ')\n")
    return lambda: told.read_text().split() if told.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A flow's folder: a plugin and the module beside it that it imports."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "plugin.py").write_text(PLUGIN)
    (folder / "helper.py").write_text("WORD = b'here'\n")
    return folder


def flow_of(uri: str) -> dict[str, Any]:
    """A source and a sink from ``uri``."""

    def node(name: str) -> dict[str, Any]:
        artifact = {"kind": "Python", "uri": f"python://{uri}:{name}"}
        return {"plugin_id": name, "node_id": name, "version": "1", "artifact": artifact}

    route = {"from": "source", "to": "sink", "plane": "data", "topic": "t", "schema_ver": "v1"}
    route["content_type"] = "application/octet-stream"
    return {"manifests": [node("source"), node("sink")], "routes": [route], "schemas": []}


def runs(client: Client, project: Path, uri: str) -> dict[str, Any]:
    """Run a flow whose nodes are ``uri``'s to its end."""
    answer = client.call("submit", flow=flow_of(uri), base_dir=str(project), wait="stopped")
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize("spares", [0, 2])
@pytest.mark.parametrize("uri", ["plugin.py", "plugin"])
def test_flows_find_their_own_modules_and_nobody_those_of_the_start_folder(
    uri: str, spares: int, imported: Callable[[], list[str]], project: Path, start: Any, settings: dict[str, str]
) -> None:
    settings["CHRONETIX_SPARES"] = str(spares)
    daemon = start()
    with Client.connect(daemon.socket) as client:
        assert runs(client, project, uri)["state"] == "stopped"
    assert imported() == []


@pytest.mark.parametrize("name", ["protocol", "shm", "nodeworker", "api", "testing", "client"])
def test_a_module_beside_a_plugin_may_have_the_name_of_one_of_our_folders(
    name: str, project: Path, daemon: Daemon
) -> None:
    (project / "plugin.py").write_text(PLUGIN.replace("helper", name))
    (project / "helper.py").rename(project / f"{name}.py")
    with Client.connect(daemon.socket) as client:
        assert runs(client, project, "plugin.py")["state"] == "stopped"


def test_nor_does_the_image_that_takes_over(imported: Callable[[], list[str]], project: Path, daemon: Daemon) -> None:
    assert upgrade(daemon)["failed"] == ""
    with Client.connect(daemon.socket) as client:
        assert runs(client, project, "plugin.py")["state"] == "stopped"
    assert imported() == []


@pytest.mark.parametrize("arguments", [("version",), ("run", "--inproc", "project/flow.json")])
def test_nor_the_command_line(
    arguments: tuple[str, ...], imported: Callable[[], list[str]], project: Path, daemon: Daemon, tmp_path: Path
) -> None:
    (project / "flow.json").write_text(json.dumps(flow_of("plugin.py")))
    command = [sys.executable, "-m", "chronetixctl", *arguments]
    ended = subprocess.run(command, env=daemon.environment, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, imported()) == (0, []), ended.stderr


def test_a_tree_that_is_not_installed_starts_from_its_own_folder(tmp_path: Path) -> None:
    for package in ("chronetix", "chronetixd", "nodeworker", "protocol", "shm"):
        (tmp_path / package).symlink_to(ROOT / package)
    program = (
        "import sys; sys.path[:] = [each for each in sys.path if 'chronetix' not in each]; "
        f"sys.path.insert(0, {str(tmp_path)!r}); "
        "from chronetixd.startpath import forget_start_folder; forget_start_folder(); "
        "import os; print(sys.path[-1], os.environ['PYTHONPATH'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [str(tmp_path)] * 2
