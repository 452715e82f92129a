"""``python -m bench.data``: frames from one Python process to another, chronetix and its rivals side by side.

Every round measures every cell (mode and size) with all peers one after another, starting with another peer each time;
a figure is the median of its rounds, or with ``--best-of N`` the best of N. The run has a time limit; cells that it did
not reach are listed, and so is every peer that could not start.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.cells import KIB, LOAN_SIZES, MIB, SIZES, Cell, Mode, Row, Sample, row
from bench.hosts import CellFailed, Host, Unavailable
from bench.machine import describe_machine, progress
from bench.peers import PEERS
from bench.report import OURS, Key, document, size_text

ROUNDS = 3
RUN_LIMIT, QUICK_RUN_LIMIT = 290.0, 38.0
"""Seconds for the whole run."""
CELL_LIMIT, QUICK_CELL_LIMIT = 12.0, 6.0
"""Seconds for one cell of one peer, including set-up, drain and end; ``--limit`` changes both in proportion."""
QUICK_SIZES = (64, MIB)
QUICK_LOAN_SIZES = (64 * KIB, 40_000_000)
FAILURES = 2
"""After how many failures of a cell the later rounds skip it."""

UNITS = {"": 1, "B": 1, "K": KIB, "KB": 1000, "KIB": KIB, "M": MIB, "MB": 1_000_000, "MIB": MIB}


def parse_size(text: str) -> int:
    """Bytes of ``64``, ``1KiB``, ``40MB``; at least the 64 of the smallest frame."""
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 64, 1KiB, 1MiB or 40MB")
    size = int(match[1]) * UNITS[match[2].upper()]
    if size < 64:
        raise argparse.ArgumentTypeError(f"{text!r} is too small: frames are measured from 64 bytes on")
    return size


def parse_sizes(text: str) -> tuple[int, ...]:
    """Sizes apart by commas."""
    return tuple(parse_size(part) for part in text.split(","))


def parse_peers(text: str) -> tuple[str, ...]:
    """Names apart by commas, each a known peer."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"no peer {name!r}: there are {', '.join(PEERS)}")
    return names


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.data", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--quick", action="store_true", help="one short round of 64 B and 1 MiB, under 40 s")
    parser.add_argument("--peers", type=parse_peers, default=tuple(PEERS), help="comma-separated names")
    parser.add_argument("--sizes", type=parse_sizes, help="comma-separated, such as 64,1KiB,40MB")
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help=f"median of N rounds (default {ROUNDS})")
    parser.add_argument("--best-of", type=int, default=None, metavar="N", help="best of N rounds instead")
    limits = f"{RUN_LIMIT:g}, with --quick {QUICK_RUN_LIMIT:g}"
    parser.add_argument("--limit", type=float, metavar="SECONDS", help=f"of the whole run (default {limits})")
    return parser.parse_args(argv)


def plan(sizes: Sequence[int] | None, quick: bool) -> list[Cell]:
    """The cells of one round."""
    seconds, warm_up = (0.2, 0.04) if quick else (0.35, 0.05)
    wanted = sizes or (QUICK_SIZES if quick else SIZES)
    loans = sizes or (QUICK_LOAN_SIZES if quick else LOAN_SIZES)
    modes: tuple[tuple[Mode, Sequence[int]], ...] = (
        ("throughput", wanted),
        ("roundtrip", wanted),
        ("loan", loans),
    )
    return [Cell(mode, size, seconds, warm_up) for mode, of_mode in modes for size in of_mode]


