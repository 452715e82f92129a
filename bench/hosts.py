"""The hosts of all peers, as the coordinator uses them: start, measure, end, each within a time limit.

A host is a process in a session of its own, with a private folder. Only one host measures at a time; the others sleep.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import ends
from bench.cells import Cell, Sample

ROOT = Path(__file__).parents[1]
START_LIMIT = 40.0
"""Seconds for a host to say that it is ready."""
SLACK = 45.0
"""Seconds on top of a cell's limit after which the host itself is given up (dora's dataflow may be started again)."""


class Unavailable(Exception):
    """The peer cannot be measured on this machine; the message says why."""


class CellFailed(Exception):
    """One cell could not be measured; the message says why."""


class Host:
    """One peer's host process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.version = "?"
        self.about = ""
        self.modes: tuple[str, ...] = ()
        self.largest: int | None = None
        folder.mkdir()
        self.errors = folder.with_suffix(".stderr")
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.host", name, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                cwd=ROOT,
            )

    def ready(self) -> None:
        """Wait until the host is ready to measure. Raises Unavailable if it cannot."""
        answer = self.answer(START_LIMIT)
        if "ready" not in answer:
            raise Unavailable(answer.get("unavailable", str(answer)))
        self.version, self.about, self.modes = answer["ready"], answer["about"], tuple(answer["modes"])
        self.largest = answer["largest"]

    def takes(self, cell: Cell) -> bool:
        """Return whether the peer is measured in ``cell``."""
        return cell.mode in self.modes and (self.largest is None or cell.size <= self.largest)

    def measure(self, cell: Cell, limit: float) -> Sample:
        """Have the host measure ``cell``. Raises CellFailed with the reason, Unavailable if the host has ended."""
        assert self.process.stdin is not None
        line = json.dumps({"cell": ends.cell_as_json(cell), "limit": limit}) + "\n"
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Unavailable(f"its host has ended: {self.tail()}") from None
        answer = self.answer(limit + SLACK)
        if "report" not in answer:
            raise CellFailed(answer.get("failed") or answer.get("unavailable") or str(answer))
        return ends.sample(answer["report"])

    def answer(self, limit: float) -> dict[str, Any]:
        """Return the host's next answer."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], limit)[0]:
            self.kill()
            raise Unavailable(f"its host did not answer within {limit:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise Unavailable(f"its host has ended: {self.tail()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tail(self) -> str:
        """Return the last line that the host or its ends wrote to stderr."""
        lines = self.errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote no message"

    def kill(self) -> None:
        """Kill the host and all processes of its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the host's stdin; the host then ends the processes that it started, and exits."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(15.0)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        self.process.stdout.close()
