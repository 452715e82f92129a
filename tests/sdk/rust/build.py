"""The crate and the programs of these tests, which cargo builds once, and again when they have changed.

Without cargo, or without what the crate depends on (crates.io, or cargo's own store of it), the tests of the folder are
skipped; one line of the report says so.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SDK = ROOT / "sdk" / "rust"
HERE = Path(__file__).parent


def cargo(folder: Path, target: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run cargo in a crate's folder; what it builds goes to ``target``."""
    environment = os.environ | {"CARGO_TARGET_DIR": str(target), "CARGO_TERM_COLOR": "never", "CARGO_NET_RETRY": "0"}
    return subprocess.run(["cargo", *words], cwd=folder, env=environment, capture_output=True, text=True)


@functools.cache
def missing() -> str:
    """What these tests lack on this machine; empty if nothing."""
    if shutil.which("cargo") is None:
        return "needs cargo"
    fetched = cargo(HERE / "worker", Path(os.devnull), "fetch", "--locked")
    return (
        "" if fetched.returncode == 0 else f"cargo cannot get what it needs: {fetched.stderr.strip().splitlines()[-1]}"
    )


needs_cargo = pytest.mark.skipif(bool(missing()), reason=f"sdk/rust: {missing()}")


def built(folder: Path, *what: str) -> Path:
    """The folder with the programs of a crate; cargo keeps what it has built for the next time."""
    target = ROOT / "build" / "rust"
    done = cargo(folder, target, "build", "--release", "--locked", *what)
    assert done.returncode == 0, done.stderr
    return target / "release"


def programs() -> Path:
    """The folder with the programs of the tests."""
    return built(HERE / "worker")
