"""``make mutants``: changes one thing at a time in the code, and looks whether the tests of that folder notice.

    python -m tests.mutants [--count N] [--seed N] [--areas core,cbor,…] [--only PATH]

A mutant that survives is a line that no test stands for, or one that means the same either way; which, a person
decides. Every change is made in a copy, and tests run in namespaces of their own: the copy is all that they can write
to, and they see no process and no shared memory but theirs. A mutant of what ends processes or removes files would
otherwise end and remove others'.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest

from tests.mutants.sites import Mutant, mutants

ROOT = Path(__file__).parents[2]
PATIENCE = 4
"""How many times as long as all of its area's tests a mutant may take before it counts as one that stands still."""


AREAS = {
    "core": ("chronetixd/core/**/*.py",),
    "protocol": ("protocol/**/*.py",),
    "cbor": ("protocol/native/*.c",),
    "compile": ("chronetixd/compile/*.py",),
    "worker": ("nodeworker/**/*.py",),
    "daemon": ("chronetixd/*.py", "chronetixd/[!c]*/*.py", "chronetixd/control/**/*.py"),
    "ctl": ("chronetixctl/*.py",),
}
"""What a sample is drawn from, in equal parts."""

ELSEWHERE = {"chronetixd/compile": "tests/compile"}
"""Tests that do not lie where their code does."""

SEARCH = ("test_wiring_search.py",)
"""Minutes of play over the tables of core/wiring."""

PRELUDE = """
set -e
mount --bind "$COPY" "$COPY"
mount -o remount,bind,ro /
mount -t tmpfs none /dev/shm
for groups in $(findmnt -rno TARGET -t cgroup,cgroup2); do mount -o remount,bind,ro "$groups"; done
cd "$COPY"
# The shell stays, as the init that orphans come to; it ignores these signals for what it starts in the background.
env --default-signal=INT,QUIT "$@"
"""


