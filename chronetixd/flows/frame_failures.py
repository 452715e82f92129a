"""Counts frames over which a plugin raised, by node over all its incarnations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chronetix.protocol.messages import FrameFailed


@dataclass(slots=True)
class FrameFailures:
    """The counts of one node: attempts beyond the first, and the outcomes of the frames that needed them."""

    retries: int = 0
    """Attempts beyond the first one of a frame."""
    passed: int = 0
    """Frames that passed in a later attempt."""
    dead_letters: int = 0
    """Frames that failed in every attempt and were published on the flow's dead-letter topic."""
    dropped: int = 0
    """Frames that failed in every attempt and were dropped, because the flow has no dead-letter topic."""

    @property
    def set_aside(self) -> int:
        """The number of frames that failed in every attempt."""
        return self.dead_letters + self.dropped

    def count(self, failed: FrameFailed) -> bool:
        """Count a failed frame. Returns True when it is worth an event: for the first frame set aside, the second, the
        fourth, …"""
        self.retries += max(0, failed.attempts - 1)
        match failed.outcome:
            case "passed":
                self.passed += 1
                return False
            case "dead-letter":
                self.dead_letters += 1
            case "dropped":
                self.dropped += 1
        return self.set_aside & (self.set_aside - 1) == 0

    def figures(self) -> dict[str, Any]:
        """Return the counts, for descriptions and statistics."""
        names = ("retries", "passed", "dead_letters", "dropped")
        return {name: getattr(self, name) for name in names}
