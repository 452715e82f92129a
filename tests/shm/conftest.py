"""Routes inside one process, children that are other processes, and memories forged byte by byte.

The forged memories are those of the conformance kit, which are written from SPEC.md with nothing of the extension, so
they are also a second implementation of the layout that the first one has to agree with.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from chronetix import shm
from chronetixctl.conformance.forge import Forge
from tests.shm.lines import join


@dataclass(slots=True)
class Route:
    """Both ends of one or more routes of one arena in this process."""

    arena: shm.Arena
    producers: list[shm.Producer]
    consumers: list[shm.Consumer]
    outlet: shm.Outlet
    inlet: shm.Inlet
    bell: shm.Doorbell
    far_bell: shm.Doorbell

    @property
    def producer(self) -> shm.Producer:
        return self.producers[0]

    @property
    def consumer(self) -> shm.Consumer:
        return self.consumers[0]

    def view(self, index: int = 0) -> shm.RouteSnapshot:
        view = shm.RouteView(self.producers[index].fd, self.consumers[index].fd)
        try:
            return view.snapshot()
        finally:
            view.close()

    def take(self) -> shm.Frame:
        frame = self.inlet.take(0)
        assert frame is not None, "nothing to take"
        return frame

    def drain(self) -> list[bytes]:
        frames = []
        while (frame := self.inlet.take(0)) is not None:
            frames.append(bytes(frame))
        return frames


MakeRoute = Callable[..., Route]


@pytest.fixture
def make_route() -> MakeRoute:
    def make(
        *,
        credits: int | Sequence[int] = 8,
        policies: Sequence[str] = ("block",),
        limit: int = 1 << 22,
        first: int = 1 << 16,
        low: int = -1,
        base_seq: int = 0,
        qos: Sequence[str] = (),
    ) -> Route:
        each = [credits] * len(policies) if isinstance(credits, int) else list(credits)
        classes = list(qos) or ["normal"] * len(policies)
        consumers = [
            shm.Consumer(f"r{i}", credits=count, base_seq=base_seq, qos=classes[i]) for i, count in enumerate(each)
        ]

        def map_everywhere(index: int, fd: int, size: int) -> None:
            for consumer in consumers:
                consumer.add_segment(index, fd)
            arena.confirm(index)

        arena = shm.Arena(limit, first=first, on_grow=map_everywhere)
        bell, far_bell = shm.Doorbell(), shm.Doorbell()
        producers = [
            shm.Producer(arena, f"r{i}", credits=each[i], credit_low=low, policy=policy, base_seq=base_seq)
            for i, policy in enumerate(policies)
        ]
        for producer, consumer in zip(producers, consumers, strict=True):
            join(producer, bell, consumer, far_bell)
            for index, fd, _ in arena.segments:
                consumer.add_segment(index, fd)
        outlet, inlet = shm.Outlet(producers, bell), shm.Inlet(consumers, far_bell)
        return Route(arena, producers, consumers, outlet, inlet, bell, far_bell)

    return make


@pytest.fixture
def route(make_route: MakeRoute) -> Iterator[Route]:
    route = make_route()
    yield route
    for name in Route.__slots__:  # pytest still holds the route when it looks for leaks
        setattr(route, name, None)


# ---- other processes ----------------------------------------------------------------------------------------


class End:
    """One process's ends: a route out and a route back, set up over a Unix socket like the daemon does it. ``lines``:
    its ends of the lines of both."""

    def __init__(self, sock: socket.socket, lines: Sequence[int], credits: int, limit: int, policy: str) -> None:
        self.sock = sock
        self.bell = shm.Doorbell()
        self.arena = shm.Arena(limit, first=limit)
        self.producer = shm.Producer(self.arena, "there", credits=credits, policy=policy)
        self.consumer = shm.Consumer("back", credits=credits)
        mine = [self.producer.fd, self.consumer.fd, self.arena.segments[0][1]]
        socket.send_fds(sock, [b"ends"], mine)
        _, theirs, _, _ = socket.recv_fds(sock, 16, 3)
        ring, credit, segment = theirs
        self.producer.link(credit, lines[0], self.bell)
        self.consumer.link(ring, lines[1], self.bell)
        self.consumer.add_segment(0, segment)
        for fd in (*theirs, *lines):
            os.close(fd)
        self.outlet = shm.Outlet([self.producer], self.bell)
        self.inlet = shm.Inlet([self.consumer], self.bell)

    def say(self) -> None:
        """Tell the other end that a step was reached."""
        self.sock.sendall(b".")

    def hear(self) -> None:
        """Wait for the other end's step."""
        assert self.sock.recv(1) == b".", "the other process is gone"

    def next(self) -> shm.Frame:
        while (frame := self.inlet.take()) is None:
            assert not self.inlet.ended, "the route has ended"
        return frame


@dataclass(slots=True)
class Child:
    pid: int
    end: End

    def join(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        assert status == 0, f"the child failed with wait status {status}"


Spawn = Callable[..., Child]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Run a function with its `End` in another process; this process's end is in what is returned."""
    children: list[Child] = []

    def start(run: Callable[[End], None], *, credits: int = 8, limit: int = 1 << 20, policy: str = "block") -> Child:
        here, there = socket.socketpair()
        out, back = shm.line(), shm.line()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                here.close()
                os.close(out[0])
                os.close(back[1])
                run(End(there, (back[0], out[1]), credits, limit, policy))
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        there.close()
        os.close(out[1])
        os.close(back[0])
        child = Child(pid, End(here, (out[0], back[1]), credits, limit, policy))
        children.append(child)
        return child

    yield start
    for child in children:
        child.end.sock.close()
        if child.pid:
            os.kill(child.pid, 9)
            os.waitpid(child.pid, 0)
    children.clear()  # pytest still holds `start` when it looks for leaks


# ---- forged memories ----------------------------------------------------------------------------------------


@pytest.fixture
def forge() -> Iterator[Forge]:
    forge = Forge()
    yield forge
    forge.close()
