"""The plugins of ``bench.flow``, as their author writes them: a generator, a function, a class. No runtime is used."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

HEIGHT, WIDTH = 1080, 1920
WARM_UP = 1.0
"""Seconds from the first frame on that are not counted: memory is used for the first time, processes start."""


class Context:
    """As much of a plugin's context as these plugins use, for runtimes that have none."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params


def blocks(ctx: Any) -> Iterator[bytes]:
    """Yield the same ``params.size`` bytes again and again, for ``params.seconds``."""
    block, end = bytes(ctx.params["size"]), time.monotonic() + ctx.params["seconds"]
    turn = 64 if len(block) < 1 << 16 else 1
    while time.monotonic() < end:
        for _ in range(turn):
            yield block


def forward(frame: Any, ctx: Any) -> Any:  # noqa: ARG001
    """Return the frame as it came."""
    return frame


def edges(frame: Any, ctx: Any) -> Any:  # noqa: ARG001
    """Return how much each pixel of a picture (1080 x 1920 x 3 bytes) differs from the one below it."""
    result = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    differences(frame, result)
    return result


def edges_in_place(frame: Any, ctx: Any) -> None:
    """As ``edges``, written into the memory of the next frame: for chronetix only."""
    with ctx.loan(len(frame)) as room:
        differences(frame, np.frombuffer(room, np.uint8).reshape(HEIGHT, WIDTH, 3))


def differences(frame: Any, result: Any) -> None:
    """Write them into ``result``; the first row has none."""
    picture = np.frombuffer(frame, np.uint8).reshape(HEIGHT, WIDTH, 3)
    result[0] = 0
    above, below = picture[:-1], picture[1:]
    np.subtract(np.maximum(below, above), np.minimum(below, above), out=result[1:])


class Count:
    """A sink that counts all frames, and those that came after the first ``WARM_UP`` seconds, with their time."""

    def __init__(self) -> None:
        self.frames = self.before = 0
        self.warm = 0.0
        self.began = 0.0

    def on_frame(self, frame: Any, ctx: Any) -> None:  # noqa: ARG002
        self.frames += 1
        if not self.began:
            now = time.monotonic()
            self.warm = self.warm or now + WARM_UP
            if now >= self.warm:
                self.began, self.before = now, self.frames

    def on_stop(self, ctx: Any) -> dict[str, Any]:  # noqa: ARG002
        seconds = time.monotonic() - self.began if self.began else 0.0
        return {"frames": self.frames, "counted": self.frames - self.before, "seconds": seconds}
