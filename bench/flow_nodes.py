"""The plugins of ``bench.flow``, as their author writes them: a generator, a function, a class. No runtime is used."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

HEIGHT, WIDTH = 1080, 1920


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
    picture = np.frombuffer(frame, np.uint8).reshape(HEIGHT, WIDTH, 3)
    result = np.zeros_like(picture)
    np.subtract(
        np.maximum(picture[1:], picture[:-1]), np.minimum(picture[1:], picture[:-1]), out=result[1:], casting="unsafe"
    )
    return result


class Count:
    """A sink that counts frames, and the seconds from the first one to the end of the stream."""

    def __init__(self) -> None:
        self.frames = 0
        self.began = 0.0

    def on_frame(self, frame: Any, ctx: Any) -> None:  # noqa: ARG002
        if not self.frames:
            self.began = time.monotonic()
        self.frames += 1

    def on_stop(self, ctx: Any) -> dict[str, Any]:  # noqa: ARG002
        return {"frames": self.frames, "seconds": time.monotonic() - self.began}
