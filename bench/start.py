"""``python -m bench.start``: N Python workers from submit to running, beside N warm forks and N cold interpreters.

Rules:

* The daemon is up and its launcher ready when the clock starts; the forking process of the comparison has its imports
  done too. Cold interpreters import the same modules, each for itself.
* The clock runs from before the submit call until its answer that the flow is running; for the others until every
  process has written its byte.
* chronetix is a daemon with default settings, whose few spare workers are forked when the clock starts;
chronetix-spares
  is a daemon with as many spares as workers. The time of forking spares ahead is not counted; their idle memory is
  reported.
* Unique memory is memory that only the process has (Private_Clean and Private_Dirty of smaps_rollup), read while all
run.
* Rounds of all peers take turns; the figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import select
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

from bench.machine import describe_machine, own_version, progress
from bench.report import aligned, number_text
from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client

ROOT = Path(__file__).parents[1]
WORKERS = 50
ROUNDS = 3
LIMIT = 60.0
"""How many seconds any start or end may take."""
MOST_SPARES = 256
"""The greatest value of the setting ``spares``."""
TARGET = 1.5
"""The target: at most so many times the time of warm forks."""


@dataclass(frozen=True, slots=True)
class Started:
    """One round of one way to start workers. ``unique_bytes`` is the mean of its workers."""

    seconds: float
    unique_bytes: float


@dataclass(frozen=True, slots=True)
class StartRow:
    """One line of the JSON file."""

    peer: str
    version: str
    mode: str
    workers: int
    seconds: float
    ms_per_worker: float
    unique_kib_per_worker: float


def unique_bytes(pid: int) -> int:
    """Return how many bytes of memory only the process ``pid`` has."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")) * 1024


def mean_unique(pids: Sequence[int]) -> float:
    """Return the mean unique memory of the started processes."""
    return statistics.mean(unique_bytes(pid) for pid in pids)


# -- a real daemon -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def daemon(folder: Path, **settings: str) -> Iterator[Client]:
    """Run a chronetixd in ``folder`` and yield a connected client; stop the daemon by SIGTERM at the end."""
    folder.mkdir(exist_ok=True)
    socket_path = folder / "control.sock"
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chronetixd", "--socket", str(socket_path), "--state-dir", str(folder / "state")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=os.environ | {f"CHRONETIX_{name.upper()}": value for name, value in settings.items()},
        )
    try:
        with connect(socket_path, process, folder / "daemon.log") as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def connect(path: Path, process: subprocess.Popen[bytes], log: Path) -> Client:
    """Connect as soon as the daemon listens. Raises RuntimeError with the end of the daemon's log if it does not."""
    give_up = time.monotonic() + LIMIT
    while True:
        try:
            return Client.connect(path)
        except ChronetixError as reason:
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"chronetixd did not come up: {log.read_text()[-500:]}") from reason
            time.sleep(0.02)


def await_spares(client: Client) -> list[int]:
    """Return the spare workers' processes once the daemon has as many as it is set to keep. Raises TimeoutError if that
    takes too long."""
    give_up = time.monotonic() + LIMIT
    while True:
        spares = client.call("version")["spares"]
        if len(spares["pids"]) == spares["wanted"]:
            return list(spares["pids"])
        if time.monotonic() > give_up:
            raise TimeoutError(f"the daemon has {len(spares['pids'])} of {spares['wanted']} spare workers")
        time.sleep(0.05)


def flow(name: str, workers: int, chained: bool) -> dict[str, Any]:
    """Return a compiled flow of ``workers`` idle nodes: unconnected, or one chain of data routes."""
    nodes = [f"n{index:03}" for index in range(workers)]
    routes = [
        {
            "from": here,
            "to": there,
            "plane": "data",
            "topic": f"bench/{here}",
            "port": f"bench/{here}",
            "content_type": "application/octet-stream",
            "schema_ver": "v1",
            "buffer": 64,
            "watermark": 48,
        }
        for here, there in itertools.pairwise(nodes)
    ]
    port = [{"content_type": "application/octet-stream", "schema_ver": "v1"}]
    manifests = [
        {
            "node_id": node,
            "plugin_id": node,
            "version": "1",
            "category": "Business",
            "role": "SourceTransform",
            "origin": "internal",
            "artifact": {"kind": "Python", "uri": "python://bench.idle:Idle"},
            "io": {
                "inputs": port if chained and index else [],
                "outputs": port if chained and index < workers - 1 else [],
            },
        }
        for index, node in enumerate(nodes)
    ]
    return {"name": name, "manifests": manifests, "routes": routes if chained else [], "schemas": []}


def start_flow(client: Client, workers: int, chained: bool, name: str) -> Started:
    """Wait for all spare workers, then submit, measure and stop."""
    await_spares(client)
    compiled = flow(name, workers, chained)
    began = time.monotonic()
    client.call("submit", flow=compiled, base_dir=str(ROOT), wait="running", timeout=LIMIT)
    seconds = time.monotonic() - began
    described = client.call("describe", flow=name)
    unique = mean_unique([node["pid"] for node in described["nodes"]])
    client.call("stop", flow=name, mode="now", timeout=LIMIT)
    return Started(seconds, unique)


# -- the comparisons -----------------------------------------------------------------------------------------


