"""What ledgers prove: frames that are lost, repeated without a mark or out of order; requests that ended never or
twice.

Pure: lines in, complaints out. One reader reads one ledger from its beginning, while it grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.flows import Promise


@dataclass(frozen=True, slots=True)
class Arrival:
    """One frame at a sink. ``lives`` are the incarnations of source, map and sink that it went through."""

    monotonic_ns: int
    route: str
    number: int
    redelivered: bool
    lives: tuple[int, int, int]


@dataclass
class Arrivals:
    """Follows one route into a sink and checks its guarantee. ``begins`` counts how often the flow was started."""

    promise: Promise
    restartable: bool
    """Whether the flow may start again in the same ledger."""
    seen: int = 0
    """The highest number so far."""
    frames: int = 0
    repeated: int = 0
    begins: int = 0
    distinct: int = 0
    complaints: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """The flow starts from its first item."""
        self.begins += 1
        if self.begins > 1 and not self.restartable:
            self.complaints.append(f"{self.promise.route}: the flow began anew, which survives its daemon")
        self.seen = self.distinct = 0

    def arrive(self, frame: Arrival) -> None:
        """The next frame of the route."""
        self.frames += 1
        number, before = frame.number, self.seen
        if number <= before:
            self.repeated += 1
            if not frame.redelivered:
                self._complain(f"{number} came again unmarked, {before} had come")
            return
        missing = [each for each in range(before + 1, number) if not (self.promise.round_missing and each % 10 == 0)]
        if missing and not self.promise.gaps:
            self._complain(f"{number} follows {before}: {len(missing)} are lost, the first is {missing[0]}")
        if self.promise.round_missing and number % 10 == 0:
            self._complain(f"{number} should have been set aside")
        self.seen = number
        self.distinct += 1

    def _complain(self, text: str) -> None:
        if len(self.complaints) < 20:
            self.complaints.append(f"{self.promise.route}: {text}")


@dataclass
class Requests:
    """Follows the requests of a requester and what their replier received."""

    asked: dict[str, int] = field(default_factory=dict)
    """How often each request ended that is not settled. Requests of one incarnation come one after another."""
    words: dict[str, int] = field(default_factory=dict)
    delivered: set[str] = field(default_factory=set)
    outcomes: dict[str, int] = field(default_factory=dict)
    unended: int = 0
    """Requests whose requester died before they ended."""
    complaints: list[str] = field(default_factory=list)

    def line(self, words: list[str]) -> None:
        """Handle one line of either ledger."""
        match words:
            case ["Q", name]:
                self._next(name)
            case ["E", name, outcome]:
                self.asked[name] = self.asked.get(name, 0) + 1
                self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
                if self.asked[name] > 1:
                    self.complaints.append(f"request {name} ended {self.asked[name]} times")
                if outcome == "another's":
                    self.complaints.append(f"request {name} got the reply to another one")
            case ["W", name]:
                self.words[name] = self.words.get(name, 0) + 1
                if self.words[name] > 1:
                    self.complaints.append(f"the daemon ended request {name} {self.words[name]} times")
            case ["R", name]:
                if name in self.delivered:
                    self.complaints.append(f"request {name} was delivered twice")
                self.delivered.add(name)

    def _next(self, name: str) -> None:
        """Before an incarnation makes another request, its last one must have ended; one of an earlier incarnation need
        not have."""
        life = name.partition("-")[0]
        for other, ends in list(self.asked.items()):
            if ends == 0 and other.partition("-")[0] == life:
                self.complaints.append(f"request {other} never ended, {name} was asked after it")
            self.unended += ends == 0
        self.asked = {name: 0}


class Ledger:
    """Reads the file as it grows; whole lines only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    @property
    def size(self) -> int:
        """How many bytes the file has."""
        return self.path.stat().st_size if self.path.exists() else 0

    def news(self) -> Iterable[list[str]]:
        """Return the lines that are new since the last call, as words."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        return [line.split() for line in whole.decode().splitlines()]


def arrival(words: list[str]) -> Arrival:
    """Return the frame of a line that begins with F."""
    _, at, route, number, marked, *lives = words
    source, mapped, sink = map(int, lives)
    return Arrival(int(at), route, int(number), marked == "1", (source, mapped, sink))
