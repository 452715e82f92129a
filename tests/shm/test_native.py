"""The headers without Python, under the sanitizers: a worker in C, a mad peer, the allocator; each compiled and run."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.shm.sanitize import INCLUDE, SCALE, STRICT, build, compile_c, run

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


@pytest.mark.timeout(120 * SCALE)
@pytest.mark.parametrize(("kind", "frames"), [("plain", 30_000), ("address", 10_000), ("thread", 3_000)])
def test_a_worker_in_c_sends_and_receives(tmp_path, kind, frames):
    program = build("stress", kind, tmp_path)
    run(program, frames * SCALE, 0)
    run(program, frames * SCALE, frames * SCALE // 2)


@pytest.mark.timeout(120 * SCALE)
@pytest.mark.parametrize("kind", ["plain", "address"])
def test_whatever_a_mad_peer_writes_the_other_end_reports_it_and_lives(tmp_path, kind):
    told = run(build("hostile", kind, tmp_path), 300 * SCALE, SCALE + 1)
    faults = {name: int(count) for name, count in re.findall(r"(\w+) (\d+) faults", told)}
    assert faults["consumer"]
    assert faults["producer"]


@pytest.mark.timeout(120 * SCALE)
def test_random_memory_harms_no_reader(tmp_path):
    """The targets of ``make fuzz``, for a moment and without its guidance."""
    run(build("fuzz", "address", tmp_path, "-DALONE"), 5000 * SCALE, SCALE)


@pytest.mark.timeout(120 * SCALE)
@pytest.mark.parametrize("kind", ["plain", "address"])
def test_extents_have_one_owner(tmp_path, kind):
    run(build("arena", kind, tmp_path))


@pytest.mark.parametrize("header", sorted(path.name for path in (INCLUDE / "chronetix").glob("*.h")))
def test_every_header_stands_alone(tmp_path, header):
    source = tmp_path / "alone.c"
    source.write_text(f"#include <chronetix/{header}>\n#include <chronetix/{header}>\nint main(void) {{ return 0; }}\n")
    compile_c(["gcc", *STRICT, "-O1", f"-I{INCLUDE}", source, "-o", tmp_path / "alone", "-lpthread"])
