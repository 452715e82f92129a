"""Wake-up lines between the two ends of a stage: each end is sent to one worker, and the daemon keeps neither
(shm/SPEC.md, Doorbell and line).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping

from chronetix import shm
from chronetixd.core.wiring.stages import End, LineEnd, Stage
from chronetixd.loop import closing


def _close(fd: int) -> None:
    """Close ``fd`` without waiting for bytes that the worker at the other end may have sent."""
    closing.close_socket(socket.socket(fileno=fd))


class Lines:
    """The lines of one flow of which one end was sent and the other was not."""

    def __init__(self, make: Callable[[], tuple[int, int]] = shm.line, close: Callable[[int], None] = _close) -> None:
        self._make = make
        self._close = close
        self._left: dict[LineEnd, int] = {}

    def take(self, wanted: LineEnd) -> int:
        """Return an end, which the caller sends to a worker. The first end that is taken makes a new line. Raises
        OSError when no descriptors are left."""
        if wanted not in self._left:
            ends = self._make()
            self.close(wanted.other)  # of an earlier line, whose other end was sent
            first, second = (wanted, wanted.other) if wanted.end == "producer" else (wanted.other, wanted)
            self._left[first], self._left[second] = ends
        return self._left.pop(wanted)

    def close(self, end: LineEnd) -> None:
        """Close an end that no worker will be sent, and the ends of earlier lines of its stage. Idempotent."""
        for each in [each for each in self._left if each[:2] == end[:2] and each.number <= end.number]:
            self._close(self._left.pop(each))

    @property
    def all_left(self) -> tuple[int, ...]:
        """The ends that were not sent, of every line."""
        return tuple(self._left.values())

    def left(self, stage: Stage) -> dict[End, int]:
        """Return the ends of the present line of ``stage`` that were not sent."""
        return {end.end: self._left[end] for end in stage.line if end in self._left}

    def put(self, stage: Stage, left: Mapping[End, int]) -> None:
        """Restore what :meth:`left` has returned in the earlier image of the daemon."""
        self._left |= {end: left[end.end] for end in stage.line if end.end in left}

    def sendable(self, handles: Iterable[int | LineEnd]) -> list[int]:
        """Return descriptors to send with a message: duplicates of memories, and ends of lines, which are taken. Raises
        OSError when no descriptors are left, and then has taken nothing."""
        found: list[tuple[int, Callable[[int], None]]] = []
        try:
            for each in handles:
                found.append((self.take(each), self._close) if isinstance(each, LineEnd) else (os.dup(each), os.close))
        except OSError:
            for fd, close in found:
                close(fd)
            raise
        return [fd for fd, _ in found]
