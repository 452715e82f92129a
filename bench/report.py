"""The table, the targets and the notes of the data-plane benchmark, as text. Pure: rows and samples in, lines out.

A ratio says how many times as good as the peer chronetix is: frames a second of chronetix over the peer's, or the
peer's p50 over that of chronetix. Targets are judged on the ratios of each round (both sides measured within the same
seconds), of which the median counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.cells import BATCH, KIB, MIB, Mode, Row, Sample, rate

OURS = "chronetix"
BATCHED = "chronetix-batch"
Key = tuple[str, Mode, int]
"""Peer, mode, size."""
Samples = Mapping[Key, Mapping[int, Sample]]
"""Round to sample, of each cell."""

HEADINGS = ("mode", "size", "peer", "frames/s", "GB/s", "p50 us", "p99 us", "lost", "cpu s/M", "ratio")
LEFT = 3
"""The first columns, which are aligned to the left."""

FLAT = 0.8
"""A loan rate is flat when the slowest size has at least this share of the fastest."""


@dataclass(frozen=True, slots=True)
class Target:
    """A promise about one ratio of one run."""

    text: str
    limit: float
    at_least: bool
    value: float | None

    def line(self) -> str:
        """The target with what was measured: met, missed, or not measured."""
        if self.value is None:
            return f"  not measured  {self.text}"
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return f"  {'met' if met else 'MISSED':12}  {self.text}: {self.value:.3g}"


def size_text(size: int) -> str:
    """``size`` bytes as people write it."""
    if size >= 1_000_000 and size % 1_000_000 == 0:
        return f"{size // 1_000_000} MB"
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def number_text(value: float | None) -> str:
    """Three digits that count, thousands apart; a dash for what does not apply."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def ratio(row: Row, ours: Row | None) -> float | None:
    """How many times as good chronetix is in the same mode and size; None for its own row or without it."""
    if ours is None or row.peer == ours.peer:
        return None
    if row.mode == "roundtrip":
        return row.p50_us / ours.p50_us if row.p50_us and ours.p50_us else None
    return ours.frames_per_s / row.frames_per_s if row.frames_per_s and ours.frames_per_s else None


