"""What strangers send along is never the daemon's to close, and costs its sender."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvloop

from chronetix import shm
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.framing import encode
from chronetix.protocol.messages import Call, Hello, Item, WireMessage
from chronetixd.loop import inspection
from chronetixd.loop.connection import MAX_UNSENT, Connection
from chronetixd.loop.inspection import MAX_ENDING, Inspection
from tests.chronetixd.fuse import file_that_waits, sent_by_a_child

UNION = Hello | Call
HELLO = encode(Hello(protocol=[1], role="client"))
CALL = encode(Call(id=1, verb="tap", args={}, descriptors=2))


def lingering(opened: ExitStack, seconds: int = 60) -> socket.socket:
    """A TCP socket whose last close waits for ``seconds``: its peer reads nothing."""
    listener = opened.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sock = socket.create_connection(listener.getsockname())
    opened.enter_context(listener.accept()[0])
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    return sock


def at_once(sock: socket.socket) -> None:
    """It lingers no more: nobody but us has it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Peers:
    """Connections of strangers to one inspection, in a loop that is run for as long as something is awaited."""

    def __init__(self, opened: ExitStack) -> None:
        self.loop = uvloop.new_event_loop()
        self.inspection = Inspection(self.loop)
        self.opened = opened
        self.changed = asyncio.Event()

    def until(self, condition: object) -> None:
        async def wait() -> None:
            while not condition():  # type: ignore[operator]
                await self.changed.wait()
                self.changed.clear()

        self.loop.run_until_complete(asyncio.wait_for(wait(), 60))

    def connect(self, owner: int = 1) -> Peer:
        return Peer(self, owner)

    def close(self) -> None:
        self.loop.run_until_complete(self.inspection.stop(60))
        self.loop.close()


