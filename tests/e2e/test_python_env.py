"""Nodes that run in the Python of another environment, with packages that the daemon's does not have."""

from __future__ import annotations

import site
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from tests.e2e.conftest import ROOT, Daemon

Map = dict[str, Any]

PLUGIN = """
import os
import sys

import onlythere

def numbers(ctx):
    for n in range(10):
        yield {"n": n + onlythere.MORE}

class Total:
    def __init__(self, ctx):
        self.total = 0
    def on_frame(self, frame, ctx):
        self.total += frame.value()["n"]
    def on_stop(self, ctx):
        return {"total": self.total, "prefix": sys.prefix, "hash": os.environ.get("PYTHONHASHSEED")}
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment with a package of its own, which finds this checkout and what it needs."""
    folder = tmp_path / "an environment"
    venv.create(folder, symlinks=True)
    packages = next((folder / "lib").glob("python3.*")) / "site-packages"
    (packages / "onlythere.py").write_text("MORE = 100\n")
    links = tmp_path / "links"
    links.mkdir()
    (links / "chronetix").symlink_to(ROOT / "chronetix")
    (packages / "product.pth").write_text("\n".join([str(links), *site.getsitepackages()]))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    return folder


def flow(python_env: str | None, total: str = "plugin.py:Total") -> Map:
    def node(name: str, entry: str) -> Map:
        artifact = {"kind": "Python", "uri": f"python://{entry}"}
        more = {"python_env": python_env, "env": {"PYTHONHASHSEED": "7"}} if python_env else {}
        return {"plugin_id": name, "node_id": name, "version": "1", "artifact": artifact | more}

    route = {"from": "numbers", "to": "total", "plane": "data", "topic": "n/t", "content_type": "application/cbor"}
    return {
        "manifests": [node("numbers", "plugin.py:numbers"), node("total", total)],
        "routes": [route],
        "schemas": [],
    }


def submit(client: Client, folder: Path, raw: Map) -> Map:
    answer = client.call("submit", flow=raw, name="f", base_dir=str(folder), wait="stopped")
    return dict(answer)


def refusal(client: Client, folder: Path, raw: Map) -> list[Map]:
    """The problems, which validate and submit agree on."""
    with pytest.raises(ChronetixError, match="flow-invalid") as refused:
        submit(client, folder, raw)
    found: list[Map] = refused.value.details["problems"]
    assert client.call("validate", flow=raw, base_dir=str(folder))["problems"] == found
    return found


def test_a_node_runs_with_the_interpreter_and_the_packages_of_its_environment(
    client: Client, tmp_path: Path, environment: Path
) -> None:
    assert submit(client, tmp_path, flow("an environment"))["state"] == "stopped"
    nodes = {node["node"]: node for node in client.call("describe", flow="f")["nodes"]}
    assert nodes["total"]["result"] == {"total": 1045, "prefix": str(environment), "hash": "7"}


def test_its_successor_runs_there_too(client: Client, tmp_path: Path, environment: Path) -> None:
    raw = flow("an environment")
    dies = "if ctx.incarnation == 0 and frame.seq == 3:\n            os.kill(os.getpid(), 9)\n        self.total +="
    (tmp_path / "plugin.py").write_text(PLUGIN.replace("self.total +=", dies))
    raw["manifests"][1]["restart"] = "transient"
    assert submit(client, tmp_path, raw)["state"] == "stopped"
    total = client.call("describe", flow="f")["nodes"][1]
    assert (total["incarnation"], total["result"]["prefix"]) == (1, str(environment))


def test_a_module_that_the_environment_lacks_is_told_at_submit_with_the_command_that_installs_it(
    client: Client, tmp_path: Path, environment: Path
) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN.replace("import onlythere", "import onlythere, nowhere_at_all"))
    problems = refusal(client, tmp_path, flow("an environment"))
    assert problems[0]["path"] == "manifests[0].artifact.python_env"
    assert f"{tmp_path}/plugin.py imports the module nowhere_at_all" in problems[0]["message"]
    assert problems[0]["suggestion"] == f"'{environment}/bin/python' -m pip install nowhere_at_all"


def test_a_module_that_the_daemons_environment_lacks_is_told_at_submit_too(
    client: Client, tmp_path: Path, environment: Path
) -> None:
    problems = refusal(client, tmp_path, flow(None))
    assert "imports the module onlythere, which the daemon's environment does not have" in problems[0]["message"]
    assert problems[0]["suggestion"].endswith("-m pip install onlythere")


@pytest.mark.parametrize(
    "line",
    ["try:\n    import nowhere_at_all\nexcept ImportError:\n    pass", "import sys; sys.path\nimport nowhere_at_all"],
)
def test_a_module_that_a_plugin_may_find_in_its_own_way_is_not_judged(
    line: str, daemon: Daemon, client: Client, tmp_path: Path, environment: Path
) -> None:
    (tmp_path / "plugin.py").write_text(f"{line}\n{PLUGIN}")
    assert client.call("validate", flow=flow("an environment"), base_dir=str(tmp_path))["problems"] == []


def test_what_is_no_environment_or_lacks_the_product_is_refused_with_the_next_step(
    client: Client, tmp_path: Path, environment: Path
) -> None:
    (problem, _) = refusal(client, tmp_path, flow("nowhere"))
    assert f"there is no environment {tmp_path}/nowhere" in problem["message"]
    assert "python3 -m venv" in problem["suggestion"]
    (tmp_path / "empty").mkdir()
    assert "it has no bin/python" in refusal(client, tmp_path, flow("empty"))[0]["message"]
    pth = next(environment.glob("lib/python3.*/site-packages/product.pth"))
    pth.unlink()
    (problem, _) = refusal(client, tmp_path, flow("an environment"))
    assert f"{environment} has no chronetix" in problem["message"]
    assert f"'{environment}/bin/python' -m pip install {ROOT}" in problem["suggestion"]


def test_an_environment_whose_product_speaks_no_common_version_is_refused(
    client: Client, tmp_path: Path, environment: Path
) -> None:
    other = environment / "other" / "chronetix" / "protocol" / "messages"
    other.mkdir(parents=True)
    (other / "connection.py").write_text("PROTOCOL_VERSIONS = (98, 99)\n")
    next(environment.glob("lib/python3.*/site-packages/product.pth")).write_text(str(environment / "other"))
    (problem, _) = refusal(client, tmp_path, flow("an environment"))
    assert "speaks protocol versions [98, 99], and this daemon [1]" in problem["message"]


def test_an_older_python_is_refused(client: Client, tmp_path: Path, environment: Path) -> None:
    (library,) = (environment / "lib").glob("python3.*")
    library.rename(library.with_name("python3.10"))
    (problem, _) = refusal(client, tmp_path, flow("an environment"))
    assert "has Python 3.10; workers need 3.11 or later" in problem["message"]


def test_only_python_plugins_that_the_daemon_starts_have_one(client: Client, tmp_path: Path, environment: Path) -> None:
    raw = flow("an environment")
    raw["manifests"][0]["artifact"] = {"kind": "Process", "uri": f"file://{sys.executable}", "python_env": "x"}
    assert refusal(client, tmp_path, raw)[0]["path"] == "manifests[0].artifact.python_env"
