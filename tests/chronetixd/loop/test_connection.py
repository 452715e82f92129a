"""A connection moves messages and descriptors, keeps its bounds, and ends alone."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from chronetix.protocol import cbor
from chronetix.protocol.errors import ChronetixError, LocalError, error
from chronetix.protocol.framing import LARGE, MessageDecoder, encode
from chronetix.protocol.messages import Hello, LauncherReady, Ready, Segment, SegmentMapped, Spawned, Started
from chronetixd.loop.connection import MAX_UNREAD, Connection
from chronetixd.loop.shares import DAEMON, ITEM_NS, TURN, ShareOwner

UNION = Hello | Ready | Started | Segment | SegmentMapped | Spawned | LauncherReady


class Ends:
    """A connection under test and the raw socket of its peer."""

    def __init__(self, loop: Any, who: ShareOwner = DAEMON) -> None:
        self.got: list[Any] = []
        self.ended: list[ChronetixError | None] = []
        self.handle: Callable[[Any, list[int]], None] = lambda message, fds: None
        ours, self.peer = socket.socketpair()
        self.connection = Connection(loop, ours, UNION, on_message=self._take, on_end=self.ended.append, who=who)
        self.connection.start()

    def _take(self, message: Any, descriptors: list[int]) -> None:
        self.got.append(message)
        self.handle(message, descriptors)

    def close(self) -> None:
        self.connection.close()
        self.peer.close()


@pytest.fixture
def ends(loop: Any) -> Iterator[Ends]:
    made = Ends(loop)
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        os.close(fd)


def test_messages_arrive_in_order_however_they_are_cut(ends: Ends, until: Any) -> None:
    frames = encode(Ready()) + encode(Started()) + encode(SegmentMapped(index=3, route="r"))
    for at in range(len(frames)):
        ends.peer.send(frames[at : at + 1])
        until(lambda: True)
    until(lambda: len(ends.got) == 3)
    assert ends.got == [Ready(), Started(), SegmentMapped(index=3, route="r")]


@pytest.mark.parametrize("each", [1, 40])
def test_what_many_say_at_once_is_heard_in_turns_with_everybody_else(each: int, loop: Any, until: Any) -> None:
    heard: list[str] = []

    def hear(name: str) -> Callable[[Any, list[int]], None]:
        def note(_message: Any, _descriptors: list[int]) -> None:
            end = time.thread_time_ns() + TURN * ITEM_NS // 4
            while name == "worker" and time.thread_time_ns() < end:
                pass
            heard.append(name)

        return note

    workers = [Ends(loop, ShareOwner("worker", "flow")) for _ in range(40 // each)]
    client = Ends(loop, ShareOwner("client", 0))
    for ends in (*workers, client):
        ends.handle = hear("client" if ends is client else "worker")
        ends.peer.send(encode(Ready()) * (1 if ends is client else each))
    until(lambda: len(heard) == 41)
    assert heard.index("client") < 20
    for ends in (*workers, client):
        ends.close()


def test_descriptors_travel_with_their_message(ends: Ends, until: Any, pipe: tuple[int, int]) -> None:
    kept: list[int] = []

    def take(_message: Any, descriptors: list[int]) -> None:
        kept.extend(descriptors)
        descriptors.clear()

    ends.handle = take
    socket.send_fds(ends.peer, [encode(Segment(index=1))], [pipe[1]])
    until(lambda: kept)
    os.write(kept[0], b"here")
    os.close(kept[0])
    assert os.read(pipe[0], 10) == b"here"


def test_descriptors_that_a_handler_does_not_take_are_closed(ends: Ends, until: Any, pipe: tuple[int, int]) -> None:
    socket.send_fds(ends.peer, [encode(Segment(index=1))], [pipe[1]])
    until(lambda: ends.got)


def test_a_handler_that_refuses_ends_the_connection_with_its_reason(ends: Ends, until: Any) -> None:
    def refuse(_message: Any, _descriptors: list[int]) -> None:
        raise error("unexpected-message", type="ready", when="now")

    ends.handle = refuse
    ends.peer.send(encode(Ready()) + encode(Started()))
    until(lambda: ends.ended)
    assert ends.got == [Ready()]
    assert ends.ended[0] is not None
    assert ends.ended[0].name == "unexpected-message"


def test_a_handler_that_breaks_ends_its_connection_only(ends: Ends, until: Any) -> None:
    ends.handle = lambda message, fds: 1 / 0  # type: ignore[assignment]
    ends.peer.send(encode(Ready()))
    until(lambda: ends.ended)
    assert ends.ended[0] is not None
    assert ends.ended[0].name == "internal"


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (struct.pack(">I", 1 << 30), "frame-too-large"),
        (struct.pack(">I", 3) + b"\xff\xff\xff", "malformed-cbor"),
        (struct.pack(">I", 1) + b"\xa0", "malformed-message"),
        (encode(Ready())[:-1], "connection-cut"),
    ],
)
def test_garbage_ends_the_connection_with_its_name(sent: bytes, name: str, ends: Ends, until: Any) -> None:
    ends.peer.send(sent)
    ends.peer.shutdown(socket.SHUT_WR)
    until(lambda: ends.ended)
    assert ends.ended[0] is not None
    assert ends.ended[0].name == name


def test_a_peer_that_closes_between_frames_ends_without_a_fault(ends: Ends, until: Any) -> None:
    ends.peer.send(encode(Ready()))
    ends.peer.close()
    until(lambda: ends.ended)
    assert (ends.got, ends.ended) == ([Ready()], [None])


def test_what_is_sent_while_the_peer_does_not_read_waits_and_then_arrives(ends: Ends, until: Any) -> None:
    for index in range(50_000):
        ends.connection.send(SegmentMapped(index=index, route="a-route-with-a-name"))
    queued = ends.connection.backlog
    until(lambda: ends.connection.backlog < queued)
    decoder: MessageDecoder[Any] = MessageDecoder(SegmentMapped)
    got: list[int] = []
    ends.peer.setblocking(False)

    def read() -> bool:
        try:
            got.extend(message.index for message in decoder.feed(ends.peer.recv(1 << 20)))
        except BlockingIOError:
            return False
        return len(got) == 50_000

    until(read)
    assert got == list(range(50_000))
    assert ends.connection.backlog == 0


def test_a_peer_that_reads_no_answers_is_not_listened_to_until_it_does(ends: Ends, until: Any) -> None:
    answer = SegmentMapped(index=0, route="x" * 2000)
    ends.handle = lambda message, fds: ends.connection.send(answer)
    ends.peer.setblocking(False)
    asked = encode(Ready())
    sent, received = 0, bytearray()

    def stuck() -> bool:
        nonlocal sent
        try:
            while True:
                sent += ends.peer.send(asked[sent % len(asked) :])
        except BlockingIOError:
            return ends.connection.backlog > MAX_UNREAD

    def answered() -> bool:
        try:
            received.extend(ends.peer.recv(1 << 20))
        except BlockingIOError:
            return False
        return len(received) == sent // len(asked) * len(encode(answer))

    until(stuck)
    heard = len(ends.got)
    assert heard < sent // len(asked)
    until(answered)
    assert len(ends.got) == sent // len(asked)


def test_descriptors_given_away_are_closed_once_sent(ends: Ends, until: Any) -> None:
    read, write = os.pipe()
    os.close(write)
    ends.connection.send(Spawned(id=1, pid=2), [read], give=True)
    until(lambda: ends.connection.backlog == 0)
    _, descriptors, _, _ = socket.recv_fds(ends.peer, 1000, 4)
    assert os.fstat(descriptors[0])
    os.close(descriptors[0])


def test_descriptors_given_to_a_dead_connection_are_closed(ends: Ends) -> None:
    read, write = os.pipe()
    os.close(write)
    ends.connection.close()
    ends.connection.send(Spawned(id=1, pid=2), [read], give=True)


def test_the_last_words_of_a_peer_that_cannot_be_written_to_are_still_read(ends: Ends, until: Any) -> None:
    ends.peer.send(encode(Ready()))
    ends.peer.close()
    ends.connection.send(Started())
    until(lambda: ends.ended)
    assert ends.got == [Ready()]


def test_closing_after_the_flush_sends_everything_first(ends: Ends, until: Any) -> None:
    ends.connection.send(Started())
    ends.connection.close_after_flush()
    until(lambda: ends.connection.closed)
    assert ends.peer.recv(1000) == encode(Started())
    assert ends.peer.recv(1000) == b""
    assert ends.ended == []


def test_draining_does_not_read_on_while_somebody_goes_on_sending(ends: Ends) -> None:
    def send_more(_message: Any, _descriptors: list[int]) -> None:
        if len(ends.got) < 100:
            ends.peer.send(encode(Started()))

    ends.handle = send_more
    ends.peer.send(encode(Ready()))
    ends.connection.drain_input()
    assert 1 <= len(ends.got) <= 3


def test_draining_reads_all_that_is_there_although_descriptors_cut_it_into_pieces(ends: Ends) -> None:
    for index in range(10):
        socket.send_fds(ends.peer, [encode(Segment(index=index))], [ends.peer.fileno()])
    ends.peer.shutdown(socket.SHUT_WR)
    ends.connection.drain_input()
    assert [message.index for message in ends.got] == list(range(10))
    assert ends.ended == [None]


def test_a_frame_that_there_is_no_memory_for_ends_its_connection(ends: Ends, until: Any, monkeypatch: Any) -> None:
    def feed(data: bytes, descriptors: list[int], work: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(ends.connection._channel, "feed", feed)
    ends.peer.send(encode(Ready()))
    until(lambda: ends.ended)
    (fault,) = ends.ended
    assert fault is not None
    assert "there is no memory for it" in fault.message


@pytest.mark.parametrize("first", ["whole", "broken", "closed"])
def test_large_documents_of_one_user_are_made_one_after_the_other(
    first: str, loop: Any, until: Any, monkeypatch: Any
) -> None:
    half_made: set[int] = set()
    most: list[int] = []

    class Document:
        """Knows how many of its kind have begun and are neither made nor left."""

        def __init__(self, body: memoryview, items: int) -> None:
            self._real = cbor.Decoder(body, items)
            half_made.add(id(self))
            most.append(len(half_made))

        def __getattr__(self, name: str) -> Any:
            if name in ("take", "leavings"):
                half_made.discard(id(self))
            return getattr(self._real, name)

        def __del__(self) -> None:
            half_made.discard(id(self))

    monkeypatch.setattr("chronetix.protocol.framing.cbor", SimpleNamespace(**vars(cbor) | {"Decoder": Document}))
    made = [Ends(loop) for _ in range(3)]
    try:
        frame = encode(Hello(protocol=[1], role="client", features=["ab"] * 60_000))
        assert len(frame) > LARGE
        frames = [frame[:-1] + b"\xff" if first == "broken" else frame, frame, frame]
        sending = [
            threading.Thread(target=each.peer.sendall, args=(sent,)) for each, sent in zip(made, frames, strict=True)
        ]
        sending[0].start()
        until(lambda: len(most) == 1)
        for thread in sending[1:]:
            thread.start()
        if first == "closed":
            made[0].connection.close()
        until(lambda: all(each.got for each in made[first != "whole" :]))
        for thread in sending:
            thread.join()
        assert max(most) == 1
    finally:
        for each in made:
            each.close()


@pytest.fixture
def no_descriptors() -> Iterator[Callable[[], None]]:
    """Makes this process have no room for another descriptor; called within the loop, which needs some to run."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def exhaust() -> None:
        if resource.getrlimit(resource.RLIMIT_NOFILE) == limits:
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))

    yield exhaust
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class TestWantOfDescriptors:
    def test_is_the_daemons_and_no_fault_of_the_peer(
        self, ends: Ends, pipe: tuple[int, int], no_descriptors: Callable[[], None], until: Any
    ) -> None:
        socket.send_fds(ends.peer, [encode(Segment(index=1))], [pipe[0]])
        until(lambda: no_descriptors() or ends.ended)
        (fault,) = ends.ended
        assert isinstance(fault, LocalError)
        assert fault.name == "daemon-exhausted"
        assert "Too many open files, the limit is" in fault.message
        assert "LimitNOFILE" in fault.hint
        assert ends.got == []

    def test_does_not_touch_what_came_before(
        self, ends: Ends, pipe: tuple[int, int], no_descriptors: Callable[[], None], until: Any
    ) -> None:
        ends.peer.send(encode(Ready()))
        socket.send_fds(ends.peer, [encode(Segment(index=1))], [pipe[0]])
        until(lambda: no_descriptors() or ends.ended)
        assert [type(message) for message in ends.got] == [Ready]
        assert ends.ended[0] is not None
        assert ends.ended[0].name == "daemon-exhausted"

    @pytest.mark.parametrize(
        ("number", "resource_name"),
        [(errno.EMFILE, "descriptors"), (errno.ENFILE, "descriptors"), (errno.ENOMEM, "memory")],
    )
    def test_of_a_handler_is_the_daemons_too(self, ends: Ends, until: Any, number: int, resource_name: str) -> None:
        def handle(_message: Any, _descriptors: list[int]) -> None:
            raise OSError(number, os.strerror(number))

        ends.handle = handle
        ends.peer.send(encode(Ready()))
        until(lambda: ends.ended)
        (fault,) = ends.ended
        assert isinstance(fault, LocalError)
        assert fault.name == "daemon-exhausted"
        assert f"had no {resource_name} left for handling Ready" in fault.message

    def test_another_error_of_a_handler_is_a_defect(self, ends: Ends, until: Any) -> None:
        def handle(_message: Any, _descriptors: list[int]) -> None:
            raise OSError(errno.EBADF, "bad")

        ends.handle = handle
        ends.peer.send(encode(Ready()))
        until(lambda: ends.ended)
        assert ends.ended[0] is not None
        assert ends.ended[0].name == "internal"
