"""The table, the targets and the notes of the data-plane benchmark, as text. Pure: rows and samples in, lines out.

A ratio says how many times as good as the peer chronetix is: frames a second of chronetix over the peer's, or the
peer's p50 over that of chronetix. Targets are judged on the ratios of each round (both sides measured within the same
seconds), of which the median counts, or with ``--best-of`` the best.
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

Figure = Callable[[Sample], float]
LARGE = (MIB, 8 * MIB, 40_000_000)
"""Sizes of frames whose copy is what they cost."""

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
    """Return ``size`` bytes in the largest unit that fits."""
    if size >= 1_000_000 and size % 1_000_000 == 0:
        return f"{size // 1_000_000} MB"
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def number_text(value: float | None) -> str:
    """Return three significant digits with separators; a dash for a figure that does not apply."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def ratio(row: Row, ours: Row | None) -> float | None:
    """Return how many times as good chronetix is in the same mode and size; None for its own row, or without a row of
    it."""
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
    """Return columns as wide as their widest entry, the first ``left`` of them aligned to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            entry.ljust(width) if column < left else entry.rjust(width)
            for column, (entry, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


# -- targets -------------------------------------------------------------------------------------------------

RIVALS = ("pipe", "queue", "faster-fifo", "pyzmq", "iceoryx2-poll", "iceoryx2-event", "zenoh", "dora")
"""The peers besides chronetix that move frames between processes."""


def p50(sample: Sample) -> float:
    """Return the median latency of a round-trip sample."""
    return sample.p50_us or 0.0


def cpu_per_frame(sample: Sample) -> float:
    """Return the processor seconds for a frame that arrived."""
    return sample.cpu_s / sample.received if sample.received else 0.0


@dataclass(frozen=True, slots=True)
class Judge:
    """Ratios within each round of ``samples``, and which round counts: the median one, or with ``best`` the best."""

    samples: Samples
    best: bool = False

    def paired(self, over: Key, under: Key, figure: Figure, *, at_least: bool = True) -> float | None:
        """Return the ratios of ``figure`` of one cell to that of another; None when no round has both."""
        above, below = self.samples.get(over, {}), self.samples.get(under, {})
        ratios = [figure(above[turn]) / figure(below[turn]) for turn in above if turn in below and figure(below[turn])]
        return self.chosen(ratios, at_least)

    def chosen(self, ratios: Sequence[float], at_least: bool = True) -> float | None:
        """Return the ratio that counts among those of the rounds."""
        if not ratios:
            return None
        if not self.best:
            return statistics.median(ratios)
        return max(ratios) if at_least else min(ratios)

    def flatness(self) -> float | None:
        """Return the slowest by the fastest loan rate among the sizes, of the rounds in which every size was
        measured."""
        cells = [by_round for (peer, mode, _), by_round in self.samples.items() if peer == OURS and mode == "loan"]
        if len(cells) < 2:
            return None
        shares = []
        for turn in set.intersection(*(set(by_round) for by_round in cells)):
            rates = [rate(by_round[turn]) for by_round in cells]
            shares.append(min(rates) / max(rates) if max(rates) else 0.0)
        return self.chosen(shares)

    def batched(self) -> float | None:
        """Return how near small frames in batches have come to the nearer of their two targets."""
        rates = [rate(sample) for sample in self.samples.get((BATCHED, "throughput", 64), {}).values()]
        fast = self.chosen([frames_per_s / BATCHED_RATE for frames_per_s in rates])
        times = self.paired((BATCHED, "throughput", 64), ("pyzmq", "throughput", 64), rate)
        shares = [fast, times and times / BATCHED_TIMES]
        return max((share for share in shares if share is not None), default=None)

    def thrift(self, size: int) -> float | None:
        """Return the processor time of the most frugal rival by that of chronetix, for frames of ``size`` bytes."""
        key: Key = (OURS, "throughput", size)
        ratios = [self.paired((rival, "throughput", size), key, cpu_per_frame) for rival in RIVALS]
        found = [ratio for ratio in ratios if ratio is not None]
        return min(found) if found else None


BATCHED_RATE, BATCHED_TIMES = 20e6, 50.0
"""Frames a second, and times pyzmq: small frames in batches are to reach one of them."""


def frames(peer: str, size: int) -> Key:
    """A throughput cell."""
    return (peer, "throughput", size)


def trips(peer: str) -> Key:
    """The round-trip cell of small frames."""
    return (peer, "roundtrip", 64)


def targets(samples: Samples, *, best: bool = False) -> list[Target]:
    """Return the targets of this benchmark with the measured figures."""
    judge = Judge(samples, best)
    of_ours = [by_round for (peer, _, _), by_round in samples.items() if peer in (OURS, BATCHED)]
    ours = [sample for by_round in of_ours for sample in by_round.values()]
    wrong = float(sum(sample.sent - sample.received + sample.repeated for sample in ours)) if ours else None
    small = [
        Target(text, limit, True, judge.paired(frames(peer, 64), frames(rival, 64), rate))
        for text, limit, peer, rival in (
            ("64 B throughput at least 10x pyzmq", 10.0, OURS, "pyzmq"),
            ("64 B throughput at least 20x iceoryx2's binding, polled", 20.0, OURS, "iceoryx2-poll"),
            ("64 B throughput at least 200x dora", 200.0, OURS, "dora"),
        )
    ]
    batched = Target(
        f"64 B in batches of {BATCH} at least 20 M frames/s, or 50x pyzmq one a call (share of the nearer, at least 1)",
        1.0,
        True,
        judge.batched(),
    )
    quick = [
        Target(
            "64 B round trip p50 at most 1/50 of pyzmq's (theirs over ours, at least 50)",
            50.0,
            True,
            judge.paired(trips("pyzmq"), trips(OURS), p50),
        ),
        Target(
            "64 B round trip p50 below iceoryx2's busy polling (theirs over ours, at least 1)",
            1.0,
            True,
            judge.paired(trips("iceoryx2-poll"), trips(OURS), p50),
        ),
        Target(
            "64 B round trip p50 between processes at most 3x that within one",
            3.0,
            False,
            judge.paired(trips(OURS), trips("chronetix-inproc"), p50, at_least=False),
        ),
    ]
    large = [
        Target(
            f"{size_text(size)} throughput at least 0.9 of the memcpy limit",
            0.9,
            True,
            judge.paired(frames(OURS, size), frames("memcpy", size), rate),
        )
        for size in LARGE
    ]
    thrifty = [
        Target(
            f"{size_text(size)} processor time a GB the lowest of all between processes (theirs over ours, at least 1)",
            1.0,
            True,
            judge.thrift(size),
        )
        for size in (64 * KIB, *LARGE)
    ]
    return [
        *small,
        batched,
        *quick,
        *large,
        *thrifty,
        Target(f"loan rate flat over the sizes (slowest over fastest, at least {FLAT})", FLAT, True, judge.flatness()),
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
    best: bool = False,
) -> str:
    """Return everything that is printed. ``peers`` are (name, version, about); ``missing`` says what was not measured,
    and why."""
    lines = [machine, "", *table(rows), "", "Peers"]
    lines += [f"  {name} {version}: {about}" for name, version, about in peers]
    lines += ["", "Definitions", *(f"  {line}" for line in DEFINITIONS)]
    lines += ["", f"Targets ({'best' if best else 'median'} of the ratios of each round)"]
    lines += [target.line() for target in targets(samples, best=best)]
    lines += ["", "Not measured", *(f"  {line}" for line in missing), *(f"  {line}" for line in NOT_MEASURED)]
    return "\n".join(lines)
