"""Lines: how the ends of a route wake each other, beside a peer that does to its own end whatever it can."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from chronetix import shm
from tests.shm.conftest import Forge, MakeRoute, Route
from tests.shm.lines import a_line, is_shut, ring

PASSRIGHTS = 83


def kernel_knows_passrights(sock: socket.socket) -> bool:
    try:
        sock.getsockopt(socket.SOL_SOCKET, PASSRIGHTS)
    except OSError:
        return False
    return True


def open_descriptors() -> set[int]:
    """But for the one that looks."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.add(fd)
    return found


def rings(fd: int) -> int:
    """Ring until it would block, or a thousand times; how often."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        for count in range(1000):
            try:
                ring(sock)
            except BlockingIOError:
                return count
    return 1000


def let_rights_pass(fd: int) -> None:
    """As on an older kernel, once nobody else has this end. It is closed."""
    with socket.socket(fileno=fd) as end:
        if kernel_knows_passrights(end):
            end.setsockopt(socket.SOL_SOCKET, PASSRIGHTS, 1)


class Peer:
    """A consumer's end of a route whose producer has its line in the hands of a test."""

    def __init__(self, forge: Forge, *, passes: bool = False) -> None:
        self.ring = forge.ring(4)
        self.bell = shm.Doorbell()
        self.consumer = shm.Consumer("r", credits=4)
        far, near = shm.line()
        known = open_descriptors()
        self.consumer.link(self.ring.fd, near, self.bell)
        (self.line,) = open_descriptors() - known
        """The consumer's own duplicate."""
        if passes:
            let_rights_pass(near)
        else:
            os.close(near)
        self.sock = socket.socket(fileno=far)
        self.inlet = shm.Inlet([self.consumer], self.bell)

    def leave(self) -> None:
        """The route ends at the consumer's end."""
        del self.inlet, self.consumer

    def close(self) -> None:
        self.sock.close()
        vars(self).clear()  # pytest still holds it when it looks for leaks


class Answerer:
    """A producer's end of a route whose consumer has its line in the hands of a test."""

    def __init__(self, forge: Forge, *, passes: bool = False) -> None:
        self.credit = forge.credit(4)
        self.bell = shm.Doorbell()
        self.producer = shm.Producer(shm.Arena(), "evil", credits=4)
        near, far = shm.line()
        known = open_descriptors()
        self.producer.link(self.credit.fd, near, self.bell)
        (self.line,) = open_descriptors() - known
        """The producer's own duplicate."""
        if passes:
            let_rights_pass(near)
        else:
            os.close(near)
        self.sock = socket.socket(fileno=far)

    def leave(self) -> None:
        """The route ends at the producer's end."""
        del self.producer

    def close(self) -> None:
        self.sock.close()
        vars(self).clear()  # pytest still holds it when it looks for leaks


