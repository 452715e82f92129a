"""Frames: one contract, in one piece and split at every byte."""

from __future__ import annotations

import math
import struct
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chronetix.protocol import cbor, messages
from chronetix.protocol.errors import LocalError, ProtocolError
from chronetix.protocol.framing import SMALL, Encoding, MessageDecoder, Work, encode, message_types, type_of
from chronetix.protocol.messages import Cancel, ClientMessage, Deliver, Finished, ToWorker, WireMessage, WorkerMessage

MESSAGE_TYPES = [
    value
    for value in vars(messages).values()
    if isinstance(value, type) and issubclass(value, WireMessage) and value is not WireMessage
]
EVERY_MESSAGE = typing.Union[tuple(MESSAGE_TYPES)]  # noqa: UP007

texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(cbor.MIN_INT, cbor.MAX_INT)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def of_type(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, from its annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        meta = hint.__metadata__[0]
        return st.integers(meta.ge, meta.le)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is list:
        return st.lists(of_type(args[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(of_type(args[0]), of_type(args[1]), max_size=3)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(of_type, args))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return structs(hint)
    return {str: texts, bool: st.booleans(), bytes: st.binary(max_size=16), type(None): st.none(), Any: values}[hint]


def structs(struct_type: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Structs of that type, every field drawn."""
    hints = typing.get_type_hints(struct_type, include_extras=True)
    return st.builds(struct_type, **{name: of_type(hints[name]) for name in struct_type.__struct_fields__})


any_message = st.one_of(*map(structs, MESSAGE_TYPES))


def run(pieces: Iterable[bytes], union: Any = EVERY_MESSAGE, cap: int = 4096) -> tuple[list[Any], str | None, bool]:
    """What a decoder makes of these pieces: its messages, the name of its error, whether it stands at a boundary."""
    decoder: MessageDecoder[Any] = MessageDecoder(union, cap)
    got = []
    try:
        for piece in pieces:
            for message in decoder.feed(piece):
                got.append(message)
    except ProtocolError as reason:
        return got, reason.name, decoder.at_boundary
    return got, None, decoder.at_boundary


def each_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


class TestRoundTrip:
    @pytest.mark.parametrize("struct_type", MESSAGE_TYPES, ids=type_of)
    def test_every_message_comes_out_as_it_went_in(self, struct_type: type[WireMessage]) -> None:
        @settings(max_examples=40)
        @given(structs(struct_type))
        def holds(message: WireMessage) -> None:
            assert run([encode(message)], struct_type, messages.MAX_FRAME) == ([message], None, True)

        holds()

    @given(st.lists(any_message, max_size=4))
    def test_messages_come_out_in_order_however_they_were_cut(self, sent: list[WireMessage]) -> None:
        stream = b"".join(map(encode, sent))
        assert run([stream], cap=messages.MAX_FRAME) == (sent, None, True)
        assert run(each_byte(stream), cap=messages.MAX_FRAME) == (sent, None, True)

    def test_defaults_are_not_sent(self) -> None:
        assert encode(messages.Result(id=1)) == frame(cbor.dumps({"type": "result", "id": 1}))

    def test_nan_arrives_as_nan(self) -> None:
        [message], _, _ = run([encode(Finished(result=math.nan))])
        assert math.isnan(message.result)


class TestAnyBytes:
    """Any bytes give the same messages and at most one ProtocolError, whole and split at every byte."""

    def agrees(self, data: bytes) -> None:
        whole = run([data])
        assert run(each_byte(data)) == whole
        _, error, at_boundary = whole
        assert at_boundary or error is None

    @given(st.binary(max_size=300))
    @example(b"\x00\x00\x00\x00")
    @example(b"\xff\xff\xff\xff")
    def test_raw_bytes(self, data: bytes) -> None:
        self.agrees(data)

    @given(st.lists(st.binary(max_size=40).map(frame), max_size=4).map(b"".join), st.binary(max_size=4))
    def test_frames_of_raw_bytes(self, frames: bytes, tail: bytes) -> None:
        self.agrees(frames + tail)

    @given(st.lists(values.map(cbor.dumps).map(frame), max_size=3).map(b"".join))
    def test_frames_of_any_document(self, frames: bytes) -> None:
        self.agrees(frames)

    @given(st.sampled_from(sorted(message_types(EVERY_MESSAGE))), st.dictionaries(texts, values, max_size=4))
    def test_maps_that_claim_to_be_messages(self, tag: str, fields: dict[str, Any]) -> None:
        self.agrees(frame(cbor.dumps({**fields, "type": tag})))

    @given(any_message, st.data())
    def test_good_frames_with_one_byte_changed(self, message: WireMessage, data: st.DataObject) -> None:
        stream = bytearray(encode(message) + encode(Cancel(id=1)))
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
        self.agrees(bytes(stream))

    @given(any_message, any_message, st.data())
    def test_good_frames_with_a_piece_taken_out(self, one: WireMessage, two: WireMessage, data: st.DataObject) -> None:
        stream = encode(one) + encode(two)
        start = data.draw(st.integers(0, len(stream)))
        end = data.draw(st.integers(start, len(stream)))
        self.agrees(stream[:start] + stream[end:])


class TestCap:
    def test_a_frame_of_exactly_the_cap_is_taken(self) -> None:
        message = Deliver(envelope={}, payload=bytes(100))
        size = len(encode(message)) - 4
        assert run([encode(message)], ToWorker, cap=size)[0] == [message]
        assert run([encode(message)], ToWorker, cap=size - 1) == ([], "frame-too-large", True)

    def test_a_length_above_the_cap_is_refused_with_its_fourth_byte(self) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ClientMessage)
        assert list(decoder.feed(b"\x01\x00\x00")) == []
        with pytest.raises(ProtocolError, match="16777217 bytes; at most 16777216"):
            list(decoder.feed(b"\x01"))
        assert decoder.pending == 0

    def test_a_frame_above_the_cap_is_not_sent(self) -> None:
        with pytest.raises(LocalError, match="at most 64 fit") as caught:
            encode(Deliver(envelope={}, payload=bytes(100)), max_frame=64)
        assert caught.value.name == "frame-not-sendable"


class TestDecoder:
    def test_once_broken_it_stays_broken(self) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ClientMessage)
        with pytest.raises(ProtocolError) as first:
            list(decoder.feed(frame(b"\xff")))
        with pytest.raises(ProtocolError) as second:
            list(decoder.feed(encode(Cancel(id=1))))
        assert second.value is first.value
        assert decoder.at_boundary

    def test_messages_before_the_offence_are_given(self) -> None:
        stream = encode(Cancel(id=1)) + encode(Cancel(id=2)) + frame(b"\xff") + encode(Cancel(id=3))
        assert run([stream]) == ([Cancel(id=1), Cancel(id=2)], "malformed-cbor", True)

    def test_what_an_iterator_leaves_the_next_one_gives(self) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ClientMessage)
        sent = [Cancel(id=number) for number in range(3)]
        assert next(decoder.feed(b"".join(map(encode, sent)))) == sent[0]
        assert not decoder.at_boundary
        assert list(decoder.feed(b"")) == sent[1:]
        assert decoder.at_boundary

    def test_bytes_given_to_an_iterator_that_is_never_used_are_not_lost(self) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ClientMessage)
        decoder.feed(encode(Cancel(id=1)))
        assert list(decoder.feed(memoryview(encode(Cancel(id=2))))) == [Cancel(id=1), Cancel(id=2)]

    def test_the_end_within_a_frame_is_an_error_and_between_frames_is_none(self) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ClientMessage)
        decoder.end()
        list(decoder.feed(encode(Cancel(id=1))[:-1]))
        with pytest.raises(ProtocolError, match="in the middle of a frame") as caught:
            decoder.end()
        assert caught.value.name == "connection-cut"

    def test_a_type_that_the_peer_may_not_send_is_refused_and_named(self) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ClientMessage)
        with pytest.raises(ProtocolError, match=r"type finished .* only call, cancel, hello"):
            list(decoder.feed(encode(Finished())))

    def test_a_field_of_another_type_is_named_with_its_place(self) -> None:
        body = {"type": "link", "inputs": [{"route": "a", "segments": [0, -1]}]}
        decoder: MessageDecoder[Any] = MessageDecoder(ToWorker)
        with pytest.raises(ProtocolError, match=r"\$\.inputs\[0\]\.segments\[1\]"):
            list(decoder.feed(frame(cbor.dumps(body))))

    def test_what_a_peer_wrote_cannot_disturb_a_terminal_or_fill_a_log(self) -> None:
        for body in ({"type": "\x1b[2J" + "x" * 9999}, {"type": "hello", "protocol": [], "role": "\x1b" * 9999}):
            decoder: MessageDecoder[Any] = MessageDecoder(WorkerMessage)
            with pytest.raises(ProtocolError) as caught:
                list(decoder.feed(frame(cbor.dumps(body))))
            assert len(str(caught.value)) < 1000
            assert "\x1b" not in str(caught.value)


LARGE = [
    Deliver(envelope={"ext": {f"k{n}": [n, {}] for n in range(count)}}, payload=bytes(size))
    for count, size in ((0, SMALL), (500, 10), (5000, 100_000))
]


class TestWork:
    """A decoder that has others to let go first."""

    @pytest.mark.parametrize("portion", [1, 50, 5000])
    def test_messages_are_the_same_however_little_is_done_at_a_time(self, portion: int) -> None:
        sent = [Deliver(envelope={}, payload=b"x"), *LARGE, Deliver(envelope={}, payload=b"y")]
        decoder: MessageDecoder[Any] = MessageDecoder(ToWorker)
        got = list(decoder.feed(b"".join(map(encode, sent)), Work(portion)))
        while decoder.busy:
            got += decoder.feed(b"", Work(portion))
        assert got == sent
        assert decoder.at_boundary

    def test_it_stops_within_a_frame_and_says_so(self) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ToWorker)
        frame = bytes(encode(LARGE[2]))
        assert list(decoder.feed(frame + b"\0\0", Work(100))) == []
        assert decoder.busy
        assert decoder.pending == len(frame) + 2
        assert decoder.rest == frame + b"\0\0"
        other: MessageDecoder[Any] = MessageDecoder(ToWorker)
        assert list(other.feed(decoder.rest)) == [LARGE[2]]
        assert not other.busy

    def test_what_is_wrong_behind_the_work_is_seen_when_its_turn_comes(self) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ToWorker)
        assert len(list(decoder.feed(encode(LARGE[0]) + b"\xff\xff\xff\xff", Work(60)))) == 1
        assert decoder.busy
        with pytest.raises(ProtocolError, match="4294967295 bytes"):
            list(decoder.feed(b"", Work(100)))
        assert not decoder.busy

    def test_a_frame_of_more_items_than_allowed_is_refused(self) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ToWorker, max_items=100)
        with pytest.raises(ProtocolError, match="more than 100 items"):
            list(decoder.feed(encode(LARGE[1])))

    def test_what_was_made_of_a_frame_that_is_refused_is_there_to_be_freed(self) -> None:
        decoder: MessageDecoder[Any] = MessageDecoder(ToWorker)
        body = cbor.dumps([[n] for n in range(2000)])
        with pytest.raises(ProtocolError):
            list(decoder.feed(frame(body)))
        assert len(decoder.waste[0]) == 2000
        cut: MessageDecoder[Any] = MessageDecoder(ToWorker)
        with pytest.raises(ProtocolError):
            list(cut.feed(frame(body[:-1] + b"\xff")))
        assert cut.waste

    def test_an_answer_is_the_same_however_little_is_done_at_a_time(self) -> None:
        result = messages.Result(id=3, value={"many": [[n, messages.Cancel(id=n)] for n in range(500)]})
        encoding = Encoding(result)
        while not encoding.step(Work(10)):
            pass
        assert encoding.take() == encode(result)
        with pytest.raises(LocalError, match="at most 100 fit"):
            Encoding(result, 100).step(Work(10_000))

    def test_without_memory_the_stream_ends_and_nothing_is_passed_over(self, monkeypatch: Any) -> None:
        def none(*_arguments: Any) -> Any:
            raise MemoryError

        decoder: MessageDecoder[Any] = MessageDecoder(ToWorker)
        monkeypatch.setattr(cbor, "loads", none)
        with pytest.raises(MemoryError):
            list(decoder.feed(encode(Cancel(id=1))))
        monkeypatch.undo()
        with pytest.raises(MemoryError):
            list(decoder.feed(encode(Cancel(id=2))))


class TestEncode:
    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (1 << 64, "outside"),
            ({1: 2}, "key must be text"),
            (object(), "object"),
            ("\ud800", "UTF-8"),
        ],
    )
    def test_a_value_that_cannot_travel_is_a_local_error(self, value: Any, reason: str) -> None:
        with pytest.raises(LocalError, match=reason) as caught:
            encode(Finished(result=value))
        assert caught.value.name == "frame-not-sendable"
        assert caught.value.details["type"] == "finished"

    @pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"k": inner}])
    def test_a_value_too_deep_to_travel_is_a_local_error(self, wrap: Callable[[Any], Any]) -> None:
        value: Any = 1
        for _ in range(5000):
            value = wrap(value)
        with pytest.raises(LocalError):
            encode(Finished(result=value))


def test_every_message_type_can_be_sent_by_somebody() -> None:
    unions = (
        messages.ClientMessage,
        messages.WorkerMessage,
        messages.ToClient,
        messages.ToWorker,
        messages.LauncherMessage,
        messages.ToLauncher,
    )
    sendable = {struct_type for union in unions for struct_type in message_types(union).values()}
    assert sendable == set(MESSAGE_TYPES)
