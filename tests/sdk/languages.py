"""The languages whose workers the conformance kit checks here, and how the program is made that it checks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTED = Path(__file__).parent / "tested"


@dataclass(frozen=True)
class Language:
    """A language: its SDK's folder, the tools that its program is built with, and how. ``fails`` are cases, as
    ``form-check``, that its worker is known to fail."""

    name: str
    sdk: str
    program: str
    tools: tuple[str, ...] = ()
    build: Callable[[Path], None] | None = None
    fails: frozenset[str] = frozenset()

    @property
    def missing(self) -> list[str]:
        """The tools that are not installed."""
        return [tool for tool in self.tools if shutil.which(tool) is None]


def run(command: list[str], **settings: object) -> None:
    built = subprocess.run(command, capture_output=True, text=True, **settings)
    assert built.returncode == 0, built.stderr


def build_c(program: Path) -> None:
    """With the library's sources, so that no other build of it is looked for."""
    sources = map(str, sorted((ROOT / "sdk/c/src").glob("*.c")))
    include = [f"-I{ROOT / 'sdk/c/include'}", f"-I{ROOT / 'sdk/c/src'}", f"-isystem{ROOT / 'shm/include'}"]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    run(["cc", *flags, *include, str(TESTED / "tested.c"), *sources, "-lcbor", "-pthread", "-o", str(program)])


def build_go(program: Path) -> None:
    """Within the SDK's module, where its dependencies are known, and without a file in it."""
    sdk = ROOT / "sdk/go"
    overlay = program.with_suffix(".json")
    overlay.write_text(json.dumps({"Replace": {str(sdk / "internal/tested/main.go"): str(TESTED / "tested.go")}}))
    command = ["go", "build", "-buildvcs=false", f"-overlay={overlay}", "-o", str(program), "./internal/tested"]
    run(command, cwd=sdk, env=os.environ | {"CGO_ENABLED": "0"})


KNOWN = (
    Language("Python", "nodeworker", "tests/conformance/worker.py"),
    Language("C", "sdk/c", "tests/sdk/tested/tested.c", ("cc",), build_c),
    Language("Go", "sdk/go", "tests/sdk/tested/tested.go", ("go",), build_go),
)

LANGUAGES = tuple(each for each in KNOWN if (ROOT / each.sdk).is_dir())
"""Those whose SDK is in this tree."""
