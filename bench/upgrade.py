"""``python -m bench.upgrade``: how long the control plane stands still while the daemon is replaced in place.

Rules:

* The pause is the daemon's own figure: from the time when the old image accepts no connection and answers no call any
  more to the first turn of the new image's event loop. The new image is the same release.
* ``idle``: a chain of workers without frames. ``load``: beside it a source, a map and a sink that keep every processor
  busy; each frame is checked, so that a lost or repeated one fails the run.
* The daemon's modules are compiled, as they are after an installation. Its rehearsal is not in the pause.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.machine import describe_machine, own_version, progress
from bench.report import aligned
from bench.start import ROOT, daemon, flow
from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client

ROUNDS = 10
WORKERS = 20
TARGET_MS = 200.0
LIMIT_S = 60.0
OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class UpgradeRow:
    """One line of the JSON file. ``gap_ms``: the longest time in which the sink got no frame, None without frames."""

    peer: str
    version: str
    mode: str
    workers: int
    rounds: int
    ms: float
    ms_min: float
    ms_max: float
    frames: int
    gap_ms: float | None


def loaded() -> dict[str, Any]:
    """Return the flow of source, map and sink."""
    nodes = [("source", "numbers"), ("map", "forward"), ("sink", "Checks")]
    artifact = f"python://{ROOT / 'bench' / 'upgrade_nodes.py'}:"
    return {
        "manifests": [
            {
                "node_id": node,
                "plugin_id": node,
                "version": "1",
                "artifact": {"kind": "Python", "uri": artifact + entry},
            }
            for node, entry in nodes
        ],
        "routes": [
            {"from": here, "to": there, "plane": "data", "topic": here, "content_type": OCTETS}
            for here, there in (("source", "map"), ("map", "sink"))
        ],
        "schemas": [],
    }


def pause_ms(path: Path) -> float:
    """Upgrade once, and return the pause. Raises RuntimeError if the upgrade was refused or has failed."""
    with Client.connect(path) as client:
        pids = workers(client)
        try:
            client.call("upgrade", timeout=LIMIT_S)
        except ChronetixError as reason:
            if reason.name != "daemon-upgrading":
                raise RuntimeError(str(reason)) from reason
    with Client.connect(path, timeout=LIMIT_S) as client:
        told = client.call("version")["upgraded"]
        if told["failed"] or workers(client) != pids:
            raise RuntimeError(f"workers were lost: {told}")
    return float(told["pause_ns"]) / 1e6


def workers(client: Client) -> list[int]:
    """Return the processes of the workers of all flows."""
    flows = [each["name"] for each in client.call("list")["flows"]]
    return [node["pid"] for name in flows for node in client.call("describe", flow=name)["nodes"]]


def measure(mode: str, count: int, rounds: int) -> UpgradeRow:
    """Measure ``rounds`` upgrades of a daemon with ``count`` workers, and three more for ``load``."""
    frames, gap = 0, None
    with tempfile.TemporaryDirectory(prefix="chronetix-upgrade-") as folder:
        where = Path(folder) / "daemon"
        with daemon(where) as client:
            client.call("submit", flow=flow("idle", count, True), base_dir=str(ROOT), wait="running", timeout=LIMIT_S)
            if mode == "load":
                client.call("submit", flow=loaded(), name="load", base_dir=str(ROOT), wait="running", timeout=LIMIT_S)
            times = []
            for done in range(rounds):
                progress(f"{mode}: {done + 1}/{rounds}")
                times.append(pause_ms(where / "control.sock"))
            progress("")
            with Client.connect(where / "control.sock") as last:
                if mode == "load":
                    last.call("stop", flow="load", timeout=LIMIT_S)
                    nodes = last.call("describe", flow="load")["nodes"]
                    (result,) = [node["result"] for node in nodes if node["node"] == "sink"]
                    frames, gap = result["frames"], result["longest_ns"] / 1e6
                last.call("stop", flow="idle", mode="now", timeout=LIMIT_S)
    total = count + (3 if mode == "load" else 0)
    spread = statistics.median(times), min(times), max(times)
    return UpgradeRow("chronetix", own_version(), mode, total, rounds, *spread, frames, gap)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both, print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.upgrade", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"upgrades of each (default {ROUNDS})")
    parser.add_argument("--workers", type=int, default=WORKERS, metavar="N", help=f"of the chain (default {WORKERS})")
    options = parser.parse_args(argv)
    with contextlib.suppress(KeyError):
        del os.environ["PYTHONDONTWRITEBYTECODE"]
    rows = [measure(mode, options.workers, options.rounds) for mode in ("idle", "load")]
    print(f"{describe_machine()}; median of {options.rounds} upgrades in place\n")
    lines = [("mode", "workers", "pause ms", "least", "most", "frames", "longest gap ms")]
    for row in rows:
        gap = "-" if row.gap_ms is None else f"{row.gap_ms:.1f}"
        times = (f"{row.ms:.0f}", f"{row.ms_min:.0f}", f"{row.ms_max:.0f}")
        lines.append((row.mode, str(row.workers), *times, str(row.frames), gap))
    print("\n".join(aligned(lines)))
    print(
        "\nNo worker was restarted, no frame lost or repeated. The pause is of the control plane; the longest gap is of"
    )
    print(
        "the frames, over the whole run, and mostly the scheduler's: more processes are busy than there are processors."
    )
    missed = [row.mode for row in rows if row.ms > TARGET_MS]
    print(f"target: {TARGET_MS:.0f} ms; {'MISSED: ' + ', '.join(missed) if missed else 'met'}")
    if options.json:
        options.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
