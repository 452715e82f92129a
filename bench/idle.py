"""Plugins of benchmarks whose flows are idle, or are held up by a sink that keeps every frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Idle:
    """A node that waits for the end; with an input it passes frames on."""

    def on_start(self, _ctx: Any) -> None:
        """Nothing to prepare."""

    def on_frame(self, frame: Any, _ctx: Any) -> Any:
        """The same bytes again."""
        return bytes(frame)


def flood(_ctx: Any) -> Iterator[bytes]:
    """A source that sends as fast as its credits permit."""
    while True:
        yield bytes(64)


class Hoard:
    """A sink that keeps every frame, and with it every credit."""

    def __init__(self) -> None:
        self.kept: list[memoryview] = []

    def on_frame(self, frame: Any, _ctx: Any) -> None:
        """Keep the frame, so that its credit never goes back."""
        self.kept.append(memoryview(frame))
