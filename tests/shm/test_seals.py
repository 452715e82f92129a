"""Seals: what a peer, in a process of its own, cannot do to a memory that it was sent. Without seals: test_named."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chronetix import shm

PROGRAM = Path(__file__).parent / "programs" / "attacker.py"
MISSING = shm.missing_features()
SHRINK, GROW, FUTURE_WRITE, SEAL = 0x2, 0x4, 0x10, 0x1
ALL = SHRINK | GROW | SEAL | (0 if "future_write" in MISSING else FUTURE_WRITE)
REFUSED = {"EPERM", "EACCES", "EBADF", "EINVAL", "EOPNOTSUPP", "ENOTSUP"}
RESIZING = ("truncate", "grow", "write behind")

pytestmark = pytest.mark.skipif("seals" in MISSING, reason="this kernel has no seals")


@pytest.fixture(params=["ring", "credit", "segment"])
def sealed(request, route) -> tuple[int, str]:
    route.outlet.send(b"payload" * 100)
    fds = {"ring": route.producer.fd, "credit": route.consumer.fd, "segment": route.arena.segments[0][1]}
    return fds[request.param], request.param


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


def test_every_memory_is_sealed_and_accepted(sealed):
    fd, kind = sealed
    assert shm.check(fd, kind) == os.fstat(fd).st_size
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & ALL == ALL


def test_a_peer_can_neither_resize_it_nor_write_to_it(sealed):
    fd, _ = sealed
    before = content(fd)
    command = [sys.executable, PROGRAM, str(fd), str(os.getpid()), str(fd)]
    ended = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    outcomes = json.loads(ended.stdout)
    assert len(outcomes) > 40
    done = {name: how for name, how in outcomes.items() if how not in REFUSED}
    if "future_write" in MISSING:  # then who may open it again can write to it, but still not shorten it
        assert not {name for name in done if name.startswith(RESIZING) or "as sent" in name}
    else:
        assert not done
        assert content(fd) == before


@pytest.mark.skipif("future_write" in MISSING, reason="its seals would be others")
@pytest.mark.parametrize(
    ("seals", "complaint"),
    [
        (0, "not sealed against shrinking growing other writers further seals"),
        (0x17 & ~0x2, "not sealed against shrinking"),
        (0x17 & ~0x4, "not sealed against growing"),
        (0x17 & ~0x10, "not sealed against other writers"),
        (0x17 & ~0x1, "not sealed against further seals"),
    ],
)
def test_memory_without_a_seal_is_refused(forge, seals, complaint):
    memory = forge.memory(4096, seals=seals)
    with pytest.raises(shm.PeerFault, match=complaint):
        shm.check(memory.fd, "segment")