class Peer:
    """A stranger's socket, and the daemon's connection to it."""

    def __init__(self, peers: Peers, owner: int) -> None:
        self.peers = peers
        self.sock, ours = socket.socketpair()
        peers.opened.enter_context(self.sock)
        self.heard: list[WireMessage] = []
        self.taken: list[int] = []
        self.ends: list[ChronetixError | None] = []
        self.connection = Connection(
            peers.loop,
            ours,
            UNION,
            on_message=self._hear,
            on_end=self._end,
            inspection=peers.inspection,
            owner=owner,
        )
        self.connection.start()
        peers.opened.callback(self.connection.close)

    def _hear(self, message: WireMessage, descriptors: list[int]) -> None:
        self.heard.append(message)
        self.taken += descriptors
        descriptors.clear()
        self.peers.changed.set()

    def _end(self, fault: ChronetixError | None) -> None:
        self.ends.append(fault)
        self.peers.changed.set()

    def send(self, data: bytes, *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.sock.sendmsg([data], rights)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def peers(opened: ExitStack) -> Iterator[Peers]:
    made = Peers(opened)
    yield made
    opened.close()
    made.close()


def offered(opened: ExitStack) -> tuple[int, int]:
    """Two memories."""
    one, other = (os.memfd_create(name, os.MFD_ALLOW_SEALING) for name in ("credits", "more"))
    opened.callback(os.close, one)
    opened.callback(os.close, other)
    return one, other


class TestWhatIsHarmless:
    def test_memories_come_with_their_message_in_order(self, peers: Peers, opened: ExitStack) -> None:
        peer, sent = peers.connect(), offered(opened)
        peer.send(HELLO)
        peer.send(CALL, *sent)
        peer.send(HELLO)
        peers.until(lambda: len(peer.heard) == 3)
        assert [type(message) for message in peer.heard] == [Hello, Call, Hello]
        inodes = [os.fstat(fd).st_ino for fd in peer.taken]
        for fd in peer.taken:
            assert not os.get_inheritable(fd)
            os.close(fd)
        assert inodes == [os.fstat(fd).st_ino for fd in sent]

    def test_they_may_come_with_one_byte_of_a_frame(self, peers: Peers, opened: ExitStack) -> None:
        peer, sent = peers.connect(), offered(opened)
        peer.send(HELLO + CALL[:1], *sent)
        peers.until(lambda: peer.heard)
        peer.send(CALL[1:])
        peers.until(lambda: len(peer.heard) == 2)
        assert len(peer.taken) == 2
        for fd in peer.taken:
            os.close(fd)

    def test_what_no_message_asks_for_is_closed(self, peers: Peers, opened: ExitStack) -> None:
        peer = peers.connect()
        before = len(os.listdir("/proc/self/fd"))
        peer.send(HELLO, *offered(opened))
        peers.until(lambda: peer.ends)
        (fault,) = peer.ends
        assert fault is not None
        assert fault.name == "unexpected-descriptors"
        peer.connection.close()
        assert len(os.listdir("/proc/self/fd")) <= before + 2 + 2  # the two offered, the inspector's socket and pidfd

    def test_one_who_leaves_while_it_is_taken_in_leaves_nothing(self, peers: Peers, opened: ExitStack) -> None:
        peer, other = peers.connect(), peers.connect()
        peer.send(CALL, *offered(opened))
        peer.connection.drain_input()  # asks the inspector
        peer.connection.close()
        other.send(CALL, *offered(opened))
        peers.until(lambda: other.heard)
        assert peer.heard == []
        for fd in other.taken:
            os.close(fd)

    def test_an_upgrade_waits_for_what_is_being_taken_in(self, peers: Peers, opened: ExitStack) -> None:
        peer = peers.connect()
        peer.send(CALL, *offered(opened))
        peer.connection.drain_input()
        assert peers.inspection.busy
        peers.inspection.settle(60)
        assert not peers.inspection.busy
        assert [type(message) for message in peer.heard] == [Call]
        for fd in peer.taken:
            os.close(fd)


def named_pipe(opened: ExitStack) -> int:
    path = os.path.join(opened.enter_context(tempfile.TemporaryDirectory()), "pipe:[1]")
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    opened.callback(os.close, fd)
    return fd


def file(opened: ExitStack) -> int:
    """Of a file system that is not memory, wherever the temporary files are."""
    return opened.enter_context(open("/proc/self/cmdline", "rb")).fileno()


def unix(opened: ExitStack) -> int:
    ours, theirs = socket.socketpair()
    opened.enter_context(ours)
    return opened.enter_context(theirs).fileno()


class TestWhatIsNot:
    @pytest.mark.parametrize("kind", [named_pipe, file, unix])
    def test_it_ends_the_connection_and_not_a_neighbour(self, kind: object, peers: Peers, opened: ExitStack) -> None:
        peer, neighbour = peers.connect(), peers.connect()
        peer.send(CALL, *offered(opened)[:1], kind(opened))  # type: ignore[operator]
        peers.until(lambda: peer.ends)
        (fault,) = peer.ends
        assert fault is not None
        assert (fault.name, peer.heard) == ("descriptor-refused", [])
        neighbour.send(CALL, *offered(opened))
        peers.until(lambda: neighbour.heard)
        for fd in neighbour.taken:
            os.close(fd)

    def test_a_socket_that_lingers_keeps_nobody(self, peers: Peers, opened: ExitStack) -> None:
        for _ in range(3):
            peer = peers.connect()
            with lingering(opened) as sock:
                peer.send(HELLO, sock.fileno())
            peers.until(lambda peer=peer: peer.ends)

    def test_nor_does_one_that_nobody_has_read(self, peers: Peers, opened: ExitStack) -> None:
        peer = peers.connect()
        with lingering(opened) as sock:
            peer.send(HELLO, sock.fileno())
        peer.connection.close()
        assert peers.inspection.pids
        neighbour = peers.connect(owner=2)
        neighbour.send(CALL, *offered(opened))
        peers.until(lambda: neighbour.heard)
        for fd in neighbour.taken:
            os.close(fd)

    def test_a_connection_without_unread_bytes_costs_no_process(self, peers: Peers) -> None:
        peer = peers.connect()
        peer.send(HELLO)
        peers.until(lambda: peer.heard)
        peer.connection.close()
        assert peers.inspection.pids == set()


class TestAnInspectorThatIsKept:
    def test_one_that_does_not_answer_is_ended_and_the_next_one_serves(
        self, peers: Peers, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inspection, "LIMIT_S", 0.2)
        gone = peers.connect()
        with lingering(opened) as sock:
            gone.send(HELLO, sock.fileno())
        gone.connection.close()  # its inspector waits for the socket
        (stuck,) = peers.inspection.pids
        monkeypatch.setattr(inspection, "LIMIT_S", 60)
        peer = peers.connect()
        peer.send(CALL, *offered(opened))
        peers.until(lambda: peer.ends)  # was behind it, of the same owner
        again = peers.connect()
        again.send(CALL, *offered(opened))
        peers.until(lambda: again.heard)
        assert stuck not in {inspector.process.pid for inspector in peers.inspection._at_work.values()}
        for fd in again.taken:
            os.close(fd)

    @pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")
    def test_what_cannot_even_be_killed_costs_its_sender_alone(self, peers: Peers, tmp_path: Path) -> None:
        with ExitStack() as opened, file_that_waits(tmp_path / "slow") as (path, server):
            children = []
            for _ in range(MAX_ENDING):
                peer = peers.connect(owner=1)
                children.append(sent_by_a_child(path, peer.sock, CALL, 2))
                peers.until(lambda peer=peer: peer.ends)
            assert server.asked.wait(60)
            assert peers.inspection.refuses(1)
            neighbour = peers.connect(owner=2)
            neighbour.send(CALL, *offered(opened))
            peers.until(lambda: neighbour.heard)
            for fd in neighbour.taken:
                os.close(fd)
            peers.loop.run_until_complete(peers.inspection.stop(0.05))  # does not wait for them
            assert len(peers.inspection.pids) == MAX_ENDING
        for child in children:
            os.waitpid(child, 0)

    def test_an_owner_of_too_many_is_refused_and_nobody_else(self, peers: Peers) -> None:
        ending = {object() for _ in range(MAX_ENDING)}
        peers.inspection._ending[1] = ending  # type: ignore[assignment]
        try:
            assert peers.inspection.refuses(1)
            assert not peers.inspection.refuses(2)
        finally:
            del peers.inspection._ending[1]


class TestHowManyMayWait:
    def test_a_client_cannot_have_more_kept_than_a_message_needs(self, peers: Peers, opened: ExitStack) -> None:
        peer = peers.connect()
        peer.connection.pass_rights(2)
        peer.send(CALL[:1], *offered(opened))
        peer.send(CALL[1:2], *offered(opened))
        peers.until(lambda: peer.ends)
        (fault,) = peer.ends
        assert fault is not None
        assert (fault.name, fault.details["limit"]) == ("too-many-descriptors", 2)

    def test_one_that_reads_none_is_disconnected_and_all_are_closed(self, peers: Peers, opened: ExitStack) -> None:
        peer = peers.connect()
        memory, _ = offered(opened)
        before = len(os.listdir("/proc/self/fd"))
        item = Item(id=1, value=bytes(60_000), descriptors=1)
        for _ in range(MAX_UNSENT + 1):
            peer.connection.send(item, [os.dup(memory)], give=True)
        peers.until(lambda: peer.ends)
        (fault,) = peer.ends
        assert fault is not None
        assert fault.name == "slow-reader"
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_ring_that_was_taken_in_is_one() -> None:
    consumer = shm.Consumer("route", credits=4)
    from chronetixd.loop.inspector import harmless

    assert harmless(consumer.fd)
    consumer.close()
