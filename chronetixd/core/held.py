"""When to check the frames that consumers hold, and which of them to warn of. Pure: no clock, no input.

Rules: each frame is warned of once, when it is older than the threshold. Another check is due only if a frame was sent
or returned since the last one, or if a held frame is not that old yet. An idle flow is therefore not checked, whatever
its consumers hold.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from chronetixd.core.packed import PackedWatch


class OldestHeldFrame(NamedTuple):
    """The oldest frame of ``route`` that ``node`` holds. ``age_ns`` is the time since it was sent, ``kept`` the number
    of frames that ``node`` holds."""

    route: str
    node: str
    seq: int
    age_ns: int
    kept: int


class HeldFramePolicy:
    """The policy for one flow. ``threshold_ns`` is the age at which a frame that a consumer holds is worth a
    warning."""

    def __init__(self, threshold_ns: int) -> None:
        self._threshold_ns = threshold_ns
        self._warned: dict[str, int] = {}
        self._progress: Sequence[int] | None = None
        self.idle = False
        """Whether another check could find nothing that the last one has not found."""

    def packed(self) -> PackedWatch:
        """Return the frames that the next image of the daemon must not warn of again."""
        return PackedWatch(warned=dict(self._warned))

    def unpack(self, packed: PackedWatch) -> None:
        """Restore the state from ``packed``."""
        self._warned = dict(packed.warned)

    def look(self, held: Collection[OldestHeldFrame], progress: Sequence[int]) -> list[OldestHeldFrame]:
        """Return the frames to warn of among those that are ``held``. ``progress`` are figures that change when a frame
        is sent or returned."""
        late = [each for each in held if each.age_ns >= self._threshold_ns]
        new = [each for each in late if self._warned.get(each.route) != each.seq]
        self._warned = {each.route: each.seq for each in late}
        before = [0] * len(progress) if self._progress is None else self._progress
        self.idle = list(progress) == list(before) and len(late) == len(held)
        self._progress = progress
        return new
