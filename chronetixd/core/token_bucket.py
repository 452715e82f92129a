"""A token bucket: how much of something is let through, at a steady rate with a burst. Pure: time is passed in (ns)."""

from __future__ import annotations


class TokenBucket:
    """``rate`` a second, ``burst`` at once; full at the beginning."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: int, burst: int, now: int) -> None:
        self.rate = rate
        self.burst = burst
        self._left = float(burst)
        self._at = now

    def packed(self) -> tuple[float, int]:
        """What is left, and when that was."""
        return self._left, self._at

    def unpack(self, packed: tuple[float, int]) -> None:
        """The inverse."""
        self._left, self._at = packed

    def left(self, now: int) -> int:
        """What may be taken now; never less than 0. Time that goes backwards gives nothing."""
        if now > self._at:
            self._left = min(self.burst, self._left + (now - self._at) * self.rate / 1e9)
            self._at = now
        return max(0, int(self._left))

    def take(self, count: int) -> None:
        """``count`` went through, also more than there was: the debt is paid before anything else goes."""
        self._left -= count