class Copy:
    """A copy of the checkout, in which one mutant after the other is put."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)  # other users come in as they do into a clone
        self.folder = folder / "tree"
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        built = [str(path.relative_to(ROOT)) for path in ROOT.glob("*/*.so")]
        for name in filter(os.path.lexists, [*filter(None, listed), *built]):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.folder / name, follow_symlinks=False)
        (self.folder / "tmp").mkdir()

    def run(self, tests: list[str], patience: float | None = None) -> tuple[bool, str]:
        """Whether the tests pass, and the end of what they print."""
        where = {"COPY": str(self.folder), "PYTHONPATH": str(self.folder), "TMPDIR": str(self.folder / "tmp")}
        apart = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        tested = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            "--no-header",
        ]
        # Not tempfile's folder: the kernel takes no longer a path for a socket than 107 characters.
        command = [*apart, "sh", "-c", PRELUDE, "sh", *tested, "--basetemp", str(self.folder / "t"), *tests]
        try:
            ended = subprocess.run(command, env=os.environ | where, capture_output=True, text=True, timeout=patience)
        except subprocess.TimeoutExpired:
            return False, "stood still"
        if ended.returncode in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
            sys.exit(f"pytest ended with {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
        failed = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return ended.returncode == 0, failed[0] if failed else (ended.stdout + ended.stderr)[-300:]

    def put(self, path: Path, source: str) -> str | None:
        """Write a file, and build its extension if it is C. What the compiler says when it takes it for wrong."""
        (self.folder / path).write_text(source)
        if path.suffix != ".c":
            return None
        flags = [
            "-std=c11",
            "-O1",
            "-shared",
            "-fPIC",
            "-D_GNU_SOURCE",
            "-DPy_LIMITED_API=0x030B0000",
            "-Wall",
            "-Werror",
        ]
        sources = sorted(str(file) for file in (self.folder / path.parent).glob("*.c"))
        made = self.folder / "protocol" / "_cbor.abi3.so"
        command = ["cc", *flags, f"-I{sysconfig.get_path('include')}", *sources, "-o", str(made)]
        ended = subprocess.run(command, capture_output=True, text=True)
        return ended.stderr if ended.returncode else None


def main() -> int:
    """Run the sample; 0 whatever survives."""
    wanted = arguments()
    chance = random.Random(wanted.seed)
    print(f"seed {wanted.seed}")
    left = {name: sample(AREAS[name], wanted.only, chance) for name in wanted.areas}
    results = {name: [0, 0] for name in wanted.areas}
    with tempfile.TemporaryDirectory(prefix="cxm-", dir="/tmp") as folder:
        run = Run(Copy(Path(folder)), wanted.near)
        for number in range(wanted.count):
            name = wanted.areas[number % len(wanted.areas)]
            caught = run.next_of(left[name])
            if caught is not None:
                results[name][not caught] += 1
    for name, (caught, survived) in results.items():
        print(f"{name:<10} caught {caught:>3}  survived {survived:>3}")
    total, survived = (sum(column) for column in zip(*results.values(), strict=True))
    print(f"{total} of {total + survived} were caught")
    return 0


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--areas", type=lambda text: text.split(","), default=list(AREAS))
    parser.add_argument("--near", action="store_true", help="only tests that speak of the module: quick, and too harsh")
    parser.add_argument("--only", default="", help="files whose path has this in it")
    wanted = parser.parse_args()
    if unknown := set(wanted.areas) - set(AREAS):
        parser.error(f"no area {', '.join(unknown)}; there are {', '.join(AREAS)}")
    return wanted


def sample(code: tuple[str, ...], only: str, chance: random.Random) -> list[Mutant]:
    """All mutants of an area, in the order of chance."""
    files = [path.relative_to(ROOT) for pattern in code for path in sorted(ROOT.glob(pattern))]
    found = [mutant for path in files if only in str(path) for mutant in mutants(ROOT, path)]
    chance.shuffle(found)
    return found


class Run:
    """Plays mutants, and knows how long tests take without any."""

    def __init__(self, copy: Copy, near: bool) -> None:
        self._copy = copy
        self._near = near
        self._took: dict[tuple[str, ...], float] = {}

    def next_of(self, left: list[Mutant]) -> bool | None:
        """Put the next mutant in, run its tests and take it out again. Whether they failed; None when none is left.

        One that no compiler takes is none.
        """
        while left:
            mutant = left.pop()
            source = (self._copy.folder / mutant.path).read_text()
            tests = ordered(mirror_of(mutant.path), mutant.path, self._near)
            patience = PATIENCE * self._unchanged(tests) + 60
            try:
                if self._copy.put(mutant.path, mutant.applied(source)) or unreadable(mutant, source):
                    continue
                passed, told = self._copy.run(tests, patience)
            finally:
                self._copy.put(mutant.path, source)
            print(f"{'SURVIVED' if passed else 'caught'}  {mutant.path}:{mutant.line}\n{mutant.shown(source)}")
            print("" if passed else f"  {told}\n", flush=True)
            return not passed
        return None

    def _unchanged(self, tests: list[str]) -> float:
        """How many seconds tests take; they must pass."""
        key = tuple(sorted(tests))
        if key not in self._took:
            began = time.monotonic()
            passed, told = self._copy.run(tests)
            if not passed:
                sys.exit(f"without any mutant fail {', '.join(tests)}:\n{told}")
            self._took[key] = time.monotonic() - began
        return self._took[key]


def mirror_of(path: Path) -> Path:
    """The folder of tests that mirrors where a file lies, or the nearest above that has any."""
    for folder in path.parents:
        mirrored = Path(ELSEWHERE.get(str(folder), Path("tests") / folder))
        if any((ROOT / mirrored).glob("test_*.py")):
            return mirrored
    raise LookupError(f"no tests for {path}")


def unreadable(mutant: Mutant, source: str) -> bool:
    """Whether Python does not take the mutant for a program."""
    if mutant.path.suffix != ".py":
        return False
    try:
        compile(mutant.applied(source), str(mutant.path), "exec")
    except SyntaxError:
        return True
    return False


def ordered(tests: Path, path: Path, near: bool) -> list[str]:
    """The files of a folder of tests, those first that speak of the module; a search only for what it searches."""
    files = [
        file for file in sorted((ROOT / tests).glob("test_*.py")) if file.name not in SEARCH or "wiring" in str(path)
    ]
    ranked = sorted(files, key=lambda file: (file.name in SEARCH, path.stem not in file.read_text()))
    speaking = [file for file in ranked if path.stem in file.read_text() and file.name not in SEARCH]
    return [str(file.relative_to(ROOT)) for file in (speaking if near and speaking else ranked)]


if __name__ == "__main__":
    sys.exit(main())
