"""Measures from outside how long a daemon's loop stands still: a process that calls ``version`` again and again.

Rules: one call at a time, the next one PAUSE_S after an answer. The time for which the daemon's first thread and the
calling thread have waited for a processor is subtracted from the time of an answer (``/proc/PID/task/PID/schedstat``),
so that the rest is the time for which the loop was busy or waited. An answer that was cut off, or that came while the
daemon was stopped by a signal, does not count. The daemon has no code for this measurement.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client

ROOT = Path(__file__).parents[1]
PAUSE_S = 0.002
LOOK_S = 0.02
"""The time between two checks whether the daemon is stopped by a signal."""


class Stillness(NamedTuple):
    """The figures of the answers since the last look, in ms."""

    answers: int
    p50: float
    p99: float
    longest: float


class Gauge:
    """Calls the daemon at ``path`` from a process of its own. A context manager."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.gauge", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self.look()

    def look(self) -> Stillness:
        """Return the figures since the last look, and begin anew."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Stillness(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the calling process. Idempotent."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def __enter__(self) -> Gauge:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _why: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()


def stillness(taken_ms: Sequence[float]) -> Stillness:
    """The figures of some answers."""
    ordered = sorted(taken_ms) or [0.0]

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Stillness(len(taken_ms), at(0.5), at(0.99), ordered[-1])


def waited_ns(pid: int | str) -> int:
    """Return how long the first thread of ``pid`` has waited for a processor so far, in ns."""
    name = "thread-self" if pid == "self" else f"{pid}/task/{pid}"
    return int(Path(f"/proc/{name}/schedstat").read_text().split()[1])


class Asking:
    """The thread that calls the daemon."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._taken: list[float] = []
        self._stopped = False
        self._pid = 0

    def run(self) -> None:
        """Call the daemon until the process ends."""
        while True:
            try:
                with Client.connect(self._path, timeout=60.0) as client:
                    self._pid = client.call("version")["pid"]
                    while True:
                        self._ask(client)
                        time.sleep(PAUSE_S)
            except (ChronetixError, OSError):
                time.sleep(LOOK_S)

    def _ask(self, client: Client) -> None:
        self._stopped = False
        ours, its, begun = waited_ns("self"), waited_ns(self._pid), time.monotonic_ns()
        client.call("version", timeout=600.0)
        taken = time.monotonic_ns() - begun - (waited_ns(self._pid) - its) - (waited_ns("self") - ours)
        if not self._stopped:
            with self._lock:
                self._taken.append(max(0, taken) / 1e6)

    def watch(self) -> None:
        """Check for ever whether the daemon is stopped by a signal, because that time does not count."""
        while True:
            time.sleep(LOOK_S)
            try:
                state = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, IndexError):
                continue
            self._stopped = self._stopped or state in "Tt"

    def seen(self) -> Stillness:
        """Return the figures since the last call."""
        with self._lock:
            taken, self._taken = self._taken, []
        return stillness(taken)


def main(argv: Sequence[str]) -> int:
    """An answer for each line of stdin, until that ends."""
    asking = Asking(Path(argv[0]))
    for work in (asking.run, asking.watch):
        threading.Thread(target=work, daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps(asking.seen()), flush=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
