"""The plugin that the start-up benchmark runs in every worker: it does nothing, until it is stopped."""

from __future__ import annotations

from typing import Any


class Idle:
    """Without inputs it waits for the end; with one it passes frames on."""

    def on_start(self, _ctx: Any) -> None:
        """Nothing to prepare."""

    def on_frame(self, frame: Any, _ctx: Any) -> Any:
        """The same bytes again."""
        return bytes(frame)
