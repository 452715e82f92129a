"""Frames of every size: the boundaries at which something changes, from nothing at all to a gibibyte."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

PAGE, NO_GIL, LINGERS, FIRST = 4096, 65536, 512 << 10, 1 << 18
CLASSES = [64 * lines for lines in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56)]
EDGES = sorted({edge + step for edge in (*CLASSES, PAGE, 8 * PAGE, NO_GIL, FIRST, LINGERS) for step in (-1, 0, 1)})
GIB = 1 << 30


def pattern(size: int) -> np.ndarray:
    """Bytes that differ from their neighbours and from those a power of two away."""
    return (np.arange(size, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(24)).astype(np.uint8)


@pytest.mark.parametrize("size", [0, 1, *EDGES])
def test_a_frame_of_any_size_arrives_whole_and_its_memory_comes_back(make_route, size):
    route = make_route(limit=1 << 24, first=FIRST)
    data = pattern(size)
    route.outlet.send(data)
    with route.outlet.loan(size) as room:
        if size:
            np.frombuffer(room, np.uint8)[:] = data
    for _ in range(2):
        frame = route.take()
        assert len(frame) == size
        assert np.array_equal(frame.numpy(), data)
        del frame
    assert route.drain() == []
    assert route.arena.used == 0


def test_large_frames_arrive_in_order_whether_their_memory_comes_back_at_once_or_late(spawn):
    def child(end) -> None:
        held = []
        for number in range(60):
            frame = end.next()
            assert (frame.numpy()[:: 1 << 16] == number).all()
            if number % 20 >= 10:
                held.append(frame)
            if number % 20 == 19:
                held.clear()
            del frame
        end.say()

    child = spawn(child, credits=16, limit=16 << 20)
    for number in range(60):
        child.end.outlet.send(np.full(LINGERS + number, number, np.uint8))
    child.end.hear()
    child.join()
    assert child.end.arena.used == 0


@pytest.fixture
def gibibytes() -> Iterator[None]:
    """Leave for a test that needs three gibibytes: one at a time on this machine, and only where they are there."""
    with (Path(tempfile.gettempdir()) / f"chronetix-tests-memory-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        available = psutil.virtual_memory().available
        if available < 3 * GIB:
            pytest.skip(f"needs 3 GiB of memory, of which {available >> 20} MiB are there")
        yield


@pytest.mark.timeout(300)
def test_a_frame_of_a_gibibyte(make_route, gibibytes):
    route = make_route(limit=2 * GIB, first=FIRST)
    with mmap.mmap(-1, GIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as source:
        marks = [0, 1, GIB // 2 - 1, GIB // 2, GIB - 1]
        for number, at in enumerate(marks, 1):
            source[at] = number
        route.outlet.send(source)
        frame = route.take()
        data = frame.numpy()
        assert len(data) == GIB
        assert [int(data[at]) for at in marks] == [1, 2, 3, 4, 5]
        assert int(np.count_nonzero(data)) == len(marks)
        del data, frame
    assert route.arena.used == 0
