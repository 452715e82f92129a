"""Lines between the two ends of a stage, by which they wake each other: each end is given to one of them and kept by
nobody (shm/SPEC.md, Doorbell and line)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping

from chronetix import shm
from chronetixd.core.wiring.stages import End, LineEnd, Stage
from chronetixd.loop import closing


def _close(fd: int) -> None:
    """Never waits for what a worker may have sent into it from the other end."""
    closing.close_socket(socket.socket(fileno=fd))


class Lines:
    """Of one flow: what is left of those of which one end was given."""

    def __init__(self, make: Callable[[], tuple[int, int]] = shm.line, close: Callable[[int], None] = _close) -> None:
        self._make = make
        self._close = close
        self._left: dict[LineEnd, int] = {}

    def take(self, wanted: LineEnd) -> int:
        """An end, to be given away. The first of both begins a new line. Raises OSError when there is no descriptor."""
        if wanted not in self._left:
            ends = self._make()
            self.close(wanted.other)  # of a line whose other end somebody had before
            first, second = (wanted, wanted.other) if wanted.end == "producer" else (wanted.other, wanted)
            self._left[first], self._left[second] = ends
        return self._left.pop(wanted)

    def close(self, end: LineEnd) -> None:
        """Nobody is to have it, nor those of earlier lines of its stage. Idempotent."""
        for each in [each for each in self._left if each[:2] == end[:2] and each.number <= end.number]:
            self._close(self._left.pop(each))

    @property
    def all_left(self) -> tuple[int, ...]:
        """Of every line."""
        return tuple(self._left.values())

    def left(self, stage: Stage) -> dict[End, int]:
        """What is still to be given of the present line of ``stage``."""
        return {end.end: self._left[end] for end in stage.line if end in self._left}

    def put(self, stage: Stage, left: Mapping[End, int]) -> None:
        """As :meth:`left` had it."""
        self._left |= {end: left[end.end] for end in stage.line if end.end in left}

    def given(self, handles: Iterable[int | LineEnd]) -> list[int]:
        """What is sent, and given away with that: duplicates of memories, which stay ours, and ends of lines. Raises
        OSError when there are no more descriptors, and then has given nothing."""
        found: list[tuple[int, Callable[[int], None]]] = []
        try:
            for each in handles:
                found.append((self.take(each), self._close) if isinstance(each, LineEnd) else (os.dup(each), os.close))
        except OSError:
            for fd, close in found:
                close(fd)
            raise
        return [fd for fd, _ in found]
