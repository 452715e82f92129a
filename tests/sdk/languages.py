"""The languages whose workers the conformance kit checks here, and how the program is made that it checks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.sdk.c import build as c
from tests.sdk.rust import build as rust

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Language:
    """A language: the folder of its SDK, what is missing here to build a program with it (empty if nothing), and what
    builds it in a folder that all tests share. ``fails`` are cases, as ``form-check``, that its worker is known to
    fail."""

    name: str
    sdk: str
    missing: Callable[[], str] | None = None
    build: Callable[[Path], Path] | None = None
    fails: frozenset[str] = frozenset()


def build_c(shared: Path) -> Path:
    """With the sanitizers."""
    return c.program(c.library(shared, "address"), "address", c.HERE / "programs" / "conformance.c")


def build_go(shared: Path) -> Path:
    """Within the SDK's module, where its dependencies are known, and without a file in it."""
    sdk, program, overlay = ROOT / "sdk/go", shared / "tested-go", shared / "tested-go.json"
    overlay.write_text(json.dumps({"Replace": {str(sdk / "internal/tested/main.go"): str(HERE / "go/conformance.go")}}))
    command = ["go", "build", "-buildvcs=false", f"-overlay={overlay}", "-o", str(program), "./internal/tested"]
    built = subprocess.run(command, cwd=sdk, env=os.environ | {"CGO_ENABLED": "0"}, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


LANGUAGES = (
    Language("Python", "nodeworker"),
    Language("C", "sdk/c", c.missing, build_c),
    Language("Go", "sdk/go", lambda: "" if shutil.which("go") else "needs Go", build_go),
    Language(
        "Rust",
        "sdk/rust",
        rust.missing,
        lambda _: rust.programs() / "conformance",
        frozenset({"sink-accuses", "map-accuses"}),
    ),
)
"""Python's worker is checked in tests/conformance."""
