"""A log that nobody reads holds nobody up, and tells what it has lost."""

from __future__ import annotations

import os
import pty
import socket
import tty
from collections.abc import Callable, Iterator

import pytest

from chronetixd.records.standard_error import MAX_PENDING, UnblockedStream

LINE = "x" * 199 + "\n"
Ends = tuple[int, int]


def pipe() -> Ends:
    return os.pipe()


def terminal() -> Ends:
    reads, writes = pty.openpty()
    tty.setraw(writes)
    return reads, writes


def connection() -> Ends:
    reads, writes = socket.socketpair()
    return reads.detach(), writes.detach()


@pytest.fixture(params=[pipe, terminal, connection])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    made: Callable[[], Ends] = request.param
    opened = made()
    yield opened
    for fd in opened:
        os.close(fd)


def read_all(fd: int, size: int) -> bytes:
    """Exactly ``size`` bytes, as they come."""
    got = b""
    while len(got) < size:
        got += os.read(fd, size - len(got))
    return got


def fill(stream: UnblockedStream) -> int:
    """Write numbered lines until some are lost; how many were written."""
    written = 0
    while not stream._lost:
        stream.write(f"{written:06} {LINE}")
        written += 1
    return written


def test_lines_arrive_as_they_were_written(ends: Ends) -> None:
    stream = UnblockedStream(ends[1])
    for text in ("first\n", "ümläut\n", "half a surrogate \udc80\n"):
        stream.write(text)
    expected = "first\nümläut\nhalf a surrogate \\udc80\n".encode()
    assert read_all(ends[0], len(expected)) == expected
    assert stream.take_lost() == 0


def test_without_a_reader_it_does_not_wait_and_counts_whole_lines(ends: Ends) -> None:
    stream = UnblockedStream(ends[1])
    written = fill(stream)
    for _ in range(9):
        stream.write(LINE)
    assert len(stream._pending) <= MAX_PENDING
    assert stream.take_lost() == 0, "there is no room for telling it yet"
    size = len(f"{0:06} {LINE}")
    got = b""
    while stream._pending:
        got += os.read(ends[0], 1 << 16)
        stream.flush()
    got += read_all(ends[0], size * (written - 1) - len(got))
    assert [int(line.split()[0]) for line in got.splitlines()] == list(range(written - 1))
    assert stream.take_lost() == 10
    assert stream.take_lost() == 0


def test_a_reader_that_is_gone_costs_the_lines_alone() -> None:
    reads, writes = os.pipe()
    stream = UnblockedStream(writes)
    os.close(reads)
    with pytest.raises(BrokenPipeError):
        stream.write(LINE)
    assert stream.take_lost() == 1
    os.close(writes)


def test_the_descriptor_itself_still_waits_for_those_who_share_it(ends: Ends) -> None:
    before = os.get_blocking(ends[1])
    fill(UnblockedStream(ends[1]))
    assert os.get_blocking(ends[1]) == before
