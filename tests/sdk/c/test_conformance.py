"""The conformance kit: a worker in C meets every profile, as it is and with the sanitizers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.sdk.c.build import HERE, library, needs_libcbor, program

pytestmark = needs_libcbor


@pytest.mark.timeout(280)
@pytest.mark.parametrize("kind", ["plain", "address"])
def test_a_worker_in_c_meets_every_profile(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    shared = tmp_path_factory.getbasetemp()
    made = library(shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared, kind)
    worker = program(made, kind, HERE / "programs" / "conformance.c")
    command = [sys.executable, "-m", "chronetixctl", "worker", "test", "-o", "json", str(worker)]
    ended = subprocess.run(command, capture_output=True, text=True)
    told = json.loads(ended.stdout)
    assert [check for check in told["checks"] if check["verdict"] == "failed"] == []
    assert ended.returncode == 0
