"""What a worker has sent and nobody takes is closed, and nobody waits for that."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from chronetixd.loop import closing
from tests.chronetixd.loop.test_inspection import lingering


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes what keeps a lingering socket first, then waits for those who close."""
    with ExitStack() as stack:
        yield stack
    for thread in threading.enumerate():
        if thread.name == "closer":
            thread.join()


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_memory_is_closed_at_once() -> None:
    fds = [os.memfd_create("memory"), os.memfd_create("more")]
    closing.close(*fds)
    assert not any(map(is_open, fds))


def test_what_may_wait_is_closed_by_somebody_else(opened: ExitStack) -> None:
    read, write = os.pipe()
    closing.close(*(lingering(opened).detach() for _ in range(3)), read)
    gone = select.poll()
    gone.register(write, 0)
    assert gone.poll(60_000) == [(write, select.POLLERR)]  # behind three that wait
    os.close(write)


def test_no_more_than_some_wait_at_a_time(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "MOST", 2)
    before = threading.active_count()
    closing.close(*(lingering(opened).detach() for _ in range(4)))
    assert threading.active_count() <= before + 2


def test_nor_is_a_socket_whose_unread_bytes_bring_one_along(opened: ExitStack) -> None:
    ours, theirs = socket.socketpair()
    opened.enter_context(theirs)
    with lingering(opened) as sock:
        socket.send_fds(theirs, [b"x"], [sock.fileno()])
    closing.close_socket(ours)
    assert [thread for thread in threading.enumerate() if thread.name == "closer"]


def test_large_memory_is_freed_by_somebody_else(monkeypatch: pytest.MonkeyPatch, opened: ExitStack) -> None:
    closers: list[tuple[int, str]] = []
    close = os.close

    def closed(fd: int) -> None:
        closers.append((fd, threading.current_thread().name))
        close(fd)

    small, large = os.memfd_create("small"), os.memfd_create("large")
    os.ftruncate(small, closing.LARGE)
    os.ftruncate(large, closing.LARGE + 1)
    monkeypatch.setattr(closing.os, "close", closed)
    closing.close_memory(small, large)
    for thread in threading.enumerate():
        if thread.name == "closer":
            thread.join()
    assert closers == [(small, threading.current_thread().name), (large, "closer")]
