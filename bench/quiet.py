"""``python -m bench.quiet``: the cost of a flow of N workers while it is idle, and while it is held up.

Rules:

* Wake-ups are context switches of every thread of the daemon, its launcher, its spares and all workers, as
  ``/proc/PID/task/*/status`` counts them; CPU time is ``/proc/PID/task/*/schedstat``. Nothing is sampled.
* Idle: a chain of data routes on which no frame is sent. Held up: its first node sends as fast as its credits permit,
its
  last one returns no frame; the clock starts when no route carries frames any more.
* The interval begins when the counts have been the same twice in a row, or after a minute of waiting for that.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from bench.machine import describe_machine, own_version, progress
from bench.report import aligned, number_text
from bench.start import LIMIT, ROOT, await_spares, daemon, flow
from chronetixctl.client import Client

WORKERS, SECONDS = 100, 10.0
SETTLE_S = 60.0
CPU_TARGET = 0.01
"""The target: at most this share of one processor while the flow is held up."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Wake-ups and processor time of some processes, so far or in an interval."""

    switches: int
    cpu_ns: int

    def __sub__(self, earlier: Cost) -> Cost:
        return Cost(self.switches - earlier.switches, self.cpu_ns - earlier.cpu_ns)


@dataclass(frozen=True, slots=True)
class QuietRow:
    """One line of the JSON file. ``cpu`` is a share of one processor."""

    peer: str
    version: str
    mode: Literal["idle", "held up"]
    part: Literal["workers", "daemon"]
    workers: int
    seconds: float
    switches: int
    wakeups_per_second: float
    cpu: float


def cost(pids: Sequence[int]) -> Cost:
    """Return the cost of all threads of these processes since they were started."""
    switches = cpu_ns = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if "ctxt_switches" in line:
                    switches += int(line.split()[1])
            cpu_ns += int((task / "schedstat").read_text().split()[0])
    return Cost(switches, cpu_ns)


def processes(client: Client, name: str) -> tuple[list[int], list[int]]:
    """Return the processes of the flow's workers, and those of the daemon with its launcher and spare workers."""
    workers = [node["pid"] for node in client.call("describe", flow=name)["nodes"]]
    supervisor = psutil.Process(client.call("version")["pid"])
    others = [child.pid for child in supervisor.children(recursive=True) if child.pid not in workers]
    return workers, [supervisor.pid, *others]


def settled(pids: Sequence[int]) -> None:
    """Wait until the counts of the processes do not change any more, or for a minute."""
    give_up = time.monotonic() + SETTLE_S
    before = cost(pids).switches
    while time.monotonic() < give_up:
        time.sleep(1.0)
        now = cost(pids).switches
        if now == before:
            return
        before = now


def held_up(client: Client, name: str) -> None:
    """Wait until no frame is sent on any route any more. Raises TimeoutError if that takes too long."""
    give_up = time.monotonic() + LIMIT
    before = 0
    while True:
        sent = sum(route["stats"]["committed"] for route in client.call("describe", flow=name)["routes"])
        if sent == before > 0:
            return
        if time.monotonic() > give_up:
            raise TimeoutError(f"the stream of {name} still flows after {LIMIT:.0f} s")
        before = sent
        time.sleep(1.0)


def flooded(workers: int) -> dict[str, Any]:
    """Return the chain with a source that sends without pause and a sink that keeps every frame."""
    compiled = flow("held-up", workers, chained=True)
    compiled["manifests"][0]["artifact"]["uri"] = "python://bench.idle:flood"
    compiled["manifests"][-1]["artifact"]["uri"] = "python://bench.idle:Hoard"
    return compiled


def observe(
    client: Client, compiled: dict[str, Any], mode: Literal["idle", "held up"], seconds: float
) -> list[QuietRow]:
    """Run the flow, wait until it is idle or held up, and count wake-ups."""
    name = compiled["name"]
    progress(f"{len(compiled['manifests'])} workers, {mode}: starting")
    client.call("submit", flow=compiled, base_dir=str(ROOT), wait="running", timeout=LIMIT)
    try:
        if mode == "held up":
            held_up(client, name)
        await_spares(client)
        workers, others = processes(client, name)
        settled([*workers, *others])
        progress(f"{len(workers)} workers, {mode}: counting for {seconds:g} s")
        began, before = time.monotonic(), (cost(workers), cost(others))
        time.sleep(seconds)
        after, took = (cost(workers), cost(others)), time.monotonic() - began
    finally:
        client.call("stop", flow=name, mode="now", timeout=LIMIT)
    parts: tuple[Literal["workers", "daemon"], ...] = ("workers", "daemon")
    return [
        QuietRow(
            "chronetix",
            own_version(),
            mode,
            part,
            len(workers),
            took,
            spent.switches,
            spent.switches / took,
            spent.cpu_ns / took / 1e9,
        )
        for part, spent in zip(parts, map(Cost.__sub__, after, before), strict=True)
    ]


def verdicts(rows: Sequence[QuietRow]) -> list[str]:
    """Return both targets with the measured figures."""
    idle = sum(row.switches for row in rows if row.mode == "idle")
    held = sum(row.cpu for row in rows if row.mode == "held up")
    return [
        f"  {'met' if idle == 0 else 'MISSED'}  idle: no wake-up in workers and daemon: {idle}",
        f"  {'met' if held < CPU_TARGET else 'MISSED'}  held up: below {CPU_TARGET:.0%} of a processor: {held:.2%}",
    ]


def document(rows: Sequence[QuietRow], machine: str) -> str:
    """Return the table and the targets."""
    lines = [("mode", "part", "workers", "seconds", "wake-ups", "wake-ups/s", "CPU %")]
    lines += [
        (
            row.mode,
            row.part,
            str(row.workers),
            number_text(row.seconds),
            str(row.switches),
            number_text(row.wakeups_per_second),
            number_text(row.cpu * 100),
        )
        for row in rows
    ]
    return "\n".join([machine, "", *aligned(lines, left=2), "", "Targets", *verdicts(rows)])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.quiet", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--workers", type=int, default=WORKERS, metavar="N", help=f"default {WORKERS}, at least 2")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"of counting; default {SECONDS:g}")
    options = parser.parse_args(argv)
    if options.workers < 2:
        parser.error(f"--workers must be at least 2, not {options.workers}: a chain has two ends")
    modes: list[tuple[Literal["idle", "held up"], Callable[[], dict[str, Any]]]] = [
        ("idle", lambda: flow("idle", options.workers, chained=True)),
        ("held up", lambda: flooded(options.workers)),
    ]
    rows: list[QuietRow] = []
    with (
        tempfile.TemporaryDirectory(prefix="chronetix-bench-") as folder,
        daemon(Path(folder) / "daemon") as client,
    ):
        for mode, make in modes:
            rows += observe(client, make(), mode, options.seconds)
    progress("")
    if options.json is not None:
        options.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    print(document(rows, describe_machine()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
