"""Named memory, for machines without seals: who can open it, who takes the name away, and what happens when somebody
cuts it short. The tests of this folder run on it too: see test_older_kernels.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import posix_ipc
import pytest

from chronetix import shm
from chronetix.shm import names

PROGRAM = Path(__file__).parent / "programs" / "victim.py"
named = pytest.mark.skipif("seals" not in shm.missing_features(), reason="this kernel has seals")


def mine() -> list[str]:
    made_by = {name: names.maker(name) for name in os.listdir(names.FOLDER)}
    return sorted(name for name, maker in made_by.items() if maker and maker.pid == os.getpid())


@pytest.fixture
def leftover(tmp_path):
    """Makes a file with that name in /dev/shm, and takes it away at the end if it is still there."""
    made: list[Path] = []

    def make(name: str) -> Path:
        path = names.FOLDER / name
        path.touch(mode=0o600)
        made.append(path)
        return path

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def name_of(**changes: object) -> str:
    fields = {"boot": names._boot(), "namespace": names._namespace(), "pid": os.getpid(), "started": 0, "number": 7}
    return "chronetix-" + "-".join(map(str, {**fields, **changes}.values()))


@named
def test_each_memory_is_a_file_that_only_its_user_can_open(route):
    paths = [names.locate(fd) for fd in (route.producer.fd, route.consumer.fd, route.arena.segments[0][1])]
    assert sorted(os.path.basename(path) for path in paths) == mine()
    assert {os.stat(path).st_mode for path in paths} == {0o100600}


@named
def test_what_is_handed_out_can_only_be_read(route):
    for fd in (route.producer.fd, route.consumer.fd, route.arena.segments[0][1]):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError, match="Invalid argument"):
            os.truncate(fd, 0)


@named
def test_names_go_with_what_they_name():
    arena = shm.Arena()
    producer, consumer = shm.Producer(arena, "r"), shm.Consumer("r")
    assert len(mine()) == 3
    del producer, consumer
    assert len(mine()) == 1
    arena.close()
    assert mine() == []


@named
def test_a_forked_child_takes_no_names_away(route):
    before = mine()
    pid = os.fork()
    if pid == 0:
        for name in route.__slots__:
            setattr(route, name, None)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert mine() == before


@named
def test_memory_that_others_could_open_is_refused(forge):
    memory = forge.memory(4096)
    os.fchmod(memory.fd, 0o640)
    with pytest.raises(shm.PeerFault, match="mode 0640: only its user may have it open"):
        shm.check(memory.fd, "segment")


@named
@pytest.mark.parametrize("what", ["ring", "segment"])
def test_a_reader_survives_memory_that_is_cut_short(route, forge, what):
    ring, segment = forge.ring(4), forge.memory(1 << 16)
    segment.map[:4] = b"full"
    ring.describe(0, length=4)
    near, far = shm.line()
    fds = (ring.fd, segment.fd, far)
    command = [sys.executable, PROGRAM, *map(str, fds)]
    with subprocess.Popen(command, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdin
        assert victim.stdout
        assert victim.stdout.readline() == "taken\n"
        os.truncate({"ring": ring.fd, "segment": segment.fd}[what], 0)
        victim.stdin.write("go on\n")
        victim.stdin.flush()
        said = victim.stdout.read().splitlines()
    os.close(near)
    os.close(far)
    assert victim.returncode == 0
    lost = b"full" if what == "ring" else bytes(4)
    assert said == [f"content {lost!r}", "route cut: its shared memory was cut short"]


@named
@pytest.mark.parametrize("what", ["ring", "credit", "segment"])
def test_a_writer_survives_memory_that_is_cut_short(make_route, what):
    route, other = make_route(), make_route()
    route.outlet.send(b"before" * 1000)
    fd = {"ring": route.producer.fd, "credit": route.consumer.fd, "segment": route.arena.segments[0][1]}[what]
    os.truncate(names.locate(fd), 0)
    for _ in range(8):
        try:
            route.outlet.send(b"after" * 1000, 0)
        except (shm.PeerFault, shm.WouldBlock):
            break
    with pytest.raises(shm.PeerFault, match="route r0: its shared memory was cut short"):
        route.outlet.send(b"at last", 0)
    other.outlet.send(b"well")
    assert bytes(other.take()) == b"well"


@named
def test_a_bus_error_anywhere_else_ends_the_process_as_ever():
    ended = subprocess.run([sys.executable, PROGRAM, "elsewhere"], capture_output=True)
    assert ended.returncode == -signal.SIGBUS


def test_any_memory_can_be_opened_by_where_it_is(make_route):
    """For a runtime that cannot receive descriptors."""
    route = make_route()
    paths = [names.locate(fd) for fd in (route.producer.fd, route.consumer.fd, route.arena.segments[0][1])]
    for path, kind in zip(paths, ("ring", "credit", "segment"), strict=True):
        fd = names.open_memory(path)
        try:
            assert shm.check(fd, kind) == os.fstat(fd).st_size  # type: ignore[arg-type]
        finally:
            os.close(fd)


def test_a_pipe_in_place_of_memory_is_refused_and_holds_nobody_up(tmp_path):
    """Opened as a pipe is, it would wait for a writer, and nobody is one."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    fd = names.open_memory(str(tmp_path / "pipe"))
    try:
        with pytest.raises(shm.PeerFault):
            shm.check(fd, "segment")
    finally:
        os.close(fd)


