"""The library and the programs of these tests, built once for all test processes of a session.

Without a C compiler, make or libcbor the tests of the folder are skipped; one line of the report says so.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SDK = ROOT / "sdk" / "c"
HERE = Path(__file__).parent
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
SANITIZERS = {"plain": "", "address": "address,undefined"}


@functools.cache
def missing() -> str:
    """What these tests lack on this machine; empty if nothing."""
    for tool in ("cc", "make"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    probe = ["cc", "-x", "c", "-", "-o", os.devnull, "-lcbor"]
    source = "#include <cbor.h>\nint main(void) { return cbor_major_version; }\n"
    found = subprocess.run(probe, input=source, text=True, capture_output=True).returncode == 0
    return "" if found else "needs libcbor: apt-get install libcbor-dev"


needs_libcbor = pytest.mark.skipif(bool(missing()), reason=f"sdk/c: {missing()}")


def run(*command: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def library(folder: Path, kind: str) -> Path:
    """The folder of the built library, of one kind of SANITIZERS."""
    made = folder / f"sdk-c-{kind}"
    with open(folder / f"sdk-c-{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "done").exists():
            run("make", "-C", SDK, "-s", "-j2", f"BUILD={made}", f"SANITIZE={SANITIZERS[kind]}", "all")
            program(made, kind, HERE / "programs" / "worker.c")
            (made / "done").touch()
    return made


def program(made: Path, kind: str, source: Path, *more: str) -> Path:
    """Compile ``source`` against the library in ``made``, as a user would; the program."""
    target = made / source.stem
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", *WARNINGS, f"-I{SDK / 'include'}", *more]
    if SANITIZERS[kind]:
        flags += [f"-fsanitize={SANITIZERS[kind]}", "-fno-sanitize-recover=all"]
    run("cc", *flags, source, made / "libchronetix.a", "-lcbor", "-pthread", "-o", target)
    return target
