"""Liveness of a worker: tells a hung worker from a busy one and an idle one by its answers to pings. Pure; time is
passed in.

A plugin's thread that waits is idle, and one whose steps go on is busy, however long it takes: both are alive. It is
hung when a single callback has taken longer than the limit. A worker that does not answer at all for that long counts
as hung too: its process is stopped, or native code does not release the interpreter. Only one ping is unanswered at a
time.
"""

from __future__ import annotations

from msgspec import Struct


class Probe(Struct, frozen=True):
    """How a node is probed, with times in ns: see the contract's Liveness."""

    limit_ns: int
    period_ns: int
    delay_ns: int = 0
    failures: int = 1


class SendPing(Struct, frozen=True):
    """Send a ping with this id."""

    id: int


class DeclareDead(Struct, frozen=True):
    """The worker has failed often enough; ``why`` is the predicate of a sentence about it."""

    why: str


class LivenessCheck:
    """The probe of one worker."""

    __slots__ = ("_asked_ns", "_failed", "_id", "_probe", "_why")

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._id = 0
        self._asked_ns = 0
        """When the unanswered ping was sent; 0 when there is none."""
        self._failed = 0
        self._why = ""

    @property
    def waits(self) -> bool:
        """Whether a ping is unanswered."""
        return self._asked_ns > 0

    def due(self, now_ns: int) -> SendPing | DeclareDead | None:
        """Return what to do after a period has passed. None while an answer is awaited and is not late."""
        if self._asked_ns:
            silent_ns = now_ns - self._asked_ns
            if silent_ns < self._probe.limit_ns:
                return None
            self._fail(
                f"has not answered for {silent_ns / 1e9:.3g} s: it is stopped, or native code keeps the interpreter"
            )
        if self._failed >= self._probe.failures:
            return DeclareDead(self._why)
        if self._asked_ns:
            return None
        self._id += 1
        self._asked_ns = now_ns
        return SendPing(self._id)

    def answered(self, id: int, busy_ns: int, doing: str) -> None:
        """Note the answer to ping ``id``: the present step ``doing`` has taken ``busy_ns``. An answer to any other ping
        than the unanswered one is ignored."""
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
