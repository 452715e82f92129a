"""A real daemon of the test's own, in a folder of its own, and clients of it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from tests.warm import Process, Warm

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "e2e" / "plugins"
Map = dict[str, Any]


@dataclass(frozen=True)
class Daemon:
    """A running chronetixd. ``warm``: how to start other programs, if not cold."""

    process: subprocess.Popen[bytes] | Process
    socket: Path
    state: Path
    log: Path
    warm: Warm | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What chronetixctl needs to find it."""
        return os.environ | {
            "CHRONETIX_SOCKET": str(self.socket),
            "CHRONETIX_STATE_DIR": str(self.state),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }

    def ctl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run chronetixctl to its end."""
        if self.warm is not None:
            return self.warm.run("chronetixctl", *arguments, env=self.environment, cwd=ROOT, input=stdin)
        command = [sys.executable, "-m", "chronetixctl", *arguments]
        return subprocess.run(command, env=self.environment, cwd=ROOT, input=stdin, capture_output=True, text=True)

    def second(self) -> subprocess.CompletedProcess[str]:
        """Start another daemon on the same state folder; it is expected to end."""
        command = [sys.executable, "-m", "chronetixd", "--state-dir", str(self.state)]
        socket = str(self.socket.with_name("second.sock"))
        return subprocess.run(
            [*command, "--socket", socket], env=self.environment, cwd=ROOT, capture_output=True, text=True
        )


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of the test's daemon, from ``@pytest.mark.settings(start_timeout=1)``."""
    marker = request.node.get_closest_marker("settings")
    return {f"CHRONETIX_{name.upper()}": str(value) for name, value in (marker.kwargs if marker else {}).items()}


@pytest.fixture
def daemon(tmp_path: Path, settings: dict[str, str], warm: Warm | None) -> Iterator[Daemon]:
    """A daemon that has said READY; it is told to stop at the end and must leave with 0."""
    running = start_daemon(tmp_path, settings, warm)
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGTERM)
    assert running.process.wait() == 0, running.log.read_text()


@pytest.fixture
def start(tmp_path: Path, settings: dict[str, str], warm: Warm | None) -> Iterator[Callable[[], Daemon]]:
    """Starts one daemon after the other in the same folder; what still runs at the end is told to stop."""
    started: list[Daemon] = []

    def next_one() -> Daemon:
        started.append(start_daemon(tmp_path, settings, warm))
        return started[-1]

    yield next_one
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.process.send_signal(signal.SIGTERM)
        try:
            daemon.process.wait(30)
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()
            raise


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client.connect(daemon.socket) as connected:
        yield connected


def start_daemon(folder: Path, settings: dict[str, str], warm: Warm | None = None) -> Daemon:
    """Start a daemon in ``folder`` and wait until it tells its supervisor that it is ready."""
    files = folder / "control.sock", folder / "state", folder / "daemon.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, files[2].open("ab") as log:
        notify.bind(str(folder / "notify.sock"))
        arguments = ["--socket", str(files[0]), "--state-dir", str(files[1])]
        environment = os.environ | settings | {"NOTIFY_SOCKET": str(folder / "notify.sock"), "PYTHONPATH": str(ROOT)}
        process: subprocess.Popen[bytes] | Process
        if warm is not None:
            process = warm.start("chronetixd", arguments, env=environment, stdout=log, stderr=log, cwd=folder)
        else:
            command = [sys.executable, "-m", "chronetixd", *arguments]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        alive = os.pidfd_open(process.pid)
        try:
            while notify in select.select([notify, alive], [], [])[0]:
                if b"READY=1" in notify.recv(4096):
                    break
            else:
                pytest.fail(f"the daemon ended with {process.wait()}: {files[2].read_text()}")
        finally:
            os.close(alive)
    (folder / "notify.sock").unlink()
    return Daemon(process, *files, warm)


def launch_daemon(folder: Path, settings: dict[str, str]) -> Daemon:
    """Start a daemon in ``folder`` that may not become ready, and wait until it answers."""
    files = folder / "control.sock", folder / "state", folder / "daemon.log"
    command = [sys.executable, "-m", "chronetixd", "--socket", str(files[0]), "--state-dir", str(files[1])]
    with files[2].open("ab") as log:
        process = subprocess.Popen(
            command, env=os.environ | settings | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log, cwd=folder
        )
    while True:
        try:
            Client.connect(files[0]).close()
            return Daemon(process, *files)
        except (OSError, ChronetixError):
            assert process.poll() is None, files[2].read_text()


@dataclass(frozen=True)
class Submit:
    """Submits flows made of the plugins in tests/e2e/plugins."""

    client: Client

    def __call__(self, manifests: list[Map], routes: list[Map], wait: str = "stopped", **more: Any) -> Map:
        """Submit and wait for ``wait``; what the daemon answered."""
        flow = {"manifests": manifests, "routes": routes, "schemas": []}
        answer = self.client.call("submit", flow=flow, base_dir=str(PLUGINS), wait=wait, **more)
        assert isinstance(answer, dict)
        return answer

    @staticmethod
    def node(name: str, entry: str, **more: Any) -> Map:
        """A manifest of a Python plugin, ``entry`` as module:object."""
        module, _, attribute = entry.partition(":")
        artifact = {"kind": "Python", "uri": f"python://{module}.py:{attribute}"}
        return {"plugin_id": name, "node_id": name, "version": "1.0.0", "artifact": artifact, **more}

    @staticmethod
    def edge(source: str, target: str, **more: Any) -> Map:
        """A data route of raw bytes."""
        route = {"from": source, "to": target, "plane": "data", "topic": f"{source}/{target}", "schema_ver": "v1"}
        return route | {"content_type": "application/octet-stream"} | more


@pytest.fixture
def submit(client: Client) -> Submit:
    return Submit(client)
