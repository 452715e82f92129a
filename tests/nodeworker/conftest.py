"""A daemon made of a few lines, which wires real worker processes; a launcher; plugins written to files."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chronetix import shm
from chronetix.nodeworker.process.link import ControlLink
from chronetix.protocol.messages import (
    Configure,
    Drain,
    Fault,
    Finished,
    Hello,
    InputLink,
    LauncherReady,
    Link,
    Offer,
    Ping,
    Pong,
    Port,
    Ready,
    Segment,
    SegmentDropped,
    SegmentMapped,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Started,
    Welcome,
    WireMessage,
    WorkerMessage,
)
from tests.warm import Process, Warm

WATCHDOG_S = 60.0
WALL = 0x40000000
"""__WALL: also children whose end sends no signal."""


class Lines:
    """Between the two ends of each route, as the daemon makes them: what is taken is given away at once."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, str], int] = {}
        self._taken: list[int] = []

    def take(self, route: str, end: str) -> int:
        """The ``producer``'s or the ``consumer``'s end; the first of them begins a new line."""
        other = (route, "consumer" if end == "producer" else "producer")
        if (route, end) not in self._left:
            if other in self._left:
                os.close(self._left[other])
            self._left[route, "producer"], self._left[route, "consumer"] = shm.line()
        self._taken.append(self._left.pop((route, end)))
        return self._taken[-1]

    def sent(self) -> None:
        """Nobody but whoever got them has them now."""
        while self._taken:
            os.close(self._taken.pop())

    def close(self) -> None:
        self.sent()
        while self._left:
            os.close(self._left.popitem()[1])


class FakeWorker:
    """The daemon's side of one worker: what it said, and its process."""

    def __init__(
        self,
        config: Configure | None,
        link: ControlLink[WorkerMessage],
        pid: int,
        wait: Callable[[], int],
        lines: Lines,
    ) -> None:
        self.config = config
        self.link = link
        self.pid = pid
        self.lines = lines
        self._wait = wait
        self._status: int | None = None
        self.heard: list[WireMessage] = []
        self.offer: Offer | None = None
        self.offered: list[int] = []
        self.extended: list[tuple[Offer, list[int]]] = []
        self.segments: list[int] = []
        self.unmapped: dict[int, int] = {}
        self.undropped: dict[int, int] = {}
        self.open = True

    def said(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.heard if isinstance(message, kind)]

    def wait(self) -> int:
        """The exit code, or the negative signal."""
        if self._status is None:
            self._status = self._wait()
        return self._status

    def close(self) -> None:
        for descriptor in [*self.offered, *(fd for _, carried in self.extended for fd in carried)]:
            os.close(descriptor)
        self.offered, self.extended = [], []
        self.link.close()


