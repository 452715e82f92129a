"""The headers without Python, under the sanitizers: a worker in C and the allocator, each compiled and run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "native"
INCLUDE = Path(__file__).parents[2] / "shm" / "include"
STRICT = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
KINDS = {
    "plain": ["-O2"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g", "-fsanitize=thread", "-Wno-tsan"],
}

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


def build(source: str, kind: str, folder: Path) -> Path:
    program = folder / f"{source}-{kind}"
    made = subprocess.run(
        ["gcc", *STRICT, *KINDS[kind], f"-I{INCLUDE}", HERE / f"{source}.c", "-o", program, "-lpthread"],
        capture_output=True,
        text=True,
    )
    if "cannot find" in made.stderr:
        pytest.skip(f"the compiler has no {kind} sanitizer")
    assert made.returncode == 0, made.stderr
    return program


def run(program: Path, *arguments: str) -> None:
    ended = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]


@pytest.mark.parametrize(("kind", "frames"), [("plain", 30_000), ("address", 10_000), ("thread", 3_000)])
def test_a_worker_in_c_sends_and_receives(tmp_path, kind, frames):
    run(build("stress", kind, tmp_path), str(frames))


@pytest.mark.parametrize("kind", ["plain", "address"])
def test_extents_have_one_owner(tmp_path, kind):
    run(build("arena", kind, tmp_path))


@pytest.mark.parametrize("header", sorted(path.name for path in (INCLUDE / "chronetix").glob("*.h")))
def test_every_header_stands_alone(tmp_path, header):
    source = tmp_path / "alone.c"
    source.write_text(f"#include <chronetix/{header}>\n#include <chronetix/{header}>\nint main(void) {{ return 0; }}\n")
    command = ["gcc", *STRICT, "-O1", f"-I{INCLUDE}", source, "-o", tmp_path / "alone", "-lpthread"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
