"""``python -m bench.loop``: how long a client waits for ``version`` while the daemon works for other clients.

Rules:

* A process of its own calls ``version`` again and again (bench.gauge). The time for which it or the daemon waits for a
  processor is subtracted, so that the figures are those of the loop and not of the machine.
* There is one daemon for each number of nodes. The nodes are one chain that is started, queried (``describe``,
``stats``),
  validated with eight routes a node, and killed at once. There is one daemon for each number of flows of one node.
* Slow disk: every fsync takes DISK_MS while a flow is submitted and a worker dies and is restarted.
* ``took``: the median time of one such operation; for ``top`` that is one ``stats`` of all flows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gauge import Gauge
from bench.machine import describe_machine, own_version, progress
from bench.report import aligned
from bench.start import ROOT, daemon, flow
from chronetixctl.client import Client

SIZES = (1, 10, 100, 1000)
SECONDS = 3.0
DISK_MS = 1000
LIMIT_S = 600.0
P99_MS, LONGEST_MS, TOP_MS = 10.0, 50.0, 20.0
"""Targets in ms: p99 and maximum of ``version``, and the median of ``stats``."""


@dataclass(frozen=True, slots=True)
class LoopRow:
    """One line of the JSON file; times in ms."""

    peer: str
    version: str
    what: str
    of: str
    count: int
    took: float
    answers: int
    p50: float
    p99: float
    longest: float


class Bench:
    """One daemon with a gauge. ``of`` names the things (nodes or flows) of which there are ``count``."""

    def __init__(self, client: Client, gauge: Gauge, of: str, count: int) -> None:
        self.client = client
        self.rows: list[LoopRow] = []
        self._gauge = gauge
        self._of = of
        self._count = count

    def during(self, what: str, act: Callable[[], Any], seconds: float = 0.0) -> None:
        """Add a row: call ``act`` once, and then again for ``seconds``."""
        progress(f"{self._count} {self._of}: {what}")
        self._gauge.look()
        end, took = time.monotonic() + seconds, list[float]()
        while not took or time.monotonic() < end:
            begun = time.monotonic()
            act()
            took.append(1000 * (time.monotonic() - begun))
        seen = self._gauge.look()
        middle = statistics.median(took)
        self.rows.append(LoopRow("chronetix", own_version(), what, self._of, self._count, middle, *seen))


@contextlib.contextmanager
def bench(of: str, count: int, slow: Path) -> Iterator[Bench]:
    """Run a daemon whose disk is slow while the file ``slow`` exists."""
    library = slow.with_name("slow_sync.so")
    if not library.exists():
        source = ROOT / "bench" / "native" / "slow_sync.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    before = dict(os.environ)
    os.environ |= {"LD_PRELOAD": str(library), "SLOW_SYNC_MS": str(DISK_MS), "SLOW_SYNC_ON": str(slow)}
    try:
        with (
            tempfile.TemporaryDirectory(prefix="chronetix-loop-") as folder,
            daemon(Path(folder) / "daemon", start_timeout=f"{LIMIT_S:g}") as client,
        ):
            os.environ.clear()
            os.environ |= before
            with Gauge(Path(folder) / "daemon" / "control.sock") as gauge:
                yield Bench(client, gauge, of, count)
    finally:
        os.environ.clear()
        os.environ |= before


def crowd(nodes: int) -> dict[str, Any]:
    """Return a flow that is only validated: each node sends to the eight nodes after it."""
    compiled = flow("crowd", nodes, chained=False)
    names = [each["node_id"] for each in compiled["manifests"]]
    compiled["routes"] = [
        {"from": here, "to": there, "plane": "data", "topic": f"{here}/{there}"}
        for at, here in enumerate(names)
        for there in names[at + 1 : at + 9]
    ]
    return compiled


def of_nodes(count: int, slow: Path) -> list[LoopRow]:
    """Measure all operations with one flow of ``count`` nodes."""
    restarts = {"policy": "transient", "max": 100, "window_ms": 1000}
    small = flow("small", 2, chained=True)
    for each in small["manifests"]:
        each["restart"] = restarts
    with bench("nodes", count, slow) as busy:
        call = busy.client.call

        def state(name: str) -> str:
            return str(next(each["state"] for each in call("list")["flows"] if each["name"] == name))

        def kill() -> None:
            for node in nodes:
                os.kill(node["pid"], signal.SIGKILL)
            until(lambda: state("many") == "failed")

        def write() -> None:
            call("submit", flow=small, name="small", base_dir=str(ROOT), wait="running", timeout=LIMIT_S)
            first = call("describe", flow="small")["nodes"][0]
            os.kill(first["pid"], signal.SIGKILL)
            until(lambda: call("describe", flow="small")["nodes"][0]["incarnation"] > first["incarnation"])
            call("stop", flow="small", mode="now", timeout=LIMIT_S)

        chain = flow("many", count, chained=True)
        where = {"base_dir": str(ROOT), "timeout": LIMIT_S}
        busy.during("start", lambda: call("submit", flow=chain, name="many", wait="running", **where))
        busy.during("describe", lambda: call("describe", flow="many", timeout=LIMIT_S), SECONDS)
        busy.during("top", lambda: call("stats", timeout=LIMIT_S), SECONDS)
        full = crowd(count)
        busy.during("validate", lambda: call("validate", flow=full, **where), SECONDS)
        slow.touch()
        busy.during(f"a disk of {DISK_MS} ms", write)
        slow.unlink()
        nodes = call("describe", flow="many", timeout=LIMIT_S)["nodes"]
        busy.during("all killed at once", kill)
        return busy.rows


def of_flows(count: int, slow: Path) -> list[LoopRow]:
    """``count`` flows of one node each."""
    with bench("flows", count, slow) as busy:
        call = busy.client.call
        one = flow("one", 1, chained=False)

        def start() -> None:
            for number in range(count):
                call("submit", flow=one, name=f"f{number}", base_dir=str(ROOT), timeout=LIMIT_S)
            until(lambda: all(each["state"] == "running" for each in call("list")["flows"]))

        busy.during("start", start)
        busy.during("list", lambda: call("list", timeout=LIMIT_S), SECONDS)
        busy.during("top", lambda: call("stats", timeout=LIMIT_S), SECONDS)
        return busy.rows


def until(reached: Callable[[], bool]) -> None:
    """Wait until ``reached()`` returns True. Raises TimeoutError after LIMIT_S."""
    give_up = time.monotonic() + LIMIT_S
    while not reached():
        if time.monotonic() > give_up:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.05)


def missed(row: LoopRow) -> bool:
    """Return whether a row misses its target."""
    slow_top = row.what == "top" and row.of == "flows" and row.count <= 100 and row.took > TOP_MS
    return row.count <= 300 and (row.p99 > P99_MS or row.longest > LONGEST_MS or slow_top)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all sizes and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.loop", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--nodes", type=int, nargs="*", default=SIZES, metavar="N", help="sizes of a flow")
    parser.add_argument("--flows", type=int, nargs="*", default=SIZES, metavar="N", help="numbers of flows")
    options = parser.parse_args(argv)
    rows: list[LoopRow] = []
    with tempfile.TemporaryDirectory(prefix="chronetix-slow-") as folder:
        for count in options.nodes:
            rows += of_nodes(count, Path(folder) / "slow")
        for count in options.flows:
            rows += of_flows(count, Path(folder) / "slow")
    progress("")
    print(f"{describe_machine()}; ms of a neighbour's version while others are served\n")
    lines = [("while", "of", "took", "answers", "p50", "p99", "longest")]
    for row in rows:
        times = (f"{each:.1f}" for each in (row.p50, row.p99, row.longest))
        lines.append((row.what, f"{row.count} {row.of}", f"{row.took:.1f}", str(row.answers), *times))
    print("\n".join(aligned(lines)))
    beyond = [f"{row.what} of {row.count} {row.of}" for row in rows if missed(row)]
    print(f"\ntarget, up to 300: p99 {P99_MS:.0f}, longest {LONGEST_MS:.0f}, top of 100 flows {TOP_MS:.0f}", end="; ")
    print(f"MISSED: {', '.join(beyond)}" if beyond else "met")
    if options.json:
        options.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
