"""The tests of this folder again, with an extension built for AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.shm.sanitize import ROOT, SCALE, build_package, sanitized_environment

HERE = ROOT / "tests" / "shm"
SHORT = ["test_hostile.py", "test_memory.py", "test_frames.py", "test_batches.py", "test_threads.py", "test_fork.py"]
NOT_AGAIN = ["test_native.py", "test_older_kernels.py", "test_sanitized_extension.py"]
LONG = sorted(path.name for path in HERE.glob("test_*.py") if path.name not in NOT_AGAIN)

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


@pytest.mark.timeout(600)
def test_the_extension_does_no_harm_to_itself(tmp_path):
    build_package(tmp_path)
    env = sanitized_environment(tmp_path)
    where = [sys.executable, "-c", "import chronetix.shm._native; print(chronetix.shm._native.__file__)"]
    loaded = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert loaded.stdout.strip() == f"{tmp_path}/chronetix/shm/_native.abi3.so", loaded.stderr
    pytest_options = ["-q", "-x", "-p", "no:cacheprovider", "-o", f"pythonpath={tmp_path} ."]
    tests = [f"tests/shm/{name}" for name in (SHORT if SCALE == 1 else LONG)]
    command = [sys.executable, "-m", "pytest", *pytest_options, *tests]
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-6000:]
    assert " passed" in ended.stdout