@pytest.fixture(params=["shut", "open"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a producer rings: here, and where shutting an end again does not ring."""
    if request.param == "shut" and "shut_rings" in os.environ.get("CHRONETIX_WITHOUT", ""):
        pytest.skip("this kernel has no such rings")
    if request.param == "open":
        monkeypatch.setenv("CHRONETIX_WITHOUT", f"{os.environ.get('CHRONETIX_WITHOUT', '')},shut_rings")
    return str(request.param)


@pytest.fixture
def peer(forge: Forge, kind: str) -> Iterator[Peer]:
    with closing(Peer(forge)) as made:
        assert is_shut(made.sock) == (kind == "shut")
        yield made


@pytest.fixture
def answerer(forge: Forge) -> Iterator[Answerer]:
    with closing(Answerer(forge)) as made:
        yield made


class TestAsALine:
    def test_an_end_that_was_linked_is_silent_and_the_rings_of_others_are_kept(self, peer: Peer, forge: Forge) -> None:
        assert not peer.bell.clear()
        ring(peer.sock)
        consumer = shm.Consumer("another", credits=4)
        with a_line() as (_, near):
            consumer.link(forge.ring(4).fd, near, peer.bell)
        assert peer.bell.wait(-1)
        consumer.close()

    def test_each_ring_wakes_and_a_cleared_bell_is_silent(self, peer: Peer) -> None:
        for _ in range(300):
            ring(peer.sock)
            assert peer.bell.wait(-1)
            assert not peer.bell.clear()
            assert not peer.bell.wait(0)

    def test_each_ring_of_a_consumer_wakes_its_producer(self, answerer: Answerer) -> None:
        for _ in range(300):
            answerer.sock.send(b"x", socket.MSG_DONTWAIT)
            assert answerer.bell.wait(-1)
            assert not answerer.bell.clear()

    def test_a_producer_that_rings_does_not_wake_itself(self, kind: str, answerer: Answerer) -> None:
        outlet = shm.Outlet([answerer.producer], answerer.bell)
        for number in range(300):
            answerer.credit.put(128, number + 1)  # wait_for: every frame rings
            outlet.send(b"x", 0)
            assert not answerer.bell.clear()
            answerer.credit.give_back(number)
            answerer.credit.put(192, number + 1)

    @pytest.mark.parametrize("kind", ["shut"], indirect=True)
    def test_nothing_lies_in_a_line_that_is_shut(self, peer: Peer) -> None:
        with pytest.raises(BrokenPipeError):
            peer.sock.send(b"x", socket.MSG_DONTWAIT)

    def test_what_rang_before_anybody_slept_is_not_forgotten(self, peer: Peer) -> None:
        ring(peer.sock)
        assert select.select([peer.bell.fileno()], [], [], 60)[0]
        assert peer.bell.wait(-1)
        assert not select.select([peer.bell.fileno()], [], [], 0)[0]

    @pytest.mark.parametrize("kind", ["open"], indirect=True)
    def test_a_full_line_was_rung_and_after_the_owner_has_looked_it_rings_again(self, peer: Peer) -> None:
        for _ in range(5):
            assert 1 <= rings(peer.sock.fileno()) < 256, "an honest peer has fewer on their way than are read at once"
            assert peer.bell.clear()
            assert not peer.bell.clear()

    def test_a_full_line_to_a_producer_was_rung_too(self, answerer: Answerer) -> None:
        for _ in range(5):
            assert 1 <= rings(answerer.sock.fileno()) < 256
            assert answerer.bell.clear()
            assert not answerer.bell.clear()

    def test_one_way_the_consumer_is_rung_and_cannot_ring(self, forge: Forge, kind: str) -> None:
        """Nor by what else wakes who listens to the other end of a socket: shutting one's own, and closing it."""
        producer = shm.Producer(shm.Arena(), "tap", credits=4, policy="latest")
        credit, bell, far_bell = forge.credit(4), shm.Doorbell(), shm.Doorbell()
        consumer = shm.Consumer("tap", credits=4)
        near, far = shm.line(one_way=True)
        producer.link(credit.fd, near, bell)
        consumer.link(producer.fd, far, far_bell)
        outlet = shm.Outlet([producer], bell)
        for number in range(10):
            credit.put(128, number + 1)
            outlet.send(b"x", 0)
            assert far_bell.clear()
            assert not far_bell.clear()
        os.close(near)
        with socket.socket(fileno=far) as rung:
            with pytest.raises(BrokenPipeError):
                rung.send(b"x")
            for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
                rung.shutdown(how)
        assert not bell.clear()
        consumer.close()
        del consumer
        assert not bell.clear()
        producer.close()

    def test_a_ring_from_inside_and_one_from_a_signal_handler_wake_too(self, peer: Peer) -> None:
        for from_inside in (peer.bell.ring, lambda: os.eventfd_write(peer.bell.eventfd, 1)):
            from_inside()
            assert peer.bell.clear()
            assert not peer.bell.clear()

    def test_more_lines_than_are_heard_at_once_are_all_heard(self, forge: Forge, kind: str) -> None:
        peers = [Peer(forge) for _ in range(40)]
        bell = shm.Doorbell()
        consumers = []
        for each in peers:
            consumer = shm.Consumer("r", credits=4)
            with a_line() as (far, near):
                consumer.link(each.ring.fd, near, bell)
                consumers.append((consumer, os.dup(far)))
        for _, far in consumers:
            assert rings(far) > 0
        heard = 0
        while bell.clear():
            heard += 1
        assert heard == 3
        for consumer, far in consumers:
            assert rings(far) > 0, "it was read"
            os.close(far)
            consumer.close()
        for each in peers:
            each.close()

    def test_no_wake_up_is_lost_between_two_that_answer_each_other(self, make_route: MakeRoute, kind: str) -> None:
        """Both sleep all the time: a ring that is lost would be waited for for ever."""
        there, back = make_route(credits=1), make_route(credits=1)

        def answer() -> None:
            for number in range(3000):
                frame = there.inlet.take()
                while frame is None:
                    frame = there.inlet.take()
                assert bytes(frame) == b"%d" % number
                frame.release()
                back.outlet.send(b"%d" % number)

        thread = threading.Thread(target=answer)
        thread.start()
        for number in range(3000):
            there.outlet.send(b"%d" % number)
            frame = back.inlet.take()
            while frame is None:
                frame = back.inlet.take()
            frame.release()
        thread.join()


class TestAHostilePeer:
    def test_that_clears_nonblock_and_reads_nothing_keeps_no_producer_waiting(
        self, route: Route, forge: Forge, kind: str
    ) -> None:
        producer, credit = shm.Producer(route.arena, "evil", credits=4), forge.credit(4)
        near, far = shm.line()
        producer.link(credit.fd, near, route.bell)
        os.close(near)
        os.set_blocking(far, True)
        outlet = shm.Outlet([producer], route.bell)
        for number in range(1000):
            credit.put(128, number + 1)  # wait_for: every frame rings
            outlet.send(b"x", 0)
            credit.give_back(number)
            credit.put(192, number + 1)
        with socket.socket(fileno=far) as sock:
            assert len(sock.recv(4096)) < 256, "the others found the line full"
        producer.close()

    def test_that_has_gone_is_rung_by_nobody_and_that_is_no_error(self, route: Route, forge: Forge, kind: str) -> None:
        producer, credit = shm.Producer(route.arena, "evil", credits=4), forge.credit(4)
        near, far = shm.line()
        producer.link(credit.fd, near, route.bell)
        os.close(near)
        os.close(far)
        credit.put(128, 1)
        assert shm.Outlet([producer], route.bell).send(b"x", 0) == 0
        producer.close()

    def test_that_rings_without_end_keeps_nobody_from_sleeping(self, peer: Peer) -> None:
        assert rings(peer.sock.fileno()) > 0
        assert peer.inlet.take(0) is None
        assert peer.bell.clear()
        assert not peer.bell.wait(1_000_000)

    @pytest.mark.parametrize("kind", ["open"], indirect=True)
    def test_that_floods_its_line_keeps_nobody_from_sleeping(self, peer: Peer) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        peer.sock.setblocking(False)
        sent = 0
        try:
            while True:
                sent += peer.sock.send(bytes(4096))
        except BlockingIOError:
            pass
        assert sent > 4096
        assert peer.inlet.take(0) is None
        assert peer.bell.clear()
        assert not peer.bell.wait(1_000_000), "what is left unread wakes nobody"

    def test_that_shuts_its_end_wakes_once(self, peer: Peer) -> None:
        peer.sock.shutdown(socket.SHUT_RDWR)
        assert peer.bell.wait(-1)
        assert not peer.bell.wait(1_000_000)
        assert peer.inlet.take(1_000_000) is None
        assert not peer.inlet.ended

    def test_that_shuts_its_end_to_a_producer_wakes_it_once_and_once_for_each_frame(self, answerer: Answerer) -> None:
        """Then the producer's own rings wake who listens to its end: as often as it sends, and no oftener."""
        answerer.sock.shutdown(socket.SHUT_RDWR)
        assert answerer.bell.wait(-1)
        outlet = shm.Outlet([answerer.producer], answerer.bell)
        for number in range(4):
            assert not answerer.bell.wait(1_000_000)
            answerer.credit.put(128, number + 1)  # wait_for: every frame rings
            outlet.send(b"x", 0)
            answerer.bell.clear()
        assert not answerer.bell.wait(1_000_000)

    def test_that_reads_its_end_takes_no_wake_up_away(self, peer: Peer) -> None:
        """What the owner is rung by lies in the owner's socket."""
        ring(peer.sock)
        with pytest.raises(BlockingIOError):
            peer.sock.recv(1, socket.MSG_DONTWAIT)
        assert peer.bell.clear()

    def test_that_was_left_can_ring_nobody(self, peer: Peer) -> None:
        peer.leave()
        with pytest.raises(BrokenPipeError):
            peer.sock.send(b"x")
        ring(peer.sock)
        assert not peer.bell.clear()

    def test_that_was_left_can_ring_nobody_though_a_child_of_its_peer_lives(self, peer: Peer) -> None:
        child = os.fork()
        if child == 0:
            signal.pause()
        self.test_that_was_left_can_ring_nobody(peer)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    def test_a_child_that_drops_what_it_inherited_leaves_the_lines_of_its_parent(self, peer: Peer) -> None:
        child = os.fork()
        if child == 0:
            peer.leave()
            os._exit(0)
        os.waitpid(child, 0)
        assert not peer.bell.clear()
        ring(peer.sock)
        assert peer.bell.clear()

    def test_that_dies_wakes_its_peer_though_it_has_not_rung(self, forge: Forge, kind: str) -> None:
        bell, consumer = shm.Doorbell(), shm.Consumer("r", credits=4)
        far, near = shm.line()
        consumer.link(forge.ring(4).fd, near, bell)
        os.close(near)
        child = os.fork()
        if child == 0:
            signal.pause()
        os.close(far)
        assert not bell.clear()
        os.kill(child, signal.SIGKILL)
        assert bell.wait(-1)
        os.waitpid(child, 0)
        consumer.close()

    @pytest.mark.parametrize("kind", ["open"], indirect=True)
    def test_cannot_attach_descriptors_where_the_kernel_refuses_them(self, peer: Peer) -> None:
        if not kernel_knows_passrights(peer.sock) or "passrights" in os.environ.get("CHRONETIX_WITHOUT", ""):
            pytest.skip("this kernel has no SO_PASSRIGHTS")
        read, write = os.pipe()
        with pytest.raises(OSError) as refused:
            socket.send_fds(peer.sock, [b"x"], [read])
        assert refused.value.errno == errno.EPERM
        assert peer.inlet.take(0) is None
        os.close(read)
        os.close(write)

    @pytest.mark.parametrize("kind", ["shut"], indirect=True)
    def test_cannot_attach_descriptors_where_nothing_can_be_sent(self, peer: Peer) -> None:
        """Whatever the kernel has."""
        read, write = os.pipe()
        with pytest.raises(OSError) as refused:
            socket.send_fds(peer.sock, [b"x"], [read])
        assert refused.value.errno in (errno.EPIPE, errno.EPERM)
        assert peer.inlet.take(0) is None
        os.close(read)
        os.close(write)


class Lingering:
    """A TCP socket whose last close takes a minute."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.sock = socket.create_connection(self._listener.getsockname())
        self._peer, _ = self._listener.accept()
        self.sock.setblocking(False)
        try:
            while True:
                self.sock.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        self.sock.setblocking(True)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))

    def send_by(self, line: socket.socket) -> None:
        """Nobody else has it afterwards."""
        socket.send_fds(line, [b"x"], [self.sock.fileno()])
        self.sock.close()

    def reset(self) -> None:
        """Whoever closes it now need not wait. Idempotent."""
        if self._peer.fileno() < 0:
            return
        self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._peer.close()

    def close(self) -> None:
        self.reset()
        self.sock.close()
        self._listener.close()


class TestWithoutPassrights:
    """The same on a kernel that lets descriptors through: they are seen before anything is read."""

    @pytest.fixture
    def peer(self, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
        monkeypatch.setenv("CHRONETIX_WITHOUT", "passrights,shut_rings")
        with closing(Peer(forge, passes=True)) as made:
            yield made

    @pytest.fixture
    def answerer(self, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answerer]:
        monkeypatch.setenv("CHRONETIX_WITHOUT", "passrights")
        with closing(Answerer(forge, passes=True)) as made:
            yield made

    @pytest.fixture
    def lingering(self) -> Iterator[Lingering]:
        with closing(Lingering()) as made:
            yield made

    def test_rings_wake_as_ever(self, peer: Peer) -> None:
        for _ in range(3):
            assert rings(peer.sock.fileno()) > 0
            assert peer.bell.wait(-1)
            assert not peer.bell.clear()

    def test_a_line_with_a_descriptor_is_never_read_and_its_route_at_fault(
        self, peer: Peer, lingering: Lingering
    ) -> None:
        """Whoever closed it would stand still for a minute."""
        peer.sock.send(b"x")
        lingering.send_by(peer.sock)
        assert peer.bell.wait(-1)
        with pytest.raises(shm.PeerFault, match="has sent descriptors where only rings may come"):
            peer.inlet.take(0)
        assert peer.inlet.ended
        peer.sock.send(b"x", socket.MSG_DONTWAIT)
        assert not peer.bell.clear()
        peer.leave()
        lingering.reset()
        os.close(peer.line)

    def test_a_consumer_that_attaches_a_descriptor_has_its_route_at_fault(
        self, answerer: Answerer, lingering: Lingering
    ) -> None:
        outlet = shm.Outlet([answerer.producer], answerer.bell)
        answerer.sock.send(b"x")
        lingering.send_by(answerer.sock)
        assert answerer.bell.wait(-1)
        for _ in range(4):
            outlet.send(b"x", 0)
        with pytest.raises(shm.PeerFault, match="has sent descriptors where only rings may come"):
            outlet.send(b"x", 0)
        assert not answerer.bell.clear()
        del outlet
        answerer.leave()
        lingering.reset()
        os.close(answerer.line)

    def test_a_line_with_a_descriptor_that_came_after_the_last_look_stays_open(
        self, peer: Peer, lingering: Lingering
    ) -> None:
        peer.sock.send(b"x")
        lingering.send_by(peer.sock)
        peer.leave()
        with pytest.raises(BrokenPipeError):
            peer.sock.send(b"x")
        lingering.reset()
        os.close(peer.line)
