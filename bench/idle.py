"""Plugins of the benchmarks whose flows do nothing, or cannot: idle nodes, and a stream that is held up at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Idle:
    """Without inputs it waits for the end; with one it passes frames on."""

    def on_start(self, _ctx: Any) -> None:
        """Nothing to prepare."""

    def on_frame(self, frame: Any, _ctx: Any) -> Any:
        """The same bytes again."""
        return bytes(frame)


def flood(_ctx: Any) -> Iterator[bytes]:
    """A source that sends as fast as it may."""
    while True:
        yield bytes(64)


class Hoard:
    """A sink that keeps every frame, and with it every credit."""

    def __init__(self) -> None:
        self.kept: list[memoryview] = []

    def on_frame(self, frame: Any, _ctx: Any) -> None:
        """Never given back."""
        self.kept.append(memoryview(frame))
