"""A daemon that answers from a script, and chronetixctl run in this process or as one of its own."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.framing import MessageDecoder, encode
from chronetix.protocol.messages import Call, Cancel, ClientMessage, Failure, Hello, Item, Result, Welcome, WireMessage
from chronetixctl.app import run

ROOT = Path(__file__).parents[2]
OPEN = object()
"""As the end of an answer: the call stays open until it is cancelled."""


@dataclass
class FakeDaemon:
    """Speaks the protocol and answers each verb with what the test put into ``answers``:

    a value, an error, or a list of items whose last element is one of these or OPEN; or a function of the arguments.
    """

    path: Path
    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    refusal: Failure | None = None

    def serve(self, listener: socket.socket, stop: socket.socket) -> None:
        """Serve one connection after the other until ``stop`` is readable."""
        while listener in select.select([listener, stop], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                self._talk(connection, stop)

    def _talk(self, connection: socket.socket, stop: socket.socket) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ClientMessage)
        verbs: dict[int, str] = {}
        while connection in select.select([connection, stop], [], [])[0]:
            try:
                chunk = connection.recv(1 << 16)
                for message in decoder.feed(chunk):
                    for answer in self._answers(message, verbs):
                        connection.sendall(encode(answer))
            except (BrokenPipeError, ConnectionResetError):
                return
            if not chunk or self.refusal is not None:
                return

    def _answers(self, message: WireMessage, verbs: dict[int, str]) -> Iterator[WireMessage]:
        match message:
            case Hello():
                yield self.refusal or Welcome(protocol=1, daemon="fake")
            case Cancel(id=id):
                self.cancelled.append(verbs[id])
                yield error("cancelled", what=verbs[id]).failure(id)
            case Call(id=id, verb=verb, args=args):
                verbs[id] = verb
                self.calls.append((verb, args))
                yield from self._script(id, verb, args)

    def _script(self, id: int, verb: str, args: dict[str, Any]) -> Iterator[WireMessage]:
        answer = self.answers[verb]
        if callable(answer):
            answer = answer(args)
        steps = answer if isinstance(answer, list) else [answer]
        for item in steps[:-1]:
            yield Item(id=id, value=item)
        end = steps[-1]
        if isinstance(end, ChronetixError):
            yield end.failure(id)
        elif end is not OPEN:
            yield Result(id=id, value=end)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A fake daemon at its own socket."""
    fake = FakeDaemon(tmp_path / "control.sock")
    listener = socket.socket(socket.AF_UNIX)
    stop, stopped = socket.socketpair()
    with closing(listener), closing(stop), closing(stopped):
        listener.bind(str(fake.path))
        listener.listen(8)
        thread = threading.Thread(target=fake.serve, args=(listener, stopped), name="fake daemon")
        thread.start()
        try:
            yield fake
        finally:
            stop.send(b"x")
            thread.join()


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Ctl = Callable[..., Ended]


@pytest.fixture
def ctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """Run chronetixctl in this process, against the fake daemon's socket."""
    monkeypatch.setenv("CHRONETIX_SOCKET", str(tmp_path / "control.sock"))

    def call(*arguments: str) -> Ended:
        code = run(arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start chronetixctl as a process of its own, with pipes."""
    started: list[subprocess.Popen[str]] = []
    environment = os.environ | {"CHRONETIX_SOCKET": str(tmp_path / "control.sock"), "PYTHONPATH": str(ROOT)}

    def start(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "chronetixctl", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        env = environment | settings.pop("env", {})
        process = subprocess.Popen(command, env=env, cwd=tmp_path, text=True, **pipes | settings)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


FLOW = """
name: pair
nodes:
  - {id: a, plugin: {artifact: "python://m:a"}}
  - {id: b, plugin: {artifact: "python://m:b"}}
routes: [{from: a, to: b}]
"""


@pytest.fixture
def flow_file(tmp_path: Path) -> Path:
    """A small flow in the DSL."""
    path = tmp_path / "flow.yaml"
    path.write_text(FLOW)
    return path


@pytest.fixture
def stays_open() -> object:
    """The end of an answer that does not come until the call is cancelled."""
    return OPEN


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is UTC."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()
