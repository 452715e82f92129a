"""``make wheel`` builds a wheel and an sdist; each installs outside the checkout, and brings all that is promised."""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.conftest import BIN, THIS, VERSIONS, Built, Environment, interpreter, uv

pytestmark = pytest.mark.timeout(600)

TOLD = "share/chronetix/"
SHARED = [
    *(TOLD + name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")),
    *(TOLD + name for name in ("shm/SPEC.md", "protocol/PROTOCOL.md", "protocol/protocol.cddl", "wit/common.wit")),
    *(TOLD + name for name in ("systemd/chronetixd.service", "systemd/user/chronetixd.socket", "docs/plugins.md")),
    TOLD + "docs/reference/flow-file.md",
    *(TOLD + name for name in ("examples/squares/flow.yaml", "examples/flights/plugins.py")),
    "share/bash-completion/completions/chronetixctl",
    "share/zsh/site-functions/_chronetixctl",
    "share/fish/vendor_completions.d/chronetixctl.fish",
]
TYPED = ["chronetix/py.typed", "chronetix/__init__.pyi", "chronetix/shm/_native.pyi", "chronetix/protocol/_cbor.pyi"]
CODE = "#include <chronetix/chronetix.h>\nint main(void) { return sizeof(struct chx_header) == 0; }\n"
SUM = "332833500"


def about(environment: Environment) -> dict[str, str]:
    told: dict[str, str] = json.loads(environment.run("chronetixctl", "version", "--client", "-o", "json"))["client"]
    return told


def test_the_wheel_is_one_for_every_python_and_holds_no_more_than_it_says(built: Built) -> None:
    assert re.fullmatch(r"chronetix-[\d.]+-cp311-abi3-linux_\w+\.whl", built.wheel.name)
    with zipfile.ZipFile(built.wheel) as wheel:
        names = wheel.namelist()
    roots = {name.split("/")[0].partition("-")[0] for name in names}
    assert roots == {"chronetix", "chronetixd", "chronetixctl"}
    libraries = [name for name in names if name.endswith(".so")]
    assert sorted(Path(name).name for name in libraries) == ["_cbor.abi3.so", "_clone.abi3.so", "_native.abi3.so"]
    code = [name for name in names if "/share/chronetix/sdk/" not in name]
    assert not [name for name in code if name.endswith((".c", "native.h", ".pyc")) or "/tests/" in name]
    assert set(SHARED) <= {name.partition(".data/data/")[2] for name in names}
    assert set(TYPED) <= set(names)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_runs_an_example_in_a_fresh_environment(
    built: Built, environment: Callable[[str], Environment], daemon: Callable[[Environment], None], version: str
) -> None:
    fresh = environment(version)
    uv("pip", "install", "--python", fresh.python, built.wheel)
    told = about(fresh)
    assert told["python"].startswith(f"{version}.")
    documents = Path(told["documents"])
    assert documents == fresh.folder / "share" / "chronetix"
    assert [name for name in SHARED if not (fresh.folder / name).is_file()] == []
    flow = str(documents / "examples" / "squares" / "flow.yaml")
    assert f"total: {SUM}" in fresh.run("chronetixctl", "run", "--inproc", flow)
    daemon(fresh)
    assert "squares stopped" in fresh.run("chronetixctl", "submit", flow, "--wait", "stopped")
    assert SUM in fresh.run("chronetixctl", "describe", "squares")


def test_the_sdist_is_built_by_pip_wherever_there_is_a_compiler(built: Built, tmp_path: Path) -> None:
    """The newest Python, so that the wheel's is not the only one that the C code is compiled for."""
    fresh = Environment(tmp_path / "fresh", tmp_path / "home")
    fresh.home.mkdir()
    newest = next(version for version in reversed(VERSIONS) if has(version))
    subprocess.run([interpreter(newest), "-m", "venv", fresh.folder], check=True)
    fresh.run(fresh.python, "-m", "pip", "install", "--quiet", "--no-compile", built.sdist)
    documents = Path(about(fresh)["documents"])
    assert [name for name in SHARED if not (fresh.folder / name).is_file()] == []
    assert f"total: {SUM}" in fresh.run("chronetixctl", "run", "--inproc", documents / "examples/squares/flow.yaml")
    written = fresh.run("chronetixctl", "service", "install", "--user", "--dry-run")
    assert "chronetixd.service" in written


def has(version: str) -> bool:
    try:
        interpreter(version)
    except pytest.skip.Exception:
        return False
    return True


ENDS = """
def numbers(ctx):
    yield from ({"n": n} for n in range(3))


class Total:
    total = 0

    def on_frame(self, frame, ctx):
        self.total += frame.value()["n"]

    def on_stop(self, ctx):
        return self.total
"""
DOUBLE = """#!/usr/bin/env python3
import platform

import chronetix

print(f"this is Python {platform.python_version()}")
chronetix.serve(lambda frame, ctx: {"n": frame.value()["n"] * 2})
"""
FLOW = """
name: own
nodes:
  - {{ id: numbers, kind: source, impl_kind: python, entry: "python://ends.py:numbers" }}
  - id: double
    kind: map
    impl_kind: process
    entry: "file://double.py"
    env: {{ PATH: "{path}:/usr/bin:/bin" }}
  - {{ id: total, kind: sink, impl_kind: python, entry: "python://ends.py:Total" }}
edges: [{{ from: numbers, to: double }}, {{ from: double, to: total }}]
"""


def test_a_program_runs_in_an_environment_of_its_own_with_another_python(
    built: Built, environment: Callable[[str], Environment], daemon: Callable[[Environment], None], tmp_path: Path
) -> None:
    ours = environment(THIS)
    other = next((version for version in reversed(VERSIONS) if version != THIS and has(version)), THIS)
    theirs = tmp_path / "theirs"
    uv("venv", "--python", interpreter(other), theirs)
    for python in (ours.python, theirs / "bin" / "python"):
        uv("pip", "install", "--python", python, built.wheel)
    (ours.home / "ends.py").write_text(ENDS)
    (ours.home / "double.py").write_text(DOUBLE)
    (ours.home / "double.py").chmod(0o755)
    (ours.home / "flow.yaml").write_text(FLOW.format(path=theirs / "bin"))
    daemon(ours)
    assert "own stopped" in ours.run("chronetixctl", "submit", "flow.yaml", "--wait", "stopped")
    described = json.loads(ours.run("chronetixctl", "describe", "own", "-o", "json"))
    assert [node["result"] for node in described["nodes"] if node["node"] == "total"] == [6]
    assert f"this is Python {other}." in ours.run("chronetixctl", "logs", "own", "--node", "double")


@pytest.fixture(scope="module")
def tool(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel as ``uv tool install`` puts it, in an environment of its own with links to the programs."""
    folder = tmp_path_factory.mktemp("tool")
    places = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    made = Environment(folder, folder / "home")
    made.home.mkdir()
    uv("tool", "install", "--python", interpreter(THIS), built.wheel, env=os.environ | places)
    return made


def test_a_tool_has_the_two_commands(tool: Environment) -> None:
    programs = tool.folder / "bin"
    assert sorted(path.name for path in programs.iterdir()) == ["chronetixctl", "chronetixd"]
    for program in programs.iterdir():
        assert "Usage" in tool.run(program, "--help") or "usage" in tool.run(program, "--help")


def test_what_the_documents_link_to_is_there(tool: Environment) -> None:
    documents = Path(about(tool)["documents"])
    pages = sorted(documents.rglob("*.md"))
    assert len(pages) > 10
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert len(links) > 10
    assert [f"{page}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_a_c_program_compiles_with_the_headers(tool: Environment, tmp_path: Path) -> None:
    (tmp_path / "worker.c").write_text(CODE)
    tool.run("cc", "-std=c11", "-D_GNU_SOURCE", "-fsyntax-only", "-I", about(tool)["headers"], tmp_path / "worker.c")


def test_a_type_checker_knows_the_types(tool: Environment, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("from chronetix import Frame\n\n\ndef on_frame(frame: Frame) -> None:\n    frame.nothing\n")
    python = Path(about(tool)["documents"]).parents[1] / "bin" / "python"
    command = [BIN / "mypy", "--strict", "--python-executable", python, plugin]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
    assert told[0] == 'plugin.py:5: error: "Frame" has no attribute "nothing"  [attr-defined]'
    assert told[1].startswith("Found 1 error ")


def test_bash_completes_commands_and_options(tool: Environment) -> None:
    script = Path(about(tool)["documents"]).parent / "bash-completion" / "completions" / "chronetixctl"
    words = f"""
        source {script}
        complete -p chronetixctl
        COMP_WORDS=(chronetixctl vers) COMP_CWORD=1
        _chronetixctl_completion chronetixctl
        echo "${{COMPREPLY[@]}}"
    """
    assert tool.run("bash", "-euc", words).splitlines()[-1] == "version"
