"""``make mutants``: changes one thing at a time in the code, and looks whether the tests notice.

    python -m tests.mutants [--count N] [--seed N] [--areas core,cbor,…] [--only PATH]

A mutant that survives is a line that no test stands for, or one that means the same either way; which, a person
decides, and writes it into equivalent.py. Tests that are for the module run first, in a pytest of their own, and the
rest of its folder only for what they have not noticed. A test that fails counts only when it passes without the mutant.

Every change is made in a copy, and tests run in namespaces of their own: the copy is all that they can write to, and
they see no process and no shared memory but theirs. A mutant of what ends processes or removes files would otherwise
end and remove others'.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.sites import Mutant, mutants

ROOT = Path(__file__).parents[2]
PATIENCE_S = 1800
"""How long the tests of one mutant may take before it counts as one that stands still."""
TEST_PATIENCE_S = 120
"""And one test. (Where that is the machine's fault, the test fails without the mutant too.)"""


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

BESIDE = {
    "protocol/native/": ("tests/protocol/test_cbor.py", "tests/protocol/test_cbor_edges.py"),
    "protocol/contract/": ("tests/protocol/test_contract_flow.py", "tests/protocol/test_contract_limits.py"),
    "chronetixctl/": ("tests/chronetixctl/test_commands.py", "tests/chronetixctl/test_plain_output.py"),
    "chronetixd/compile/": ("tests/compile/test_defaults.py", "tests/compile/test_problems.py"),
    "nodeworker/api/": ("tests/nodeworker/test_testing.py",),
    "nodeworker/engine/": ("tests/nodeworker/test_worker.py", "tests/nodeworker/test_testing.py"),
    "nodeworker/engine/async": ("tests/nodeworker/test_async.py",),
    "nodeworker/inprocess/": ("tests/nodeworker/test_testing.py", "tests/nodeworker/test_inproc.py"),
    "nodeworker/process/": ("tests/nodeworker/test_worker.py",),
    "chronetixd/core/wiring/": (
        "tests/chronetixd/dataplane/test_wiring.py",
        "tests/chronetixd/dataplane/test_succession.py",
        "tests/chronetixd/dataplane/test_adoption.py",
    ),
    "chronetixd/flows/recovery.py": ("tests/e2e/test_daemon_loss.py", "tests/e2e/test_kept_memory.py"),
    "chronetixd/flows/rollout.py": ("tests/e2e/test_rollouts.py", "tests/e2e/test_rollout_loss.py"),
    "chronetixd/flows/run.py": ("tests/e2e/test_running.py", "tests/e2e/test_restarts.py"),
    "chronetixd/flows/standby.py": ("tests/e2e/test_restarts.py",),
    "chronetixd/flows/worker_messages.py": ("tests/e2e/test_daemon_loss.py", "tests/e2e/test_restarts.py"),
    "chronetixd/upgrade/sequence.py": ("tests/e2e/test_upgrade.py",),
    "chronetixd/upgrade/rehearsal.py": ("tests/e2e/test_upgrade.py",),
    "nodeworker/process/reattach.py": ("tests/e2e/test_daemon_loss.py",),
}
"""Tests that a module is tried by, where neither their place nor their text says so; by the beginning of its path."""

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
        """Whether the tests pass, and which one did not, or the end of what they print."""
        where = {"COPY": str(self.folder), "PYTHONPATH": str(self.folder), "TMPDIR": str(self.folder / "tmp")}
        apart = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        tested = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "--no-header", f"--timeout={TEST_PATIENCE_S}"]
        tested += ["-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-profile=mutants"]
        # Not tempfile's folder: the kernel takes no longer a path for a socket than 107 characters.
        command = [*apart, "sh", "-c", PRELUDE, "sh", *tested, "--basetemp", str(self.folder / "t"), *tests]
        try:
            ended = subprocess.run(command, env=os.environ | where, capture_output=True, text=True, timeout=patience)
        except subprocess.TimeoutExpired:
            return False, "stood still"
        if ended.returncode in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
            sys.exit(f"pytest ended with {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
        failed = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
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
    print(f"{total} of {total + survived} were caught; {run.equivalent} that mean the same were left out")
    return 0


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--areas", type=lambda text: text.split(","), default=list(AREAS))
    parser.add_argument("--near", action="store_true", help="only tests that are for the module: quick, and too harsh")
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
    """Plays mutants, and knows which tests pass without any."""

    def __init__(self, copy: Copy, near: bool) -> None:
        self._copy = copy
        self._near = near
        self._sound: set[str] = set()
        self.equivalent = 0
        """How many were left out because they mean the same."""

    def next_of(self, left: list[Mutant]) -> bool | None:
        """Put the next mutant in, run its tests and take it out again. Whether they failed; None when none is left.

        One that no compiler takes is none, nor one that means the same.
        """
        while left:
            mutant = left.pop()
            source = (self._copy.folder / mutant.path).read_text()
            if key(mutant, source) in EQUIVALENT:
                self.equivalent += 1
                continue
            near, rest = chosen(mutant.path)
            told = None
            try:
                if unreadable(mutant, source) or self._copy.put(mutant.path, mutant.applied(source)):
                    continue
                for tests in [near[:2], near[2:], [] if self._near and near else rest]:
                    told = told or self._noticed(tests, mutant, source)
            finally:
                self._copy.put(mutant.path, source)
            print(f"{'caught' if told else 'SURVIVED'}  {mutant.path}:{mutant.line}\n{mutant.shown(source)}")
            print(f"  {told}\n" if told else "", flush=True)
            return told is not None
        return None

    def _noticed(self, tests: list[str], mutant: Mutant, source: str) -> str | None:
        """What fails with the mutant and does not without; None when nothing does."""
        while tests:
            passed, told = self._copy.run(tests, PATIENCE_S)
            if passed:
                return None
            name = re.match(r"(?:FAILED|ERROR) (.*?)(?: - .*)?$", told)
            failed = [name[1]] if name else tests
            if not self._sound.issuperset(failed):
                self._copy.put(mutant.path, source)
                sound, without = self._copy.run(failed)
                self._copy.put(mutant.path, mutant.applied(source))
                if not sound:
                    print(f"  without any mutant: {without}", flush=True)
                    tests = [each for each in tests if not failed[0].startswith(each)]
                    continue
                self._sound.update(failed)
            return told
        return None


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


@cache
def test_texts() -> dict[Path, str]:
    """The texts of all files of tests, by their paths."""
    return {file: file.read_text() for file in sorted((ROOT / "tests").rglob("test_*.py"))}


def chosen(path: Path) -> tuple[list[str], list[str]]:
    """The files of tests that are for a module, nearest first, and the others that lie where it is mirrored.

    Nearest is the one with the module's name, then come those of BESIDE, those of its folder that import it, and other
    folders'; of the others first those that name it. A search is only for what it searches.
    """
    folder = ROOT / mirror_of(path)
    module = re.escape(".".join(path.with_suffix("").parts))
    imports = re.compile(
        rf"\b(?:chronetix\.)?{module}\b|from (?:chronetix\.)?{module.rpartition('.')[0]} import .*\b{path.stem}\b"
    )

    own, above = path.stem, path.parent.name
    mirrored = {f"test_{name}" for name in (own, f"{own}s", above, f"{above}_{own}")}

    def rank(file: Path) -> int | None:
        if file.name in SEARCH and "wiring" not in str(path):
            return None
        if file.name in SEARCH:
            return 7
        beside = any(str(path).startswith(start) and str(file.relative_to(ROOT)) in BESIDE[start] for start in BESIDE)
        within, text = folder in file.parents, texts[file]
        if within and file.stem in mirrored:
            return 0
        if beside:
            return 1
        if path.stem in text and imports.search(text):
            return 2 if within else 4
        if within:
            return 5 if re.search(rf"\b{path.stem}\b", text) else 6
        return None

    texts = test_texts()
    ranks = {file: rank(file) for file in texts}
    ranked = sorted((place, str(file.relative_to(ROOT))) for file, place in ranks.items() if place is not None)
    return [file for place, file in ranked if place < 5], [file for place, file in ranked if place >= 5]


def key(mutant: Mutant, source: str) -> tuple[str, str]:
    """What a mutant is known by, whatever stands above it: its file, and its lines without their indents."""
    return str(mutant.path), "\n".join(line[0] + line[1:].strip() for line in mutant.shown(source).split("\n"))


if __name__ == "__main__":
    sys.exit(main())