def test_a_sweep_that_may_not_take_away_says_so(monkeypatch, leftover):
    """As where /dev/shm can be read and not written."""

    def refuse(name: str) -> None:
        raise posix_ipc.PermissionsError("Permission denied")

    path = leftover(name_of(started=1))
    monkeypatch.setattr(names.posix_ipc, "unlink_shared_memory", refuse)
    monkeypatch.setattr(names, "abandoned", lambda: [path.name])
    with pytest.raises(PermissionError) as refused:
        names.sweep()
    assert refused.value.filename == str(path)


def test_a_name_that_another_sweep_takes_first_is_not_told_twice(monkeypatch, leftover):
    path = leftover(name_of(started=1))
    unlink = posix_ipc.unlink_shared_memory

    def second(name: str) -> None:
        path.unlink()
        unlink(name)

    monkeypatch.setattr(names.posix_ipc, "unlink_shared_memory", second)
    monkeypatch.setattr(names, "abandoned", lambda: [path.name])
    assert names.sweep() == []


def test_a_sweep_takes_away_what_the_dead_have_left(leftover):
    child = subprocess.Popen(["true"])
    child.wait()
    dead = [
        leftover(name_of(pid=child.pid, started=1)),
        leftover(name_of(started=1)),  # the number is this process's, but not the time
        leftover(name_of(boot="0123456789ab")),
    ]
    names.sweep()  # a daemon of another test may sweep at the same time
    assert not [path for path in dead if path.exists()]


def test_a_sweep_leaves_what_may_be_in_use(leftover):
    kept = [
        leftover(name_of(started=names._started(os.getpid()))),
        leftover(name_of(namespace=1, started=1)),
        leftover("chronetix-somebody-else"),
        leftover("another-chronetix-1-2-3-4-5"),
    ]
    names.sweep()
    assert all(path.exists() for path in kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_sweep_leaves_what_is_another_users(leftover):
    path = leftover(name_of(started=1))
    os.chown(path, 12345, -1)
    assert path.name not in names.sweep()
    assert path.exists()


KILLED = """
import os, signal, shm
arena = shm.Arena()
kept = [arena, shm.Producer(arena, "r"), shm.Consumer("r")]
os.kill(os.getpid(), signal.SIGKILL)
"""


@named
def test_what_a_killed_process_leaves_is_swept():
    killed = subprocess.Popen([sys.executable, "-c", KILLED])
    assert killed.wait() == -signal.SIGKILL
    names.sweep()
    assert not [name for name in os.listdir(names.FOLDER) if f"-{killed.pid}-" in name]
