"""When to look at the frames that consumers keep, and of which to warn. Pure: no clock, no input.

Rules: a frame is warned of once, when it is older than the threshold. There is a next look only while something has
moved since the last one, or is kept and not that old yet: an idle flow is left alone, whatever its consumers keep.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from chronetixd.core.packed import PackedWatch


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
        self._warned: dict[str, int] = {}
        self._progress: Sequence[int] | None = None
        self.idle = False
        """The last look has found nothing that a next one could tell more about."""

    def packed(self) -> PackedWatch:
        """What the next image must not warn of again."""
        return PackedWatch(warned=dict(self._warned))

    def unpack(self, packed: PackedWatch) -> None:
        """The inverse."""
        self._warned = dict(packed.warned)

    def look(self, held: Collection[Held], progress: Sequence[int]) -> list[Held]:
        """What was found; ``progress`` is anything that changes when a frame is sent or returned. Those to warn of."""
        late = [each for each in held if each.age_ns >= self._threshold_ns]
        new = [each for each in late if self._warned.get(each.route) != each.seq]
        self._warned = {each.route: each.seq for each in late}
        before = [0] * len(progress) if self._progress is None else self._progress
        self.idle = list(progress) == list(before) and len(late) == len(held)
        self._progress = progress
        return new
