"""``python -m bench.ctoc``: C to C over one route in each direction, by the method of iceoryx2's own benchmark.

Two ends, each pinned to a processor, poll without pause for the next frame; the figure is half of a round trip's mean,
in the best of ROUNDS. The ends are two threads of one process, then two processes. A frame has 8 KiB that neither end
touches, or that the sender writes and the receiver reads whole. For comparison the table has the lower bound, one word
that two threads change in turn, and the figure that iceoryx2's authors publish, which they measured on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.machine import describe_machine, own_version, progress
from bench.report import aligned

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "bench" / "native" / "pingpong.c"
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O3", f"-I{ROOT / 'shm' / 'include'}")
ROUNDS = 3
BYTES = 8192
CASES = (("word", False), ("threads", False), ("processes", False), ("threads", True), ("processes", True))
PUBLISHED = "92 to 99"
"""Nanoseconds of one way that iceoryx2's benchmark is published with: two pinned threads of one process, untouched."""


@dataclass(frozen=True, slots=True)
class Row:
    """One case, nanoseconds of one way: the best round and all of them. ``bytes`` is 0 for the floor."""

    peer: str
    version: str
    ends: str
    bytes: int
    touched: bool
    ns: float
    rounds: list[float]


def build(folder: Path) -> Path:
    """Compile the program and return its path. Raises FileNotFoundError without a compiler, CalledProcessError if the
    program does not compile."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("a C compiler is missing: apt-get install gcc")
    program = folder / "pingpong"
    subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(program), "-lpthread"], check=True)
    return program


def measure(program: Path, ends: str, touched: bool, trips: int, processors: tuple[int, int]) -> float:
    """Measure one round of one case, and return the nanoseconds of one way."""
    words = [ends, str(BYTES), str(int(touched)), str(trips), *map(str, processors)]
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"pingpong ended with {done.returncode}")
    return float(done.stdout)


def document(rows: Sequence[Row], machine: str) -> str:
    """Return the text to print."""
    lines = [("ends", "payload", "ns one way", "rounds")]
    for row in rows:
        payload = "one word" if row.ends == "word" else f"{row.bytes} B, {'touched' if row.touched else 'untouched'}"
        ends = "floor: two threads" if row.ends == "word" else f"two {row.ends}"
        lines.append((ends, payload, f"{row.ns:.0f}", " ".join(f"{ns:.0f}" for ns in row.rounds)))
    published = (
        f"two threads, untouched: {PUBLISHED} ns. Published by its authors for their machine; not measured here."
    )
    return "\n".join([machine, "", *aligned(lines, left=2), "", "iceoryx2's own Rust benchmark", f"  {published}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where there are no two processors or no compiler."""
    parser = argparse.ArgumentParser(prog="python -m bench.ctoc", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--trips", type=int, default=200_000, metavar="N", help="round trips of each round")
    options = parser.parse_args(arguments)
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        print("two processors are needed: each end is pinned to one and never sleeps", file=sys.stderr)
        return 1
    found: dict[tuple[str, bool], list[float]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(prefix="chronetix-bench-") as folder:
        try:
            program = build(Path(folder))
        except FileNotFoundError as reason:
            print(reason, file=sys.stderr)
            return 1
        for turn in range(ROUNDS):
            for ends, touched in CASES:
                progress(f"round {turn + 1} of {ROUNDS}: {ends}")
                trips = max(1, options.trips // 10) if touched else options.trips
                found[ends, touched].append(measure(program, ends, touched, trips, (usable[0], usable[-1])))
    progress("")
    rows = [
        Row("chronetix-c", own_version(), ends, 0 if ends == "word" else BYTES, touched, min(all_of), all_of)
        for (ends, touched), all_of in found.items()
    ]
    if options.json is not None:
        options.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    print(document(rows, f"{describe_machine()}; best of {ROUNDS} rounds"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
