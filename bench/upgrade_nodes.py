"""The nodes of the benchmark of upgrades: send numbers as fast as possible, check them, and measure the longest gap."""

from __future__ import annotations

import time
from typing import Any


def numbers(_ctx: Any) -> Any:
    """Source: 1, 2, …, as fast as credits come back."""
    number = 0
    while True:
        number += 1
        yield number.to_bytes(8, "little")


def forward(frame: Any, _ctx: Any) -> bytes:
    """Map: the same bytes."""
    return bytes(frame)


class Checks:
    """Sink: every number follows the one before. Its result: how many, and the longest time without one (ns)."""

    last = 0
    longest = 0
    seen_ns = 0

    def on_frame(self, frame: Any, _ctx: Any) -> None:
        number = int.from_bytes(bytes(frame), "little")
        if number != self.last + 1 or frame.redelivered:
            raise ValueError(f"{number} follows {self.last}")
        now = time.monotonic_ns()
        self.longest = max(self.longest, now - (self.seen_ns or now))
        self.last, self.seen_ns = number, now

    def on_stop(self, _ctx: Any) -> dict[str, int]:
        return {"frames": self.last, "longest_ns": self.longest}