class FakeDaemon:
    """Starts workers and does what the daemon does for them, as far as the worker's side can tell."""

    def __init__(self, folder: Path, warm: Warm | None) -> None:
        self.folder = folder
        self.warm = warm
        self.workers: dict[str, FakeWorker] = {}
        self._adopted: list[FakeWorker] = []
        self.lines = Lines()

    # -- starting -----------------------------------------------------------------------------------------------

    def start(self, config: Configure, argv: Sequence[str] = ()) -> FakeWorker:
        """A process that runs ``config``'s plugin, or that of Python with ``argv``."""
        ours, theirs = socket.socketpair()
        env = {**os.environ, "CHRONETIX_FD": str(theirs.fileno()), "PYTHONPATH": os.getcwd()}
        module, given = "chronetix.nodeworker.process.worker", [theirs.fileno()]
        process: subprocess.Popen[bytes] | Process
        if self.warm is not None and not argv:
            process = self.warm.start(module, (), pass_fds=given, env=env, stderr=subprocess.PIPE, cwd=self.folder)
        else:
            command = [sys.executable, *(argv or ("-m", module))]
            process = subprocess.Popen(command, pass_fds=given, env=env, stderr=subprocess.PIPE, cwd=self.folder)
        theirs.close()

        def wait() -> int:
            assert process.stderr is not None
            with process.stderr as stream:
                self.stderr = stream.read().decode()
            return process.wait(WATCHDOG_S)

        return self.adopt(config, ours, process.pid, wait)

    def adopt(self, config: Configure | None, sock: socket.socket, pid: int, wait: Callable[[], int]) -> FakeWorker:
        """Answer for a worker that somebody else started."""
        link: ControlLink[WorkerMessage] = ControlLink(sock, WorkerMessage)
        sock.settimeout(WATCHDOG_S)
        worker = FakeWorker(config, link, pid, wait, self.lines)
        self._adopted.append(worker)
        if config is not None:
            self.workers[config.node] = worker
            self.until(lambda: bool(worker.said(Hello)))
            link.send(Welcome(protocol=1, daemon="fake"))
            link.send(config)
        return worker

    # -- living -------------------------------------------------------------------------------------------------

    def wire(self) -> None:
        """Every worker has offered: link them all, and wait until they are ready."""
        self.until(lambda: all(worker.offer for worker in self.workers.values()))
        for worker in self.workers.values():
            worker.link.send(*self._link_for(worker))
        self.until(lambda: all(worker.said(Ready) for worker in self.workers.values()))

    def begin(self) -> None:
        """Start sinks first; the configs come in the order source … sink."""
        for worker in reversed(list(self.workers.values())):
            worker.link.send(Start())
            self.until(lambda worker=worker: bool(worker.said(Started)) or not worker.open)

    def run(self, *configs: Configure) -> dict[str, Any]:
        """A whole flow from start to finish; each node's result. Its processes must end with 0."""
        for config in configs:
            self.start(config)
        self.wire()
        self.begin()
        return self.finish()

    def finish(self) -> dict[str, Any]:
        """Wait until every worker has finished and ended."""
        self.until(lambda: not any(worker.open for worker in self.workers.values()))
        for worker in self.workers.values():
            assert worker.wait() == 0, self.stderr
        return {node: worker.said(Finished)[-1].result for node, worker in self.workers.items()}

    def drain(self, node: str) -> None:
        self.workers[node].link.send(Drain())

    def ask(self, node: str, id: int) -> Pong:
        worker = self.workers[node]
        worker.link.send(Ping(id=id))
        self.until(lambda: any(pong.id == id for pong in worker.said(Pong)))
        return next(pong for pong in worker.said(Pong) if pong.id == id)

    def fault(self, worker: FakeWorker) -> Fault:
        """What the worker says that went wrong."""
        self.until(lambda: not worker.open)
        (fault,) = worker.said(Fault)
        return fault

    def until(self, true: Callable[[], bool]) -> None:
        """Serve the workers until ``true()``."""
        self.lines.sent()
        while not true():
            with selectors.DefaultSelector() as selector:
                for worker in self._adopted:
                    if worker.open:
                        selector.register(worker.link, selectors.EVENT_READ, worker)
                ready = selector.select(WATCHDOG_S)
            assert ready, f"nothing happened; heard: {[(w.pid, w.heard[-5:]) for w in self._adopted]}"
            for key, _ in ready:
                self._serve(key.data)

    def _serve(self, worker: FakeWorker) -> None:
        try:
            self._heard(worker, *worker.link.receive())
            while worker.link.buffered:
                self._heard(worker, *worker.link.receive())
        except EOFError:
            worker.open = False

    def _heard(self, worker: FakeWorker, message: WireMessage, descriptors: list[int]) -> None:
        worker.heard.append(message)
        if isinstance(message, Offer) and worker.offer is not None:
            worker.extended.append((message, descriptors))
        elif isinstance(message, Offer):
            worker.offer, worker.offered = message, descriptors
            worker.segments = list(message.segments)
        elif isinstance(message, Segment):
            self._grown(worker, message, descriptors[0])
        elif isinstance(message, SegmentMapped):
            peer = next(port.peer for port in worker.config.inputs if port.route == message.route)
            self._mapped(self.workers[peer], message.index)
        elif isinstance(message, SegmentDropped):
            self._dropped(worker, message)

    def _grown(self, worker: FakeWorker, message: Segment, descriptor: int) -> None:
        worker.unmapped[message.index] = len(worker.config.outputs)
        for port in worker.config.outputs:
            # it may have found room elsewhere in the meantime, and all have finished
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.workers[port.peer].link.send(Segment(index=message.index, route=port.route), [descriptor])
        os.close(descriptor)

    def _mapped(self, producer: FakeWorker, index: int) -> None:
        producer.unmapped[index] -= 1
        if not producer.unmapped[index]:
            # it may have found room elsewhere in the meantime, and finished
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                producer.link.send(SegmentMapped(index=index))

    def _dropped(self, worker: FakeWorker, message: SegmentDropped) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if message.route:
                producer = self.workers[next(p.peer for p in worker.config.inputs if p.route == message.route)]
                producer.undropped[message.index] -= 1
                if not producer.undropped[message.index]:
                    producer.link.send(SegmentDropped(index=message.index))
                return
            worker.undropped[message.index] = len(worker.config.outputs)
            for port in worker.config.outputs:
                self.workers[port.peer].link.send(SegmentDropped(index=message.index, route=port.route))

    def _link_for(self, worker: FakeWorker) -> tuple[Link, list[int]]:
        config, descriptors, inputs = worker.config, [], []
        for port in config.outputs:
            peer = self.workers[port.peer]
            descriptors += [self._credit(peer, port.route), self.lines.take(port.route, "producer")]
        for port in config.inputs:
            peer = self.workers[port.peer]
            ring = peer.offered[peer.offer.rings.index(port.route)]
            first = len(peer.offer.rings) + len(peer.offer.credits)
            descriptors += [ring, self.lines.take(port.route, "consumer"), *peer.offered[first:]]
            inputs.append(InputLink(route=port.route, segments=list(peer.offer.segments)))
        return Link(outputs=[port.route for port in config.outputs], inputs=inputs), descriptors

    @staticmethod
    def _credit(peer: FakeWorker, route: str) -> int:
        return peer.offered[len(peer.offer.rings) + peer.offer.credits.index(route)]

    def close(self) -> None:
        self.lines.close()
        for worker in self._adopted:
            worker.close()
        for worker in self._adopted:
            worker.wait()


