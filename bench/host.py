"""The host process of one peer: ``python -m bench.host <peer> <folder>``, JSON lines on stdin and stdout.

Rules:

* A cell's two ends are fresh forks of this process, which has imported the peer already, so cells do not disturb
  each other.
* Every cell has a limit; ends that are still there then are killed by pid, and the cell is answered with the
  reason. Ends die with their host.
* A line is ``{"cell": …, "limit": seconds}``. One answer for each: ``{"report": …}`` or ``{"failed": reason}``, and
  before the first ``{"ready": version, …}`` or ``{"unavailable": reason}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

from bench import ends
from bench.cells import Cell
from bench.peers import Peer, load

PR_SET_PDEATHSIG = 1
"""prctl: the signal that a child gets when its parent's thread ends."""


class Runner(Protocol):
    """Measures a cell."""

    def run(self, cell: Cell, limit: float) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Forks:
    """Measures each cell by two freshly forked ends (one for a peer of one process)."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self.peer = peer
        self.folder = folder

    def run(self, cell: Cell, limit: float) -> dict[str, Any]:
        """Measure. Raises TimeoutError after ``limit`` seconds, RuntimeError with what an end has raised."""
        shared = self.peer.prepare(cell, self.folder)
        results, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pids: list[int] = []
        try:
            with theirs:
                pids += self.fork(shared, cell, theirs)
            return gather(results, len(pids), limit)
        finally:
            results.close()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            self.peer.release(shared, tuple(pids))

    def fork(self, shared: Any, cell: Cell, results: socket.socket) -> list[int]:
        """Fork the ends, and return their pids."""
        if self.peer.one_process:
            return [fork(lambda: self.alone(shared, cell), results)]
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with here, there:
            second = fork(lambda: self.end(shared, there, here, cell, False), results)
            return [second, fork(lambda: self.end(shared, here, there, cell, True), results)]

    def end(self, shared: Any, wire: socket.socket, other: socket.socket, cell: Cell, first: bool) -> dict[str, Any]:
        """Run one end, in its process. It waits for the other end before it closes, so that no frame on its way is cut
        off."""
        other.close()
        link = self.peer.connect(shared, wire, cell, first)
        report = ends.run(link, wire, cell, first)
        wire.send(b"e")
        wire.recv(1)
        link.close()
        return report

    def alone(self, shared: Any, cell: Cell) -> dict[str, Any]:
        """Run both ends in one process."""
        here, there = self.peer.connect_both(shared, cell)
        report = ends.alone(here, there, cell)
        here.close()
        there.close()
        return report

    def close(self) -> None:
        """Nothing lives between cells."""


def fork(work: Callable[[], dict[str, Any]], results: socket.socket) -> int:
    """Fork a child that sends what ``work`` returns or raises; return the child's pid."""
    sys.stdout.flush()
    host = os.getpid()
    pid = os.fork()
    if not pid:
        child(work, results, host)
    return pid


def child(work: Callable[[], dict[str, Any]], results: socket.socket, host: int) -> NoReturn:
    """Do the work and leave without running what the parent set up for its own exit."""
    code = 0
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != host:
            os._exit(1)
        ends.tell(results, {"report": work()})
    except BaseException as error:
        code = 1
        ends.tell(results, {"failed": "".join(traceback.format_exception_only(error)).strip()})
    finally:
        os._exit(code)


def gather(results: socket.socket, count: int, limit: float) -> dict[str, Any]:
    """Return the merged reports of ``count`` ends within ``limit`` seconds."""
    deadline = time.monotonic() + limit
    report: dict[str, Any] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(results, selectors.EVENT_READ)
        for _ in range(count):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"not done within {limit:.0f} s")
            answer = ends.listen(results)
            if "failed" in answer:
                raise RuntimeError(answer["failed"])
            report |= answer["report"]
    return report


def start(peer: Peer, folder: Path) -> Runner:
    """Return what measures this peer's cells."""
    if peer.name == "dora":
        from bench.peers.dora import Dataflow

        return Dataflow(folder)
    return Forks(peer, folder)


def serve(name: str, folder: Path) -> None:
    """Answer lines until stdin ends."""
    peer = load(name)
    version = peer.version()
    runner = start(peer, folder)
    say({"ready": version, "about": peer.about, "modes": peer.modes, "largest": peer.largest})
    try:
        for line in sys.stdin:
            command = json.loads(line)
            try:
                say({"report": runner.run(Cell(**command["cell"]), command["limit"])})
            except (OSError, RuntimeError, ends.EndLost) as error:
                say({"failed": f"{type(error).__name__}: {error}"})
                if peer.name == "dora":
                    runner.close()
                    again = folder / f"again-{time.monotonic_ns()}"
                    again.mkdir()
                    runner = start(peer, again)
    finally:
        runner.close()


def say(answer: dict[str, Any]) -> None:
    """Write one line to stdout."""
    print(json.dumps(answer), flush=True)


def main() -> int:
    """Run the host. A peer that cannot start writes the reason as its only line."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    try:
        serve(name, folder)
    except Exception as error:
        say({"unavailable": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
