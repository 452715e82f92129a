"""Programs and the extension, built with the compiler's sanitizers.

Everything runs shortened by default; ``make sanitize`` sets SANITIZE_SCALE and runs it that many times longer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INCLUDE = ROOT / "shm" / "include"
SCALE = int(os.environ.get("SANITIZE_SCALE", "1"))
STRICT = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
ADDRESS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
KINDS = {
    "plain": ["-O2"],
    "address": ADDRESS,
    "thread": ["-O1", "-g", "-fsanitize=thread", "-Wno-tsan"],
}


def compile_c(command: list[str | Path]) -> None:
    """Run the compiler; skips the test when this one has no sanitizers."""
    made = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in made.stderr and "san" in made.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert made.returncode == 0, made.stderr


def build(source: str, kind: str, folder: Path, *flags: str) -> Path:
    """Compile ``tests/shm/native/SOURCE.c``."""
    program = folder / f"{source}-{kind}"
    file = ROOT / "tests" / "shm" / "native" / f"{source}.c"
    compile_c(["gcc", *STRICT, *KINDS[kind], f"-I{INCLUDE}", file, *flags, "-o", program, "-lpthread"])
    return program


def run(program: Path, *arguments: object) -> str:
    """Run it to its end, which has to be a good one; what it printed."""
    ended = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


def package_beside(folder: Path, name: str) -> Path:
    """The package ``chronetix`` below ``folder``: a copy of its part ``name`` without extensions, whose folder is
    returned, and the others as they are."""
    package = folder / "chronetix"
    package.mkdir()
    for file in (ROOT / "chronetix").iterdir():
        (package / file.name).symlink_to(file.resolve())
    (package / name).unlink()
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    return Path(shutil.copytree(ROOT / name, package / name, ignore=ignored))


def build_package(folder: Path) -> None:
    """``chronetix.shm`` below ``folder``, built for AddressSanitizer and UndefinedBehaviorSanitizer."""
    package = package_beside(folder, "shm")
    flags = ["-shared", "-fPIC", "-std=c11", *ADDRESS, "-fvisibility=hidden", "-D_GNU_SOURCE"]
    where = [f"-I{sysconfig.get_paths()['include']}", f"-I{INCLUDE}"]
    sources = sorted((ROOT / "shm" / "native").glob("*.c"))
    limited = "-DPy_LIMITED_API=0x030B0000"
    compile_c(["gcc", *flags, limited, *where, *sources, "-o", package / "_native.abi3.so"])


def sanitized_environment(folder: Path) -> dict[str, str]:
    """For a Python that loads that package. Leaks are not looked for: the interpreter itself has some at its end."""
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_sigbus=0",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{folder}:{ROOT}",
    }