def table(rows: Sequence[Row]) -> list[str]:
    """One line for each row, grouped by mode and size, with headings."""
    ours = {(row.mode, row.size): row for row in rows if row.peer == OURS}
    lines: list[tuple[str, ...]] = [HEADINGS]
    group: tuple[Mode, int] | None = None
    for row in rows:
        begins = (row.mode, row.size) != group
        group = (row.mode, row.size)
        if begins:
            lines.append(("",) * len(HEADINGS))
        times = ratio(row, ours.get(group))
        lines.append(
            (
                row.mode if begins else "",
                size_text(row.size) if begins else "",
                row.peer,
                number_text(row.frames_per_s),
                number_text(row.gb_per_s),
                number_text(row.p50_us),
                number_text(row.p99_us),
                str(row.lost),
                number_text(row.cpu_s_per_million),
                f"{number_text(times)}x" if times else "",
            )
        )
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]], left: int = LEFT) -> list[str]:
    """Columns as wide as their widest entry, the first ``left`` of them aligned to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            entry.ljust(width) if column < left else entry.rjust(width)
            for column, (entry, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


# -- targets -------------------------------------------------------------------------------------------------


def p50(sample: Sample) -> float:
    """Of a round-trip sample."""
    return sample.p50_us or 0.0


def paired(samples: Samples, over: Key, under: Key, figure: Callable[[Sample], float]) -> float | None:
    """Median over the rounds of ``figure`` of one cell by that of another; None when no round has both."""
    above, below = samples.get(over, {}), samples.get(under, {})
    ratios = [figure(above[turn]) / figure(below[turn]) for turn in above if turn in below and figure(below[turn])]
    return statistics.median(ratios) if ratios else None


def flatness(samples: Samples) -> float | None:
    """Slowest over fastest loan rate among the sizes, median of the rounds in which every size was measured."""
    cells = [by_round for (peer, mode, _), by_round in samples.items() if peer == OURS and mode == "loan"]
    if len(cells) < 2:
        return None
    turns = set.intersection(*(set(by_round) for by_round in cells))
    shares = []
    for turn in turns:
        rates = [rate(by_round[turn]) for by_round in cells]
        shares.append(min(rates) / max(rates) if max(rates) else 0.0)
    return statistics.median(shares) if shares else None


def targets(samples: Samples) -> list[Target]:
    """What this benchmark is to show, with what it showed."""

    def frames(peer: str, size: int) -> Key:
        return (peer, "throughput", size)

    def trips(peer: str) -> Key:
        return (peer, "roundtrip", 64)

    of_ours = [by_round for (peer, _, _), by_round in samples.items() if peer in (OURS, BATCHED)]
    ours = [sample for by_round in of_ours for sample in by_round.values()]
    wrong = float(sum(sample.sent - sample.received + sample.repeated for sample in ours)) if ours else None
    return [
        Target(
            "64 B throughput at least 8x pyzmq",
            8.0,
            True,
            paired(samples, frames(OURS, 64), frames("pyzmq", 64), rate),
        ),
        Target(
            "64 B throughput at least 100x dora",
            100.0,
            True,
            paired(samples, frames(OURS, 64), frames("dora", 64), rate),
        ),
        Target(
            f"64 B throughput in batches of {BATCH} at least 8x pyzmq (one frame a call)",
            8.0,
            True,
            paired(samples, frames(BATCHED, 64), frames("pyzmq", 64), rate),
        ),
        Target(
            f"64 B throughput in batches of {BATCH} at least 100x dora (one frame a call)",
            100.0,
            True,
            paired(samples, frames(BATCHED, 64), frames("dora", 64), rate),
        ),
        Target(
            "64 B round trip p50 at most 1/20 of pyzmq's (theirs over ours, at least 20)",
            20.0,
            True,
            paired(samples, trips("pyzmq"), trips(OURS), p50),
        ),
        Target(
            "1 MiB throughput at least 0.85 of the memcpy limit",
            0.85,
            True,
            paired(samples, frames(OURS, MIB), frames("memcpy", MIB), rate),
        ),
        Target(f"loan rate flat over the sizes (slowest over fastest, at least {FLAT})", FLAT, True, flatness(samples)),
        Target(
            "64 B round trip p50 between processes at most 3x that within one",
            3.0,
            False,
            paired(samples, trips(OURS), trips("chronetix-inproc"), p50),
        ),
        Target("frames that chronetix lost or repeated: none", 0.0, False, wrong),
    ]


# -- the whole ----------------------------------------------------------------------------------------------

DEFINITIONS = (
    "throughput: the first 8 bytes of a frame are its number. Up to 4 KiB the sender sends 256 numbered frames in",
    "  turn, above it numbers one warm buffer anew. The receiver checks the number of every frame and drops it without",
    "  reading the rest. Time runs to the end marker's arrival.",
    f"{BATCHED}: the sender passes {BATCH} numbered frames in one buffer, the receiver takes at most {BATCH} that are",
    "  there and compares their numbers, gathered by numpy, with those expected. All other peers move a frame a call.",
    "loan: as throughput, but the sender writes only those 8 bytes, in place; the payload is not touched otherwise.",
    "roundtrip: one frame there and the same bytes back, one on its way; p50 and p99 of each.",
    "lost: sent and never received. cpu s/M: processor seconds of all processes for a million frames (or trips).",
    "Both ends begin each phase on processors of their own, and are not pinned.",
    "ratio: how many times as good as this peer chronetix is (frames/s, or p50 for round trips).",
)

NOT_MEASURED = (
    "more than one sender or receiver, other machines, pinned or isolated processors, a receiver that reads the whole",
    "payload, memory pressure, and start-up (see bench.start).",
)


def document(
    rows: Sequence[Row],
    samples: Samples,
    *,
    machine: str,
    peers: Iterable[tuple[str, str, str]],
    missing: Sequence[str],
) -> str:
    """Everything that is printed.

    ``peers`` are (name, version, about); ``missing`` says what was not measured, and why.
    """
    lines = [machine, "", *table(rows), "", "Peers"]
    lines += [f"  {name} {version}: {about}" for name, version, about in peers]
    lines += ["", "Definitions", *(f"  {line}" for line in DEFINITIONS)]
    lines += ["", "Targets (median of the ratios of each round)", *(target.line() for target in targets(samples))]
    lines += ["", "Not measured", *(f"  {line}" for line in missing), *(f"  {line}" for line in NOT_MEASURED)]
    return "\n".join(lines)
