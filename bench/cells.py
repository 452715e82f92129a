"""One measurement (a cell: peer, mode, size) and its result (a row of the JSON file).

Rules:

* Nothing here measures, forks or prints.
* A row carries the counts of all its rounds, so that a loss in any shows, and the medians (or bests) of their figures.
* A figure that does not apply to a mode is None, never 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Mode = Literal["throughput", "roundtrip", "loan"]

KIB, MIB = 1 << 10, 1 << 20
SIZES = (64, KIB, 64 * KIB, MIB, 8 * MIB, 40_000_000)
LOAN_SIZES = (64 * KIB, MIB, 8 * MIB, 40_000_000)

BATCH = 64
"""Frames of a batch, for peers that are measured with batches."""

IN_FLIGHT_BYTES = 128 * MIB
"""Every peer that queues may have this much on its way; a larger queue would measure memory, not transport."""

MIN_WINDOW, MAX_WINDOW = 4, 1024
"""The smallest and the largest number of frames that may be under way."""


def window(size: int) -> int:
    """Return how many frames of ``size`` bytes may be under way at once."""
    return max(MIN_WINDOW, min(MAX_WINDOW, IN_FLIGHT_BYTES // size))


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement of one peer: ``seconds`` of sending after ``warm_up`` seconds that do not count."""

    mode: Mode
    size: int
    seconds: float = 0.35
    warm_up: float = 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """A cell measured once: times in seconds, latencies in microseconds.

    ``repeated`` frames came twice or out of order.
    """

    sent: int
    received: int
    repeated: int
    elapsed: float
    cpu_s: float
    p50_us: float | None = None
    p99_us: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the JSON file."""

    peer: str
    version: str
    mode: Mode
    size: int
    sent: int
    received: int
    frames_per_s: float | None
    gb_per_s: float | None
    p50_us: float | None
    p99_us: float | None
    cpu_s_per_million: float | None

    def as_json(self) -> dict[str, Any]:
        """The row as the object that is written."""
        return asdict(self)

    @property
    def lost(self) -> int:
        """Frames sent and never received."""
        return self.sent - self.received


Choose = Callable[[Sequence[float]], float]


def row(peer: str, version: str, cell: Cell, samples: Sequence[Sample], *, best: bool = False) -> Row:
    """The row of ``samples`` (not empty), one for each round: medians, or with ``best`` the best of each figure."""
    top: Choose = max if best else statistics.median
    low: Choose = min if best else statistics.median
    rates = [rate(sample) for sample in samples]
    trips = cell.mode == "roundtrip"
    p50 = [sample.p50_us for sample in samples if sample.p50_us is not None]
    p99 = [sample.p99_us for sample in samples if sample.p99_us is not None]
    cpu = [sample.cpu_s / sample.received * 1e6 for sample in samples if sample.received]
    return Row(
        peer=peer,
        version=version,
        mode=cell.mode,
        size=cell.size,
        sent=sum(sample.sent for sample in samples),
        received=sum(sample.received for sample in samples),
        frames_per_s=None if trips else top(rates),
        gb_per_s=top(rates) * cell.size / 1e9 if cell.mode == "throughput" else None,
        p50_us=low(p50) if p50 else None,
        p99_us=low(p99) if p99 else None,
        cpu_s_per_million=low(cpu) if cpu else None,
    )


def rate(sample: Sample) -> float:
    """Return how many frames arrived per second."""
    return sample.received / sample.elapsed if sample.elapsed > 0 else 0.0
