"""Descriptors find their messages, and none is ever lost or kept. Numbers stand for descriptors: nothing is opened."""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.descriptors import MAX_PER_SENDMSG, MAX_WAITING, Channel, Piece, expected, pieces, received
from chronetix.protocol.errors import LocalError, ProtocolError
from chronetix.protocol.framing import encode
from chronetix.protocol.messages import (
    InputLink,
    Link,
    Offer,
    Ready,
    Segment,
    Spawn,
    Spawned,
    Started,
    ToWorker,
    WorkerMessage,
)


def rights(*descriptors: int) -> bytes:
    return array.array("i", descriptors).tobytes()


def test_descriptors_are_received_in_the_order_of_their_control_messages() -> None:
    first = (socket.SOL_SOCKET, socket.SCM_RIGHTS, rights(7, 3))
    second = (socket.SOL_SOCKET, socket.SCM_RIGHTS, rights(5))
    assert received([first, second]) == [7, 3, 5]
    assert received([]) == []


def test_other_control_messages_bring_no_descriptors() -> None:
    credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, rights(1, 0, 0))
    of_another_level = (socket.IPPROTO_IP, socket.SCM_RIGHTS, rights(9))
    assert received([credentials, (socket.SOL_SOCKET, socket.SCM_RIGHTS, rights(4)), of_another_level]) == [4]


def test_a_payload_that_was_cut_within_a_descriptor_ends_before_it() -> None:
    assert received([(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights(7, 3)[:-1])]) == [7]
    assert received([(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights(7)[:3])]) == []


class Receiver:
    """A channel, and the descriptors that it closed."""

    def __init__(self, union: Any = WorkerMessage) -> None:
        self.closed: list[int] = []
        self.channel: Channel[Any] = Channel(union, close_descriptor=self.closed.append)

    def take(self, data: bytes, descriptors: Sequence[int] = ()) -> list[Any]:
        return list(self.channel.feed(data, descriptors))


@pytest.mark.parametrize(
    ("message", "count"),
    [
        (Ready(), 0),
        (Offer(), 0),
        (Offer(rings=["a"], credits=["b", "c"], segments=[0, 1]), 5),
        (Link(outputs=["a", "b"], inputs=[InputLink(route="c", segments=[0, 1])]), 8),
        (Segment(index=0), 1),
        (Spawn(id=1, name="n"), 3),
        (Spawned(id=1, pid=2), 1),
    ],
)
def test_a_message_says_how_many_descriptors_travel_with_it(message: Any, count: int) -> None:
    assert expected(message) == count


class TestSending:
    def test_descriptors_ride_on_the_first_byte(self) -> None:
        assert pieces(Segment(index=1), [7]) == [Piece(encode(Segment(index=1)), [7])]

    def test_a_message_without_descriptors_is_one_piece(self) -> None:
        assert pieces(Ready()) == [Piece(encode(Ready()), ())]

    @pytest.mark.parametrize("given_count", [0, 2])
    def test_another_number_than_the_message_says_is_refused(self, given_count: int) -> None:
        with pytest.raises(LocalError, match="carries 1 descriptors") as caught:
            pieces(Segment(index=1), range(given_count))
        assert caught.value.name == "descriptors-mismatch"

    @given(st.integers(0, 1200))
    def test_many_descriptors_are_split_so_that_the_kernel_takes_them(self, count: int) -> None:
        message = Offer(rings=[f"route-{number}" for number in range(count)])
        descriptors = list(range(count))
        sent = pieces(message, descriptors)
        assert b"".join(piece.data for piece in sent) == encode(message)
        assert [number for piece in sent for number in piece.descriptors] == descriptors
        assert all(piece.data and len(piece.descriptors) <= MAX_PER_SENDMSG for piece in sent)


