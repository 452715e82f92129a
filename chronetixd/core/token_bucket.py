"""A token bucket: limits a rate and allows a burst. Pure: time is passed in (ns)."""

from __future__ import annotations


class TokenBucket:
    """Fills by ``rate`` tokens a second up to ``burst``; full at the beginning."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: int, burst: int, now: int) -> None:
        self.rate = rate
        self.burst = burst
        self._left = float(burst)
        self._at = now

    def packed(self) -> tuple[float, int]:
        """Return the number of tokens left, and the time for which that number was computed."""
        return self._left, self._at

    def unpack(self, packed: tuple[float, int]) -> None:
        """Restore the state from ``packed``."""
        self._left, self._at = packed

    def left(self, now: int) -> int:
        """Return how many tokens may be taken now, never less than 0. Time that goes backwards adds no tokens."""
        if now > self._at:
            self._left = min(self.burst, self._left + (now - self._at) * self.rate / 1e9)
            self._at = now
        return max(0, int(self._left))

    def take(self, count: int) -> None:
        """Take ``count`` tokens, even if the bucket holds fewer: the debt is filled before any token is left."""
        self._left -= count
