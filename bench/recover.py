"""``python -m bench.recover``: from ``kill -9`` of a worker to its successor's first frame, beside others that restart.

Rules:

* Every peer runs the same worker: a Python process with numpy and its transport, which takes a number a millisecond.
* The clock runs from the kill until the successor has reported its first frame to the host.
* supervisord only restarts the process; pyzmq carries its frames.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from bench.machine import describe_machine, own_version, progress
from bench.report import aligned
from bench.start import daemon

ROOT = Path(__file__).parents[1]
NODES = ROOT / "bench" / "recover_nodes.py"
ROUNDS = 7
LIMIT_S = 60.0
SETTLE_S = 0.3
"""Seconds between a recovery and the next kill, because supervisors treat a program that dies at once as broken."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One line of the JSON file: ``ms`` is the median of the rounds."""

    peer: str
    version: str
    mode: str
    rounds: int
    ms: float
    ms_min: float
    ms_max: float


class Host:
    """Receives the reports of processes that have had their first frame."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "report")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.address)
        self._sock.settimeout(LIMIT_S)

    def first_frame(self) -> int:
        """Wait for the next report, and return the pid of its process."""
        return int(self._sock.recv(64).split()[0])

    def recovery(self, pid: int) -> tuple[float, int]:
        """Kill ``pid``, and return the seconds until another process has a frame, and that process's pid."""
        start = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        successor = self.first_frame()
        return time.perf_counter() - start, successor

    def close(self) -> None:
        """Close the socket of the reports."""
        self._sock.close()


Way = Callable[[Path, str], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def chronetix(folder: Path, report: str, spares: int = 8) -> Iterator[None]:
    """A flow of a source and a sink that is restarted."""
    os.environ["BENCH_REPORT"] = report
    python = f"python://{NODES}:"
    octets = "application/octet-stream"
    flow = {
        "manifests": [
            _manifest("source", python + "source"),
            _manifest("sink", python + "Sink", restart={"policy": "transient", "max": 1000, "backoff_ms": 0}),
        ],
        "routes": [{"from": "source", "to": "sink", "plane": "data", "topic": "numbers", "content_type": octets}],
        "schemas": [],
    }
    with daemon(folder / "daemon", spares=str(spares)) as client:
        client.call("submit", flow=flow, name="recover", base_dir=str(ROOT), wait="running")
        yield


def _manifest(node: str, uri: str, **more: object) -> dict[str, object]:
    return {"node_id": node, "plugin_id": node, "version": "1", "artifact": {"kind": "Python", "uri": uri}, **more}


@contextlib.contextmanager
def supervisord(folder: Path, report: str) -> Iterator[None]:
    """Run the sink as a program of supervisord, and the source as a child of this process."""
    program = shutil.which("supervisord", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if program is None:
        raise FileNotFoundError("the program supervisord is not installed (PyPI: supervisor)")
    address = f"ipc://{folder}/numbers"
    (folder / "supervisord.conf").write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={folder}/supervisord.log\npidfile={folder}/supervisord.pid\n"
        f"[program:sink]\ncommand={sys.executable} {NODES} zmq_sink {address}\ndirectory={ROOT}\n"
        f'environment=BENCH_REPORT="{report}",PYTHONPATH="{ROOT}"\nautorestart=true\nstartsecs=0\nstartretries=1000\n'
    )
    with ExitStack() as stack:
        source = [sys.executable, str(NODES), "zmq_source", address]
        stack.enter_context(_process(source, folder / "source.log", report))
        config = [program, "-n", "-c", str(folder / "supervisord.conf")]
        stack.enter_context(_process(config, folder / "supervisord.out", report))
        yield


@contextlib.contextmanager
def dora(folder: Path, report: str) -> Iterator[None]:
    """A dataflow whose sink has ``restart_policy: always``."""
    program = shutil.which("dora", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if program is None:
        raise FileNotFoundError("the program dora is not installed (PyPI: dora-rs-cli)")
    env = {"BENCH_REPORT": report, "PYTHONPATH": str(ROOT)}
    flow = {
        "nodes": [
            {
                "id": "source",
                "path": sys.executable,
                "args": f"{NODES} dora_source",
                "env": env,
                "outputs": ["numbers"],
            },
            {
                "id": "sink",
                "path": sys.executable,
                "args": f"{NODES} dora_sink",
                "env": env,
                "inputs": {"numbers": "source/numbers"},
                "restart_policy": "always",
            },
        ]
    }
    (folder / "flow.yml").write_text(json.dumps(flow))
    with _process([program, "run", str(folder / "flow.yml"), "--log-level", "error"], folder / "dora.log", report):
        yield


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path, report: str) -> Iterator[None]:
    """Run a process in a session of its own, and kill the whole session at the end."""
    env = os.environ | {"BENCH_REPORT": report, "RUST_LOG": "off", "HOME": str(log.parent)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


WAYS: dict[str, tuple[Way, str]] = {
    "chronetix": (chronetix, "restart transient, spare workers as by default"),
    "chronetix-no-spares": (
        lambda folder, report: chronetix(folder, report, 0),
        "as chronetix, each worker a new fork",
    ),
    "supervisord": (supervisord, "autorestart, frames by pyzmq PUSH/PULL"),
    "dora": (dora, "restart_policy always"),
}


def version_of(name: str) -> str:
    """Return the version of what is measured."""
    distribution = {"supervisord": "supervisor", "dora": "dora-rs"}.get(name)
    return metadata.version(distribution) if distribution else own_version()


def measure(name: str, rounds: int) -> Recovery:
    """Kill its worker ``rounds`` times."""
    way, _ = WAYS[name]
    seconds = []
    with tempfile.TemporaryDirectory(prefix="chronetix-recover-") as folder, ExitStack() as stack:
        host = Host(Path(folder))
        stack.callback(host.close)
        stack.enter_context(way(Path(folder), host.address))
        pid = host.first_frame()
        for done in range(rounds):
            progress(f"{name}: {done + 1}/{rounds}")
            time.sleep(SETTLE_S)
            took, pid = host.recovery(pid)
            seconds.append(took)
    progress("")
    ms = [1000 * each for each in seconds]
    return Recovery(name, version_of(name), "recover", rounds, statistics.median(ms), min(ms), max(ms))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all, print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.recover", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"kills of each (default {ROUNDS})")
    parser.add_argument("--peers", default=",".join(WAYS), help="comma-separated names")
    options = parser.parse_args(argv)
    rows: list[Recovery] = []
    missing: list[str] = []
    for name in options.peers.split(","):
        try:
            rows.append(measure(name, options.rounds))
        except (OSError, RuntimeError, metadata.PackageNotFoundError) as reason:
            missing.append(f"{name}: {reason}")
    print(f"{describe_machine()}; median of {options.rounds} kills\n")
    ours = next((row.ms for row in rows if row.peer == "chronetix"), None)
    lines = [("peer", "ms", "least", "most", "x chronetix")]
    for row in rows:
        times = f"{row.ms / ours:.2f}" if ours else "-"
        lines.append((row.peer, f"{row.ms:.1f}", f"{row.ms_min:.1f}", f"{row.ms_max:.1f}", times))
    print("\n".join(aligned(lines)))
    print("\nFrom kill -9 of the worker to the first frame of its successor.")
    for name, (_, about) in WAYS.items():
        print(f"  {name}: {about}")
    for reason in missing:
        print(f"  not measured: {reason}")
    if options.json:
        options.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
