"""Fixtures of the daemon's tests: an event loop to step by hand, and real daemons with scripted workers."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chronetix.protocol import messages as wire
from chronetix.protocol.framing import MessageDecoder, encode
from chronetixd.linux.cgroups import Groups, find_place
from tests.warm import Process, Warm


@pytest.fixture(scope="session", autouse=True)
def libuv_is_loaded() -> None:
    """libuv opens a pipe for the process with its first loop and keeps it: not a leak of the test that came first."""
    uvloop.new_event_loop().close()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A uvloop of the test's own."""
    made = uvloop.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def run(loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end."""
    return loop.run_until_complete


@pytest.fixture
def until(loop: asyncio.AbstractEventLoop) -> Callable[[Callable[[], Any]], None]:
    """Turn the loop until a condition holds. The watchdog is the loop's: a signal does not interrupt uvloop."""

    async def turn(condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0)

    return lambda condition: loop.run_until_complete(turn(condition))


ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "scripted_worker.py"
Map = dict[str, Any]


def without_nodeworker(folder: Path) -> Path:
    """The package ``chronetix`` below ``folder``, the real one but for ``nodeworker``, which is not there."""
    package = folder / "chronetix"
    package.mkdir(parents=True)
    for file in (ROOT / "chronetix").iterdir():
        if file.name != "nodeworker":
            (package / file.name).symlink_to(file.resolve())
    return package


class Peer:
    """A client that speaks the wire protocol itself, frame by frame, so that it can also do it wrongly."""

    def __init__(self, where: Path | socket.socket) -> None:
        """``where``: the daemon's socket, or one that is connected to it already."""
        self.sock = where if isinstance(where, socket.socket) else socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        if isinstance(where, Path):
            self.sock.connect(str(where))
        self._decoder: MessageDecoder[Any] = MessageDecoder(wire.ToClient)
        self._inbox: list[Any] = []
        self._serial = 0

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, message: wire.WireMessage) -> None:
        self.sock.sendall(encode(message))

    def receive(self) -> Any:
        """The next message, None at the end."""
        while not self._inbox:
            data = self.sock.recv(1 << 16)
            if not data:
                return None
            self._inbox += self._decoder.feed(data)
        return self._inbox.pop(0)

    def greet(self) -> Peer:
        self.send(wire.Hello(protocol=[1], role="client"))
        assert isinstance(self.receive(), wire.Welcome)
        return self

    @staticmethod
    def cancel(id: int) -> wire.WireMessage:
        return wire.Cancel(id=id)

    def begin(self, verb: str, **args: Any) -> int:
        self._serial += 1
        self.send(wire.Call(id=self._serial, verb=verb, args=args))
        return self._serial

    def end(self, id: int) -> Any:
        """The result or failure of call ``id``, passing over items."""
        while True:
            message = self.receive()
            assert message is not None, "the daemon closed the connection before the call had ended"
            if isinstance(message, wire.Result | wire.Failure) and message.id == id:
                return message

    def call(self, verb: str, **args: Any) -> Any:
        """The value of a call that must succeed."""
        ended = self.end(self.begin(verb, **args))
        assert isinstance(ended, wire.Result), ended
        return ended.value

    def refused(self, verb: str, **args: Any) -> wire.Failure:
        """The failure of a call that must not."""
        ended = self.end(self.begin(verb, **args))
        assert isinstance(ended, wire.Failure), ended
        return ended


@dataclass(frozen=True)
class RunningDaemon:
    """A chronetixd process of the test's own."""

    process: subprocess.Popen[bytes] | Process
    socket: Path
    state: Path
    log: Path

    def connect(self) -> Peer:
        return Peer(self.socket).greet()

    def records(self) -> list[Map]:
        """What it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.process.wait()

    def peer(self, sock: socket.socket) -> Peer:
        """A client on ``sock``, which is connected and has said nothing yet."""
        return Peer(sock)


Starter = Callable[..., RunningDaemon]
Meanwhile = Callable[[int], None]


@pytest.fixture
def start(tmp_path: Path, warm: Warm | None) -> Iterator[Starter]:
    """Start daemons that have said READY, ``meanwhile`` is called with the pid before; those that still run at the end
    are killed. They start cold when something is to happen meanwhile, or where they find modules is said."""
    running: list[subprocess.Popen[bytes] | Process] = []

    def start_one(*arguments: str, meanwhile: Meanwhile | None = None, **env: str) -> RunningDaemon:
        ready = warm if meanwhile is None and "PYTHONPATH" not in env else None
        daemon = spawn_daemon(tmp_path, *arguments, meanwhile=meanwhile, warm=ready, **env)
        running.append(daemon.process)
        return daemon

    yield start_one
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
    end_what_is_left(tmp_path / "state")


@pytest.fixture
def daemon(start: Starter) -> Iterator[RunningDaemon]:
    """A daemon with short limits. It must end well at the end of the test."""
    limits = {"START_TIMEOUT": "20", "DRAIN_TIMEOUT": "20", "FAILURE_TIMEOUT": "0.3", "TERMINATE_TIMEOUT": "0.3"}
    running = start(**{f"CHRONETIX_{name}": value for name, value in limits.items()})
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0, running.log.read_text()
    assert not running.socket.exists()


@pytest.fixture
def peer(daemon: RunningDaemon) -> Iterator[Peer]:
    with daemon.connect() as connected:
        yield connected


@pytest.fixture
def scripted() -> Callable[..., Map]:
    """A flow of scripted workers without data routes, one for each behaviour."""

    def flow(*behaviours: str) -> Map:
        return {
            "manifests": [node(f"n{at}", which) for at, which in enumerate(behaviours)],
            "routes": [],
            "schemas": [],
        }

    def node(name: str, behaviour: str) -> Map:
        artifact = {"kind": "Process", "uri": f"file://{sys.executable}"}
        params = {"args": [str(PROGRAM), behaviour]}
        return {"plugin_id": name, "node_id": name, "version": "1", "artifact": artifact, "params": params}

    return flow


def end_what_is_left(state: Path) -> None:
    """Control groups of a daemon that was killed, as its successor would end them."""
    loop = uvloop.new_event_loop()
    try:
        groups = Groups(loop, find_place("auto"), str(state))
        groups.open()
        groups.close()
    finally:
        loop.close()


def spawn_daemon(
    folder: Path, *arguments: str, meanwhile: Meanwhile | None = None, warm: Warm | None = None, **env: str
) -> RunningDaemon:
    """Start chronetixd in ``folder`` and wait until it says that it is ready."""
    paths = folder / "c.sock", folder / "state", folder / "log"
    notify_path = folder / "notify"
    options = ["--socket", str(paths[0]), "--state-dir", str(paths[1]), *arguments]
    environment = (
        os.environ | {"PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(notify_path), "CHRONETIX_SPARES": "0"} | env
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, paths[2].open("ab") as log:
        notify.bind(str(notify_path))
        process: subprocess.Popen[bytes] | Process
        if warm is not None:
            process = warm.start("chronetixd", options, env=environment, cwd=Path.cwd(), stdout=log, stderr=log)
        else:
            command = [sys.executable, "-m", "chronetixd", *options]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        pidfd = os.pidfd_open(process.pid)
        try:
            if meanwhile is not None:
                meanwhile(process.pid)
            while notify in select.select([notify, pidfd], [], [])[0]:
                if b"READY=1" in notify.recv(4096):
                    break
            else:
                pytest.fail(f"the daemon ended with {process.wait()}: {paths[2].read_text()}")
        finally:
            os.close(pidfd)
            notify_path.unlink()
    return RunningDaemon(process, *paths)
