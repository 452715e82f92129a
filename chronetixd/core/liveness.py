"""Is a worker alive? What the answers to pings mean: hung is told from busy and from idle. Pure; time is passed in.

A plugin's thread that waits is idle and one whose steps go on is busy, however long: both are well. It is hung when one
callback has taken longer than the limit. A worker that does not answer at all for that long is no better: its process
is stopped, or native code does not give the interpreter away. One ping is out at a time.
"""

from __future__ import annotations

from msgspec import Struct


class Probe(Struct, frozen=True):
    """How a node is probed, in ns: see the contract's Liveness."""

    limit_ns: int
    period_ns: int
    delay_ns: int = 0
    failures: int = 1


class Ask(Struct, frozen=True):
    """Send a ping with this id."""

    id: int


class Dead(Struct, frozen=True):
    """It has failed often enough; ``why`` is the rest of a sentence about it."""

    why: str


class Liveness:
    """One worker under a probe."""

    __slots__ = ("_asked_ns", "_failed", "_id", "_probe", "_why")

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._id = 0
        self._asked_ns = 0
        """When the ping was sent that is not answered; 0 when there is none."""
        self._failed = 0
        self._why = ""

    @property
    def waits(self) -> bool:
        """A ping is out that was not answered."""
        return self._asked_ns > 0

    def due(self, now_ns: int) -> Ask | Dead | None:
        """A period has passed. None while an answer is awaited and still may come."""
        if self._asked_ns:
            silent_ns = now_ns - self._asked_ns
            if silent_ns < self._probe.limit_ns:
                return None
            self._fail(
                f"has not answered for {silent_ns / 1e9:.3g} s: it is stopped, or native code keeps the interpreter"
            )
        if self._failed >= self._probe.failures:
            return Dead(self._why)
        if self._asked_ns:
            return None
        self._id += 1
        self._asked_ns = now_ns
        return Ask(self._id)

    def answered(self, id: int, busy_ns: int, doing: str) -> None:
        """A pong. One that answers no open ping is ignored."""
        if id != self._id or not self._asked_ns:
            return
        self._asked_ns = 0
        if busy_ns >= self._probe.limit_ns:
            self._fail(f"hung in {doing or 'a callback'} for {busy_ns / 1e9:.3g} s")
        else:
            self._failed = 0

    def _fail(self, why: str) -> None:
        self._failed += 1
        self._why = why