class Run:
    """One run: the hosts, what they measured, and what is missing with the reason."""

    def __init__(self, names: Sequence[str], cells: Sequence[Cell], *, until: float, limit: float) -> None:
        self.names = names
        self.cells = cells
        self.until = until
        self.limit = limit
        self.hosts: dict[str, Host] = {}
        self.known: dict[str, Host] = {}
        self.samples: dict[Key, dict[int, Sample]] = {}
        self.failures: dict[Key, list[str]] = {}
        self.missing: dict[tuple[str, str], list[str]] = {}

    def start(self, folder: Path) -> None:
        """Start every host, then wait for each."""
        started = {name: Host(name, folder / name) for name in self.names}
        self.hosts = dict(started)
        for name, host in started.items():
            progress(f"starting {name}")
            try:
                host.ready()
                self.known[name] = host
            except Unavailable as reason:
                self.drop(name, f"could not start: {reason}")

    def drop(self, name: str, reason: str) -> None:
        """Drop a peer for the rest of the run, and note the reason."""
        self.miss(name, reason, "all that follows")
        self.hosts.pop(name).close()

    def round(self, turn: int, rounds: int) -> None:
        """Measure every cell with every peer."""
        for index, cell in enumerate(self.cells):
            names = [name for name in self.names if name in self.hosts and self.hosts[name].takes(cell)]
            shift = (turn + index) % len(names) if names else 0
            for name in names[shift:] + names[:shift]:
                if time.monotonic() > self.until:
                    self.miss(name, "the run's time was up", cell_text(cell, turn))
                    continue
                progress(f"round {turn + 1} of {rounds}: {cell.mode} {size_text(cell.size)} {name}")
                self.measure(name, cell, turn)

    def measure(self, name: str, cell: Cell, turn: int) -> None:
        """Measure one cell of one peer, unless it failed too often."""
        key: Key = (name, cell.mode, cell.size)
        failed = self.failures.setdefault(key, [])
        if len(failed) >= FAILURES or name not in self.hosts:
            return
        try:
            sample = self.hosts[name].measure(cell, self.limit)
        except CellFailed as reason:
            failed.append(str(reason))
            self.miss(name, str(reason), cell_text(cell, turn))
        except Unavailable as reason:
            self.drop(name, str(reason))
        else:
            self.samples.setdefault(key, {})[turn] = sample

    def miss(self, name: str, reason: str, what: str) -> None:
        """Note which measurement of a peer is missing, and why."""
        self.missing.setdefault((name, reason), []).append(what)

    def missing_lines(self) -> list[str]:
        """One for each peer and reason."""
        return [f"{name}: {reason} ({', '.join(what)})" for (name, reason), what in self.missing.items()]

    def rows(self, *, best: bool) -> list[Row]:
        """In the order of cells, then of peers."""
        rows = []
        for cell in self.cells:
            for name in self.names:
                found = self.samples.get((name, cell.mode, cell.size))
                if found:
                    rows.append(row(name, self.known[name].version, cell, list(found.values()), best=best))
        return rows

    def close(self) -> None:
        """End every host."""
        while self.hosts:
            self.hosts.popitem()[1].close()


def cell_text(cell: Cell, turn: int) -> str:
    """A cell of one round, for people."""
    return f"{cell.mode} {size_text(cell.size)} round {turn + 1}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when chronetix was asked for and could not be measured."""
    options = arguments(argv)
    rounds = options.best_of or options.rounds or (1 if options.quick else ROUNDS)
    of_run, of_cell = (QUICK_RUN_LIMIT, QUICK_CELL_LIMIT) if options.quick else (RUN_LIMIT, CELL_LIMIT)
    longer = (options.limit or of_run) / of_run
    until = time.monotonic() + of_run * longer
    run = Run(options.peers, plan(options.sizes, options.quick), until=until, limit=of_cell * longer)
    with tempfile.TemporaryDirectory(prefix="chronetix-bench-") as folder:
        try:
            run.start(Path(folder))
            for turn in range(rounds):
                run.round(turn, rounds)
        finally:
            run.close()
            progress("")
    best = options.best_of is not None
    rows = run.rows(best=best)
    if options.json is not None:
        options.json.write_text("".join(json.dumps(line.as_json()) + "\n" for line in rows))
    peers = [(name, host.version, host.about) for name, host in run.known.items()]
    where = f"{describe_machine()}; {'best' if best else 'median'} of {rounds} round(s)"
    print(document(rows, run.samples, machine=where, peers=peers, missing=run.missing_lines(), best=best))
    return 1 if OURS in options.peers and not any(line.peer == OURS for line in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
