"""The tests of this folder again, on a kernel from which a feature was taken away: those of memory and of wiring, or
all of them with ``make sanitize``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chronetix import shm
from tests.shm.sanitize import SCALE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MEMORY = ["test_memory.py", "test_seals.py", "test_named.py", "test_arena.py"]
NOT_AGAIN = ["test_native.py", "test_older_kernels.py", "test_sanitized_extension.py"]
EVERYTHING = sorted(path.name for path in HERE.glob("test_*.py") if path.name not in NOT_AGAIN)
WIRED = ["test_frames.py", "test_fan.py", "test_waiting.py", "test_hostile.py", "test_exhausted.py", "test_fork.py"]


@pytest.mark.timeout(300 * SCALE)
@pytest.mark.parametrize(
    ("without", "tests"),
    [
        ("memfd", MEMORY + WIRED if SCALE == 1 else EVERYTHING),
        ("seals", MEMORY),
        ("future_write", MEMORY),
        ("noexec_seal", MEMORY),
        ("shut_rings", WIRED),
        ("shut_rings,passrights", WIRED),
    ],
)
def test_the_same_holds_without(without, tests):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/shm/{t}" for t in tests)]
    env = {**os.environ, "CHRONETIX_WITHOUT": without}
    env.pop("PYTEST_XDIST_WORKER", None)
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-6000:]
    assert " passed" in ended.stdout


@pytest.mark.parametrize(
    ("without", "missing"),
    [
        ("memfd", ("memfd", "seals", "future_write")),
        ("seals,noexec_seal", ("seals", "future_write", "noexec_seal")),
        ("future_write", ("future_write",)),
        ("seal,memfds", ()),
    ],
)
def test_what_is_missing_is_told(without, missing):
    program = "from chronetix import shm; print(*shm.missing_features())"
    env = {**os.environ, "CHRONETIX_WITHOUT": without}
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    here = set(shm.missing_features())
    assert set(told.stdout.split()) - here == set(missing) - here