def start_warm(workers: int) -> Started:
    """Fork from one process that has imported everything."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.warm", str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout, process.stdin:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the forking process ended early; its message is above")
        report = json.loads(line)
        unique = mean_unique(report["pids"])
    process.wait(LIMIT)
    return Started(report["seconds"], unique)


def start_cold(workers: int) -> Started:
    """Start interpreters at once, each of which imports everything."""
    up_read, up_write = os.pipe()
    began = time.monotonic()
    processes = [
        subprocess.Popen([sys.executable, "-m", "bench.warm"], stdin=subprocess.PIPE, stdout=up_write, cwd=ROOT)
        for _ in range(workers)
    ]
    try:
        await_bytes(up_read, workers)
        seconds = time.monotonic() - began
        return Started(seconds, mean_unique([process.pid for process in processes]))
    finally:
        os.close(up_read)
        os.close(up_write)
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            process.wait(LIMIT)


def await_bytes(descriptor: int, count: int) -> None:
    """Wait until ``count`` bytes have arrived. Raises TimeoutError if they do not."""
    give_up = time.monotonic() + LIMIT
    while count > 0:
        if not select.select([descriptor], [], [], max(0.0, give_up - time.monotonic()))[0]:
            raise TimeoutError(f"{count} interpreters did not come up within {LIMIT:.0f} s")
        count -= len(os.read(descriptor, count))


# -- the run -------------------------------------------------------------------------------------------------


def measure(workers: int, rounds: int) -> tuple[dict[str, list[Started]], float]:
    """Measure all ways in every round, beginning with another one each time. Also returns the unique bytes of an idle
    spare worker."""
    found: dict[str, list[Started]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chronetix-bench-")))
        client = stack.enter_context(daemon(folder / "default"))
        prepared = stack.enter_context(daemon(folder / "spares", spares=str(min(workers, MOST_SPARES))))
        for each in (client, prepared):
            start_flow(each, 1, False, "ready")
        idle_bytes = mean_unique(await_spares(prepared))
        ways: dict[str, Callable[[], Started]] = {
            "chronetix": lambda: start_flow(client, workers, False, "idle"),
            "chronetix-chain": lambda: start_flow(client, workers, True, "chain"),
            "chronetix-spares": lambda: start_flow(prepared, workers, False, "idle"),
            "chronetix-spares-chain": lambda: start_flow(prepared, workers, True, "chain"),
            "warm-fork": lambda: start_warm(workers),
            "cold-interpreter": lambda: start_cold(workers),
        }
        names = list(ways)
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                progress(f"round {turn + 1} of {rounds}: {workers} x {name}")
                found.setdefault(name, []).append(ways[name]())
        progress("")
        return {name: found[name] for name in names}, idle_bytes


def start_rows(found: dict[str, list[Started]], workers: int, version: str, python: str) -> list[StartRow]:
    """Return the medians of all rounds."""
    rows = []
    for name, rounds in found.items():
        seconds = statistics.median(started.seconds for started in rounds)
        unique = statistics.median(started.unique_bytes for started in rounds)
        rows.append(
            StartRow(
                peer=name,
                version=version if name.startswith("chronetix") else python,
                mode="start",
                workers=workers,
                seconds=seconds,
                ms_per_worker=seconds / workers * 1000,
                unique_kib_per_worker=unique / 1024,
            )
        )
    return rows


def verdict(found: dict[str, list[Started]], name: str) -> str:
    """Return whether ``name`` meets the target, by the median of the rounds' ratios."""
    pairs = zip(found[name], found["warm-fork"], strict=True)
    ratio = statistics.median(ours.seconds / theirs.seconds for ours, theirs in pairs)
    return f"  {'met' if ratio <= TARGET else 'MISSED'}  {name}: {ratio:.3g}"


def start_document(rows: Sequence[StartRow], found: dict[str, list[Started]], idle_bytes: float, machine: str) -> str:
    """Return the table, the target, and what was not measured."""
    times = {row.peer: row.seconds for row in rows}
    lines = [("peer", "workers", "seconds", "ms/worker", "unique KiB/worker", "x warm-fork")]
    lines += [
        (
            row.peer,
            str(row.workers),
            number_text(row.seconds),
            number_text(row.ms_per_worker),
            number_text(row.unique_kib_per_worker),
            number_text(row.seconds / times["warm-fork"]),
        )
        for row in rows
    ]
    return "\n".join(
        [
            machine,
            "",
            *aligned(lines, left=1),
            "",
            "chronetix: a running daemon, submit to running, unconnected nodes; chronetix-chain: with a data route",
            "from each to the next; -spares: every worker was forked ahead; warm-fork: a process with the launcher's",
            "imports done forks; cold-interpreter: interpreters with the same imports, all at once.",
            f"Target (median of the rounds' ratios): at most {TARGET}x warm-fork",
            verdict(found, "chronetix"),
            verdict(found, "chronetix-spares"),
            f"An idle spare alone has {idle_bytes / 1024:.0f} KiB; by default there are a few (setting `spares`).",
            "Not measured: the daemon's own start, forking spares, plugins' own imports, the time to stop.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.start", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--workers", type=int, default=WORKERS, metavar="N", help=f"default {WORKERS}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    options = parser.parse_args(argv)
    found, idle_bytes = measure(options.workers, options.rounds)
    rows = start_rows(found, options.workers, own_version(), sys.version.split()[0])
    if options.json is not None:
        options.json.write_text("".join(json.dumps(asdict(line)) + "\n" for line in rows))
    print(start_document(rows, found, idle_bytes, f"{describe_machine()}; median of {options.rounds} round(s)"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
