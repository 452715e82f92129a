"""The plugin of a rehearsal: it has the callbacks that most plugins have, and does nothing."""

from __future__ import annotations

from typing import Any


class Idle:
    """Waits until it is drained."""

    def on_start(self, _ctx: Any) -> None:
        """Nothing to prepare."""

    def on_frame(self, _frame: Any, _ctx: Any) -> None:
        """Nothing to do."""

    def on_stop(self, _ctx: Any) -> None:
        """Nothing to give back."""
