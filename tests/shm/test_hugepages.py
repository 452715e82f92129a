"""Segments of huge pages: what the machine has is used, what it has not is told, and frames are the same either way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chronetix import shm
from tests.shm.lines import join

HUGE = 2 << 20
ADVICE = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def kind_here(size: int) -> str:
    """What a segment of so many bytes is made of on this machine."""
    values = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    if values.get("Hugepagesize", "").split() == ["2048", "kB"] and int(values["HugePages_Free"]) * HUGE >= size:
        return "huge"
    heeded = ADVICE.exists() and any(word in ADVICE.read_text() for word in ("[advise]", "[always]", "[within_size]"))
    return "advised" if heeded else "small"


def test_without_the_option_pages_are_small():
    assert shm.Arena(1 << 24).pages == "small"


def test_what_the_machine_has_is_used_and_told():
    kind = kind_here(HUGE)
    arena = shm.Arena(1 << 26, first=1 << 18, hugepages=True)
    assert arena.pages == kind
    assert arena.size == (1 << 18 if kind == "small" else HUGE)
    for _, fd, size in arena.segments:
        assert shm.check(fd, "segment") == size


@pytest.mark.parametrize("limit", [1 << 20, 3 << 20, 1 << 26])
def test_frames_are_the_same_whatever_the_pages(limit):
    bell, consumer, dropped = shm.Doorbell(), shm.Consumer("r"), []

    def grow(index: int, fd: int, _size: int) -> None:
        consumer.add_segment(index, fd)
        arena.confirm(index)

    def drop(index: int) -> None:
        dropped.append(index)
        consumer.drop_segment(index)
        arena.forget(index)

    arena = shm.Arena(limit, first=1 << 18, on_grow=grow, on_drop=drop, hugepages=True)
    producer = shm.Producer(arena, "r")
    join(producer, bell, consumer, bell)
    for index, fd, _ in arena.segments:
        consumer.add_segment(index, fd)
    outlet, inlet = shm.Outlet([producer], bell), shm.Inlet([consumer], bell)
    for number in range(20):
        outlet.send(np.full(700_000, number, np.uint8))
        frame = inlet.take(0)
        assert frame is not None
        assert (frame.numpy() == number).all()
        del frame
    assert arena.size <= limit
    arena.shrink(0)
    assert (arena.used, arena.size) == (0, 0)
    with pytest.raises(shm.FrameTooLarge):
        outlet.send(bytes(limit + 1), 0)
    outlet.send(bytes(limit), 0)
