"""When to look at the frames that consumers keep, and of which to warn. Pure: no clock, no input.

Rules: a frame is warned of once, when it is older than the threshold. While anything moves, or is not yet that old, the
next look comes after a threshold; while nothing does, each pause is twice the last, so that an idle flow costs next to
nothing: whatever is asked or started meanwhile does not wait for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

LONGEST = 64
"""Thresholds between two looks at most."""


class Held(NamedTuple):
    """The oldest frame that ``node`` keeps of ``route``, and how many it keeps. ``age_ns``: since it was sent."""

    route: str
    node: str
    seq: int
    age_ns: int
    kept: int


class Watch:
    """One flow. ``threshold_ns``: how old a frame may become in its consumer's hands before that is worth a warning."""

    def __init__(self, threshold_ns: int) -> None:
        self._threshold_ns = threshold_ns
        self._pause = 1
        self._warned: dict[str, int] = {}
        self._progress: Sequence[int] = ()

    def look(self, held: Collection[Held], progress: Sequence[int]) -> list[Held]:
        """What was found; ``progress`` is anything that changes when a frame is sent or returned. Those to warn of."""
        late = [each for each in held if each.age_ns >= self._threshold_ns]
        new = [each for each in late if self._warned.get(each.route) != each.seq]
        self._warned = {each.route: each.seq for each in late}
        busy = progress != self._progress or len(late) < len(held)
        self._progress = progress
        self._pause = 1 if busy else min(2 * self._pause, LONGEST)
        return new

    @property
    def pause_ns(self) -> int:
        """Until the next look."""
        return self._pause * self._threshold_ns
