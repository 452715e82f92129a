"""``python -m bench.compile``: how long a flow takes from its text to its compiled form, and how that grows.

Rules:

* A flow of N Python nodes, each of which sends to the next two: 2 N routes. The text is in memory; nothing is started.
* Each round compiles every size in both languages; the figures are medians. The time is the processor's, so that other
  programs on the machine count as little as possible.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.machine import describe_machine, own_version, progress
from bench.report import aligned, number_text
from chronetixd.compile import compile_text

SIZES = (100, 1_000, 10_000)
ROUNDS = 3
TARGET_S = 3.0
"""Seconds that the largest flow may take in either language."""

LANGUAGES: dict[str, Callable[[Any], str]] = {"json": json.dumps, "yaml": yaml.safe_dump}


@dataclass(frozen=True, slots=True)
class CompileRow:
    """One line of the JSON file."""

    peer: str
    version: str
    language: str
    nodes: int
    routes: int
    text_bytes: int
    seconds: float
    us_per_node: float


def graph(nodes: int) -> dict[str, Any]:
    """Return a flow in which each node sends to the next two."""
    plugin = {"kind": "python", "artifact": "python://nodes.py:forward"}
    ends = [(start, end) for start in range(nodes) for end in (start + 1, start + 2) if end < nodes]
    return {
        "name": "large",
        "nodes": [{"id": f"n{number}", "plugin": plugin, "params": {"number": number}} for number in range(nodes)],
        "routes": [{"from": f"n{start}", "to": f"n{end}"} for start, end in ends],
    }


def measure(language: str, text: str, nodes: int) -> CompileRow:
    """Compile once."""
    progress(f"{nodes} nodes, {language}")
    began = time.process_time()
    compiled = compile_text(text, f"large.{language}")
    seconds = time.process_time() - began
    routes = len(compiled.output["routes"])
    us_per_node = seconds / nodes * 1e6
    return CompileRow("chronetix", own_version(), language, nodes, routes, len(text.encode()), seconds, us_per_node)


def medians(rows: Sequence[CompileRow]) -> list[CompileRow]:
    """Return the median row of each language and size."""
    kinds: dict[tuple[str, int], list[CompileRow]] = {}
    for row in rows:
        kinds.setdefault((row.language, row.nodes), []).append(row)
    return [sorted(same, key=lambda row: row.seconds)[(len(same) - 1) // 2] for same in kinds.values()]


def document(rows: Sequence[CompileRow], machine: str) -> str:
    """Return the table and the target."""
    lines = [("language", "nodes", "routes", "text bytes", "seconds", "us/node")]
    lines += [
        (
            row.language,
            str(row.nodes),
            str(row.routes),
            str(row.text_bytes),
            number_text(row.seconds),
            number_text(row.us_per_node),
        )
        for row in rows
    ]
    largest = max(row.nodes for row in rows)
    verdicts = [
        f"  {'met' if row.seconds <= TARGET_S else 'MISSED':12}  {row.language}: {number_text(row.seconds)} s"
        for row in rows
        if row.nodes == largest
    ]
    target = f"Target: {largest} nodes in at most {TARGET_S:g} s of processor time"
    return "\n".join([machine, "", *aligned(lines, left=1), "", target, *verdicts])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.compile", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="NODES", help="default: 100 to 10,000")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    options = parser.parse_args(argv)
    graphs = {nodes: graph(nodes) for nodes in options.sizes}
    texts = {(language, nodes): write(graphs[nodes]) for language, write in LANGUAGES.items() for nodes in graphs}
    rows = medians(
        [measure(language, text, nodes) for _ in range(options.rounds) for (language, nodes), text in texts.items()]
    )
    progress("")
    if options.json is not None:
        options.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    print(document(rows, f"{describe_machine()}; median of {options.rounds} round(s)"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