@pytest.fixture
def daemon(tmp_path: Path, warm: Warm | None) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path, warm)
    yield fake
    fake.close()


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str], str]:
    """Writes source to a file; the uri of an object in it is ``plugin(source) + ":name"``."""
    count = 0

    def write(source: str) -> str:
        nonlocal count
        count += 1
        path = tmp_path / f"plugin_{count}.py"
        path.write_text(textwrap.dedent(source))
        return f"python://{path}"

    return write


@pytest.fixture
def configure() -> Callable[..., Configure]:
    """A node's configuration; ``"route<peer"`` is an input, ``"route>peer"`` an output."""

    def make(node: str, uri: str, *routes: str, type: str = "application/json", credits: int = 64, **fields: Any):
        def port(text: str, sign: str) -> Port:
            route, peer = text.split(sign)
            low = credits // 2
            return Port(route=route, peer=peer, content_type=type, credits=credits, watermark=credits, credit_low=low)

        return Configure(
            flow="test",
            node=node,
            plugin_id=node,
            version="0.1.0",
            kind="Python",
            uri=uri,
            inputs=[port(text, "<") for text in routes if "<" in text],
            outputs=[port(text, ">") for text in routes if ">" in text],
            **fields,
        )

    return make


class FakeLauncher:
    """A real launcher, whose parent is this test: workers are children of the test."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.link: ControlLink[Any] = ControlLink(sock, LauncherReady | Spawned | SpawnFailed)
        self.process = process
        sock.settimeout(WATCHDOG_S)
        self._next = 0

    def receive(self) -> tuple[Any, list[int]]:
        return self.link.receive()

    def spawn(self, control: socket.socket, out: int, err: int, **fields: Any) -> tuple[Any, list[int]]:
        """Ask for a worker; the answer."""
        self._next += 1
        self.link.send(Spawn(id=self._next, name=fields.pop("name", "node"), **fields), [control.fileno(), out, err])
        return self.receive()


@pytest.fixture
def launcher() -> Iterator[FakeLauncher]:
    ours, theirs = socket.socketpair()
    env = {**os.environ, "CHRONETIX_FD": str(theirs.fileno())}
    process = subprocess.Popen(
        [sys.executable, "-m", "chronetix.nodeworker.process.launcher"], pass_fds=[theirs.fileno()], env=env
    )
    theirs.close()
    fake = FakeLauncher(ours, process)
    try:
        assert isinstance(fake.receive()[0], LauncherReady)
        yield fake
    finally:
        fake.link.close()
        assert process.wait(WATCHDOG_S) == 0


@pytest.fixture
def reap() -> Callable[[int], int]:
    """The exit code, or negative signal, of a child known by pidfd; closes the pidfd."""

    def wait(pidfd: int) -> int:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | WALL)
        os.close(pidfd)
        assert result is not None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    return wait
