"""Machines and processes that have run out: making a memory fails with what it was, and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chronetix import shm
from tests.shm.sanitize import ROOT, build, run

PROGRAM = Path(__file__).parent / "programs" / "short_of.py"
CALLS = [
    *("malloc", "calloc", "realloc", "memfd_create", "fallocate", "mmap", "fcntl", "open"),
    *("eventfd", "epoll_create1", "epoll_ctl", "socketpair"),
]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_whatever_fails_first_nothing_is_left(tmp_path):
    """Every call that can fail, each in turn, in C and under AddressSanitizer."""
    told = run(build("exhausted", "address", tmp_path, *(f"-Wl,--wrap={call}" for call in CALLS)))
    assert int(told.split()[0]) > 100


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("descriptors", "OSError: [Errno 24] Too many open files"),
        ("file_size", "OSError: [Errno 27] File too large"),
        ("address_space", "MemoryError: cannot reserve"),
        ("shared_memory", "MemoryError: cannot reserve"),
    ],
)
def test_a_process_that_is_short_of_something_is_told_of_what(what, complaint):
    if what == "shared_memory" and "seals" not in shm.missing_features():
        pytest.skip("sealed memory has no size of its own to be short of")
    ended = subprocess.run([sys.executable, PROGRAM, what], cwd=ROOT, capture_output=True, text=True)
    if ended.stdout == "not allowed\n":
        pytest.skip("mounting takes root")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = dict(line.split(": ", 1) for line in ended.stdout.splitlines())
    assert list(said) == ["arena", "producer", "consumer", "growth"]
    assert {name: text for name, text in said.items() if not text.startswith(complaint)} == {}


ENDLESS = """
import resource, shm
arena = shm.Arena(1 << 20)
bell, producer, consumer = shm.Doorbell(), shm.Producer(arena, "r", credits=4), shm.Consumer("r", credits=4)
producer.link(consumer.fd, shm.line()[0], bell)
outlet = shm.Outlet([producer], bell)
outlet.send(b"one", 0)
kept = bytearray(1 << 16)
del kept
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
print(shm.remains(producer.fd))
try:
    shm.RouteView(producer.fd, consumer.fd)
except MemoryError as reason:
    print(reason)
"""


def test_where_a_ring_ends_is_told_without_room_to_map_it(tmp_path):
    ended = subprocess.run([sys.executable, "-c", ENDLESS], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    remains, complaint = ended.stdout.splitlines()
    assert remains == "(1, 0)"
    assert complaint.startswith("cannot map a peer's shared memory: free some memory, or raise the limit")
