"""Whose a stray is, and what happens when we may not end it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chronetixd.linux.proc import Holdings, Stat, children, descendants, holdings, private_data, stat
from chronetixd.workers import orphans as module
from chronetixd.workers.orphans import Marks, Orphans

NOTHING = Holdings(frozenset(), frozenset(), "", "")


def marks(**more: Any) -> Marks:
    return Marks("f", "n", pid=100, started=50, pipes=frozenset({7}), **more)


def process(pid: int = 200, group: int = 200, session: int = 200, started: int = 60) -> Stat:
    return Stat(pid, "S", 1, group, session, started, 0)


@pytest.mark.parametrize(
    ("found", "held"),
    [
        (process(session=100), NOTHING),
        (process(group=100), NOTHING),
        (process(), Holdings(frozenset({7, 8}), frozenset(), "", "")),
        (process(), Holdings(frozenset(), frozenset({9}), "", "")),
        (process(), Holdings(frozenset(), frozenset(), "f", "n")),
        (process(pid=300, started=61), NOTHING),
    ],
)
def test_a_stray_shows_whose_it_is_by_any_one_mark(found: Stat, held: Holdings) -> None:
    assert marks(memory={9}, doomed={(300, 61)}).match(found, held)


@pytest.mark.parametrize(
    ("found", "held"),
    [
        (process(), NOTHING),
        (process(pid=300, started=62), NOTHING),
        (process(), Holdings(frozenset({8}), frozenset({10}), "f", "other")),
        (process(), Holdings(frozenset(), frozenset(), "g", "n")),
    ],
)
def test_other_processes_show_nothing(found: Stat, held: Holdings) -> None:
    assert not marks(memory={9}, doomed={(300, 61)}).match(found, held)


HOLDER = """
import os, mmap, sys
fd = os.memfd_create("held")
os.ftruncate(fd, 4096)
kept = mmap.mmap(fd, 4096)
print(os.fstat(fd).st_ino, flush=True)
os.close(fd)
sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[bytes]]:
    env = {"CHRONETIX_FLOW": "the flow", "CHRONETIX_NODE": "the node"}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as started:
        yield started


def test_what_a_process_holds_is_read_from_outside(holder: subprocess.Popen[bytes]) -> None:
    assert holder.stdin is not None
    assert holder.stdout is not None
    memory = int(holder.stdout.readline())
    pipes = {os.fstat(holder.stdin.fileno()).st_ino, os.fstat(holder.stdout.fileno()).st_ino}
    held = holdings(holder.pid)
    assert held.pipes >= pipes
    assert memory in held.memory
    assert (held.flow, held.node) == ("the flow", "the node")
    assert private_data(holder.pid) > 0
    found = stat(holder.pid)
    assert found is not None
    assert found.parent == os.getpid()
    assert holder.pid in children(os.getpid())
    assert holder.pid in [each.pid for each in descendants(os.getpid())]


def test_of_a_process_that_is_gone_there_is_nothing() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert stat(child.pid) is None
    assert holdings(child.pid) == NOTHING
    assert list(children(child.pid)) == []


def test_children_are_found_without_help_of_the_kernel(
    holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONFIG_PROC_CHILDREN may be off."""

    def gone(*_: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(module.os, "scandir", gone)
    assert holder.pid in children(os.getpid())


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0)


async def end(orphans: Orphans, *marks: Marks) -> None:
    """Wait for the end of what carries one of ``marks``."""
    gone = [asyncio.Event() for _ in marks]
    for each, event in zip(marks, gone, strict=True):
        orphans.end(each, event.set)
    for event in gone:
        await event.wait()


def test_the_ends_of_many_workers_are_looked_for_together(loop: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it costs does not grow with how many there are."""
    looks: list[int] = []

    def counted(pid: int) -> Iterator[int]:
        looks.append(pid)
        return iter(())

    monkeypatch.setattr(module, "children", counted)
    orphans = Orphans(loop, set, lambda: True)
    run(end(orphans, *(Marks("f", f"n{number}", number, 1, frozenset()) for number in range(2, 1000))))
    assert len(looks) == 1


def test_one_that_we_may_not_end_is_reported_once_and_not_waited_for(
    loop: Any, run: Any, monkeypatch: pytest.MonkeyPatch, holder: subprocess.Popen[bytes]
) -> None:
    """A setuid program, for a daemon that is not root and has no cgroup."""
    tried: list[int] = []

    def refused(found: Stat) -> bool:
        tried.append(found.pid)
        return False

    monkeypatch.setattr(module, "kill_exactly", refused)
    known = set(children(os.getpid())) - {holder.pid}
    orphans = Orphans(loop, lambda: known, lambda: True)
    run(end(orphans, Marks("the flow", "the node", 1, 1, frozenset())))
    run(end(orphans, Marks("the flow", "the node", 2, 1, frozenset())))
    run(orphans.stop())
    assert tried == [holder.pid]


def test_one_that_is_not_announced_is_neither_reaped_nor_ended(loop: Any, run: Any) -> None:
    """The launcher has forked it, and its word is under way."""
    known = set(children(os.getpid()))
    announced: list[bool] = []
    orphans = Orphans(loop, lambda: known, lambda: bool(announced))
    dead, living = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "1000"])
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    orphans.look()
    assert (orphans.reaped, orphans.ended) == (0, 0)
    assert dead.wait() == 0
    announced.append(True)
    orphans.look()
    assert orphans.ended == 1
    assert living.wait() == -signal.SIGKILL


def test_a_stray_of_a_living_worker_is_left_and_so_is_one_that_may_be(
    loop: Any, run: Any, holder: subprocess.Popen[bytes]
) -> None:
    assert holder.stdout is not None
    holder.stdout.readline()  # before, the kernel may not have put its environment in place yet
    known = set(children(os.getpid())) - {holder.pid}
    found = stat(holder.pid)
    assert found is not None
    orphans = Orphans(loop, lambda: known, lambda: True)
    older = Marks("other", "node", 1, found.started, frozenset())
    younger = Marks("the flow", "the node", 2, found.started + 1, frozenset())
    orphans.add_worker(older)
    orphans.add_worker(younger)
    orphans.look()
    told: list[str] = []
    orphans.end(older, lambda: told.append("older"))
    orphans.look()
    assert orphans.ended == 0
    orphans.end(younger, lambda: told.append("younger"))
    orphans.look()
    assert orphans.ended == 1
    assert holder.wait() == -signal.SIGKILL
    run(until(lambda: "younger" in told))
    assert told == ["older", "younger"]