class TestReceiving:
    @given(st.lists(st.integers(0, 600), min_size=1, max_size=3), st.data())
    def test_every_message_gets_its_own_however_the_bytes_were_cut(self, sizes: list[int], data: st.DataObject) -> None:
        receiver, number, got, sent = Receiver(), 0, [], []
        for size in sizes:
            message = Offer(segments=list(range(size)))
            own = list(range(number, number + size))
            number += size
            sent.append((message, own))
            for piece in pieces(message, own):
                cut = data.draw(st.integers(1, len(piece.data)))
                got += receiver.take(piece.data[:cut], piece.descriptors)
                got += receiver.take(piece.data[cut:])
        assert got == sent
        assert receiver.closed == []
        assert receiver.channel.at_boundary

    def test_messages_glued_together_keep_their_descriptors_apart(self) -> None:
        receiver = Receiver()
        glued = encode(Ready()) + encode(Segment(index=1)) + encode(Started())[:2]
        assert receiver.take(glued, [5]) == [(Ready(), []), (Segment(index=1), [5])]
        assert receiver.take(encode(Started())[2:]) == [(Started(), [])]

    def test_a_message_with_too_few_is_refused(self) -> None:
        receiver = Receiver()
        with pytest.raises(ProtocolError, match="needs 2 descriptors, but 1") as caught:
            receiver.take(encode(Offer(rings=["a", "b"])), [5])
        assert caught.value.name == "missing-descriptors"
        assert receiver.closed == [5]

    def test_descriptors_that_belong_to_no_message_are_closed(self) -> None:
        receiver = Receiver()
        with pytest.raises(ProtocolError, match="2 descriptors came that belong to no message"):
            receiver.take(encode(Ready()), [5, 6])
        assert receiver.closed == [5, 6]

    def test_descriptors_without_a_byte_belong_to_no_message(self) -> None:
        receiver = Receiver()
        with pytest.raises(ProtocolError) as caught:
            receiver.take(b"", [5])
        assert caught.value.name == "unexpected-descriptors"

    def test_those_of_a_frame_that_has_begun_wait_for_its_end(self) -> None:
        receiver = Receiver()
        stream = encode(Segment(index=1))
        assert receiver.take(stream[:1], [5]) == []
        assert receiver.take(stream[1:]) == [(Segment(index=1), [5])]

    def test_more_than_the_limit_may_not_wait(self) -> None:
        receiver = Receiver()
        assert receiver.take(b"\x00", range(MAX_WAITING)) == []
        with pytest.raises(ProtocolError) as caught:
            receiver.take(b"\x00", [MAX_WAITING])
        assert caught.value.name == "too-many-descriptors"
        assert receiver.closed == list(range(MAX_WAITING + 1))

    def test_a_malformed_frame_closes_those_that_wait_and_all_that_come_later(self) -> None:
        receiver = Receiver()
        with pytest.raises(ProtocolError) as first:
            receiver.take(b"\x00\x00\x00\x01\xff", [5])
        with pytest.raises(ProtocolError) as second:
            receiver.take(encode(Segment(index=1)), [6])
        assert second.value is first.value
        assert receiver.closed == [5, 6]

    def test_the_end_of_the_stream_closes_those_that_wait(self) -> None:
        receiver = Receiver(ToWorker)
        receiver.take(encode(Segment(index=1))[:3], [5])
        with pytest.raises(ProtocolError, match="in the middle of a frame"):
            receiver.channel.end()
        assert receiver.closed == [5]

    def test_the_end_between_frames_is_no_error(self) -> None:
        receiver = Receiver()
        receiver.take(encode(Ready()))
        receiver.channel.end()
        assert receiver.closed == []

    def test_closing_twice_closes_once(self) -> None:
        receiver = Receiver()
        receiver.take(b"\x00", [5])
        receiver.channel.close()
        receiver.channel.close()
        assert receiver.closed == [5]

    @given(st.lists(st.tuples(st.binary(max_size=12), st.integers(0, 3)), max_size=8))
    def test_whatever_comes_every_descriptor_ends_once(self, chunks: list[tuple[bytes, int]]) -> None:
        receiver, number, taken = Receiver(), 0, []
        try:
            for data, count in chunks:
                own = range(number, number + count)
                number += count
                for _, descriptors in receiver.channel.feed(data, own):
                    taken += descriptors
            receiver.channel.end()
        except ProtocolError:
            pass
        receiver.channel.close()
        assert sorted(taken + receiver.closed) == list(range(number))
