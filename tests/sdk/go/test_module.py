"""The module by itself: its own tests, its form, its versions, and its README as a newcomer follows it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.messages import PROTOCOL_VERSIONS
from tests.sdk.go.conftest import GO, ROOT, SDK, build, result_of

README = (SDK / "README.md").read_text()


@pytest.fixture(autouse=True)
def _go(programs: Path) -> None:
    """All of this needs Go."""


def run(*command: str, cwd: Path = SDK) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | {"CGO_ENABLED": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_formatted_and_vet_finds_nothing() -> None:
    assert run("gofmt", "-l", ".") == ""
    run("go", "vet", "./...")


def test_its_own_tests_pass() -> None:
    run("go", "test", "./...")


def test_it_says_the_versions_that_it_was_made_for() -> None:
    says = dict(re.findall(r"\b(Version|ProtocolVersion|ABIVersion) += +(\S+)", (SDK / "config.go").read_text()))
    layout = (SDK / "internal" / "shm" / "layout.go").read_text()
    wire = (SDK / "internal" / "wire" / "messages.go").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    abi = re.search(r"#define CHX_ABI (\d+)u", (ROOT / "shm" / "include" / "chronetix" / "abi.h").read_text())
    assert says["Version"] == f'"{project["version"]}"'
    assert abi is not None
    assert f"ABI = {abi[1]}\n" in layout
    assert f"const ProtocolVersion = {max(PROTOCOL_VERSIONS)}\n" in wire


def test_the_codes_are_those_of_the_catalogue(tmp_path: Path) -> None:
    made = tmp_path / "codes.go"
    run("go", "run", "./internal/errgen", str(ROOT / "protocol" / "errors.json"), str(made))
    assert made.read_text() == (SDK / "codes.go").read_text(), "run `go generate` in sdk/go"


def test_the_readme_leads_to_a_program_that_runs_in_a_flow(daemon: Any, client: Any, tmp_path: Path) -> None:
    (code,) = re.findall(r"```go\n(.*?)```", README, re.DOTALL)
    (commands,) = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    (flow,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 20
    (tmp_path / "main.go").write_text(code)
    for command in commands.splitlines():
        run(*command.removeprefix("$ ").replace("/path/to/chronetix", str(ROOT)).split(), cwd=tmp_path)
    for example in ("source", "sink"):
        build(f"./examples/{example}", tmp_path / example)
    (tmp_path / "flow.yaml").write_text(flow)
    done = daemon.ctl("submit", str(tmp_path / "flow.yaml"), "--wait", "stopped")
    assert done.returncode == 0, done.stderr
    lines = [f"LINE {n}" for n in range(1, 1001)]
    assert result_of(client, "capitals", "count") == {"frames": 1000, "bytes": sum(map(len, lines))}


def test_its_requirements_are_two() -> None:
    assert GO is not None
    module = json.loads(run(GO, "mod", "edit", "-json"))
    direct = {each["Path"] for each in module["Require"] if not each.get("Indirect")}
    assert direct == {"github.com/fxamacker/cbor/v2", "golang.org/x/sys"}
    assert shutil.which("gofmt")
