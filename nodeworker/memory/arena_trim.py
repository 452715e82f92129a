"""When an arena gives memory back: what it has beyond twice its recent peak, after a quiet time.

Rules: it is looked at once a span, and only while it is larger than it was at first: a worker that has given everything
back is woken by nobody. What stays is twice the most that was in use during the last spans, so a steady load, and one
that comes in bursts closer together than that, keeps its memory. Having to grow again soon after giving back makes it
wait longer the next time. While nothing changes the pauses between looks grow to a minute. No clock is read here.
"""

from __future__ import annotations

from collections import deque

from chronetix.shm import Arena

SPAN_S = 1.0
"""Between two looks."""

LONGEST_PAUSE_S = 64.0
"""Between two looks while frames are held, or a segment is on its way, and nothing happens."""

PATIENCE, MOST_PATIENCE = 2, 64
"""Spans whose peak counts: at first, and after having been too quick again and again."""


class ArenaTrim:
    """Decides for ``arena``, which tells its consumers itself what it drops."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._first = self._size = arena.size
        self._peaks: deque[int] = deque(maxlen=PATIENCE)
        self._pause = SPAN_S
        self._due: float | None = None
        self._since_given: int | None = None

    def left(self, now: float) -> float | None:
        """Seconds from ``now`` until the next look is due, 0 if it is; None: there is nothing to look for."""
        if self._arena.size <= self._first:
            self._due = None
            return None
        if self._due is None:
            self._due = now + SPAN_S
        return max(0.0, self._due - now)

    def look(self, now: float) -> int:
        """Look, and give back what is too much; how many bytes."""
        arena, before = self._arena, self._size
        grown = arena.size > before
        if grown:
            self._repent()
        peak = arena.take_peak()
        changed = grown or not self._peaks or peak != self._peaks[-1]
        self._peaks.append(peak)
        full, most, given = len(self._peaks) == self._peaks.maxlen, max(self._peaks), 0
        if full:
            given = arena.shrink(max(self._first, 2 * most))
            if most == 0 and not given and arena.size > self._first:
                given = arena.shrink(0)  # what is left is one large segment
        if given:
            self._since_given = 0
        elif self._since_given is not None:
            self._since_given += 1
        self._size = arena.size
        steady = full and not changed and not given
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S) if steady else SPAN_S
        self._due = now + self._pause
        return given

    def _repent(self) -> None:
        """It grew. So soon after giving back that it was better kept?"""
        patience = self._peaks.maxlen or PATIENCE
        if self._since_given is None:
            return
        if self._since_given <= 4 * patience:
            patience = min(2 * patience, MOST_PATIENCE)
        else:
            patience = PATIENCE
        self._peaks = deque(self._peaks, patience)
        self._since_given = None
