"""Frames: a u32 big-endian length, then that many bytes of one strict CBOR map whose ``type`` names the message.

Bytes in, messages out; no socket. Rules:

* a length above the cap is refused when its four bytes are there, before anything is allocated for it;
* a reader ignores keys that it does not know, and refuses types that its peer may not send;
* any bytes, in one piece or in many, give the same messages and then at most one ProtocolError, nothing else, unless
  memory runs out: that is a MemoryError, and the end of the stream all the same;
* a decoder that has refused something stays broken: there is no way back into step;
* whoever has others to serve gives a :class:`Work`: when that is used up the decoder stops, also within a frame, and
  goes on the next time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, Generic, TypeVar, get_args

import msgspec

from chronetix.protocol import cbor
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.messages import MAX_FRAME, Item, Message, Result

PREFIX: Final = struct.Struct(">I")
"""The length in front of every frame, itself not counted."""

M = TypeVar("M", bound=Message)
E = TypeVar("E", ChronetixError, MemoryError)

SMALL: Final = 2048
"""Bytes of a frame that is decoded in one go, whatever is in it."""

LARGE: Final = 64 * 1024
"""Bytes of a frame that is not copied once more to be decoded."""

MESSAGE_WORK: Final = 64
"""What a message costs beside its items, as so many of them: its frame, its struct, finding who is to have it."""


class Work:
    """What may still be done before others have their turn, in items of CBOR (some 100 ns each)."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


def encode(message: Message, max_frame: int = MAX_FRAME) -> bytes:
    """``message`` as one frame. Raises LocalError ``frame-not-sendable`` for a value CBOR has no place for, or when
    the frame would be larger than ``max_frame``."""
    try:
        return cbor.frame(_plain(message), max_frame)
    except (cbor.CborError, TypeError, ValueError, RecursionError) as cause:
        raise _not_sendable(message, str(cause)) from cause


class Encoding:
    """An answer that becomes a frame piece by piece."""

    def __init__(self, message: Result | Item, max_frame: int = MAX_FRAME) -> None:
        fields = {"type": type_of(message), "id": message.id, "value": message.value}
        if isinstance(message, Result) and message.value is None:
            del fields["value"]
        self._message = message
        self._encoder = cbor.Encoder(fields, max_frame, _builtins)

    def step(self, work: Work) -> bool:
        """Go on as far as ``work`` lets; True once all is written. Raises as :func:`encode` does."""
        before = self._encoder.spent
        try:
            return self._encoder.step(max(1, work.left))
        except (cbor.CborError, TypeError, ValueError, RecursionError) as cause:
            raise _not_sendable(self._message, str(cause)) from cause
        finally:
            work.left -= self._encoder.spent - before

    def take(self) -> bytes | bytearray:
        """The frame, the caller's alone."""
        return self._encoder.take()


def _builtins(value: Any) -> Any:
    return msgspec.to_builtins(value, builtin_types=_KEPT)


def _plain(message: Message) -> Any:
    """As maps and lists. What is encoded already stays so."""
    value = getattr(message, "value", None)
    if type(value) is not cbor.Encoded:
        return msgspec.to_builtins(message, builtin_types=_KEPT)
    return {**msgspec.to_builtins(msgspec.structs.replace(message, value=None), builtin_types=_KEPT), "value": value}


def _not_sendable(message: Message, reason: str) -> ChronetixError:
    return error("frame-not-sendable", type=type_of(message), reason=reason)


_KEPT: Final = (bytes, bytearray)


def type_of(message: Message | type[Message]) -> str:
    """The tag that the message has on the wire."""
    return str(message.__struct_config__.tag)


@cache
def message_types(union: Any) -> dict[str, type[Message]]:
    """Tag to struct of every member of a union such as ``messages.ToWorker``, or of one message type."""
    return {type_of(member): member for member in get_args(union) or (union,)}


def _always() -> bool:
    """Large frames need not wait."""
    return True


class Decoder(Generic[M]):
    """Turns a byte stream into the messages of one union.

    ``union`` is one of the unions of ``chronetix.protocol.messages``; anything else that arrives is refused.
    ``max_frame`` and ``max_items`` bound each frame and may be changed at any time.
    """

    def __init__(self, union: Any, max_frame: int = MAX_FRAME, max_items: int = cbor.MAX_ITEMS) -> None:
        self._types = message_types(union)
        self.max_frame = max_frame
        self.max_items = max_items
        self.cost = 0
        """What the last message has cost, as :class:`Work`."""
        self.items = 0
        """Items of the last message; 0 for one of at most SMALL bytes."""
        self.admit: Callable[[], bool] = _always
        """Asked before a frame of LARGE bytes or more is begun for some :class:`Work`; it waits while that is False."""
        self.waste: list[Any] = []
        """What was made of frames that were refused, to be taken and freed at leisure (:func:`cbor.dismantle`)."""
        self._buffer = bytearray()
        self._read = 0
        self._body: memoryview = memoryview(b"")
        """Of the frame that is being decoded."""
        self._document: cbor.Decoder | None = None
        self._broken: ChronetixError | MemoryError | None = None

    @property
    def at_boundary(self) -> bool:
        """No frame has begun that has not ended: the peer may close now."""
        return not self.pending

    @property
    def pending(self) -> int:
        """Bytes of frames that were not given yet: of one that has begun, and of what :class:`Work` has left."""
        return len(self._buffer) - self._read + (PREFIX.size + len(self._body) if self._document else 0)

    @property
    def busy(self) -> bool:
        """There is work to do without further bytes."""
        if self._document is not None:
            return True
        there = len(self._buffer) - self._read - PREFIX.size
        if there < 0 or self._broken is not None:
            return False
        size = self._announced()
        return there >= size or size > self.max_frame

    @property
    def making(self) -> bool:
        """A frame of LARGE bytes or more is half made."""
        return self._document is not None and len(self._body) >= LARGE

    @property
    def rest(self) -> bytes:
        """The bytes that are ``pending``: for a decoder that goes on in another process."""
        begun = PREFIX.pack(len(self._body)) + bytes(self._body) if self._document else b""
        return begun + bytes(self._buffer[self._read :])

    def feed(self, data: bytes | bytearray | memoryview, work: Work | None = None) -> Iterator[M]:
        """Take ``data`` and iterate over the messages that are complete now.

        ``data`` is taken at once; messages are decoded as the iterator goes, and what it leaves is there for the next
        one. With ``work`` it ends when that is used up. The iterator raises ProtocolError (``frame-too-large``,
        ``malformed-cbor``, ``malformed-message``) after the messages that came before the offence, and so does every
        later one.
        """
        if self._broken is None:
            try:
                self._buffer += data
            except MemoryError as reason:
                raise self._break(reason) from None
        return self._messages(work)

    def end(self) -> None:
        """The peer has closed. Raises ProtocolError ``connection-cut`` if it did so within a frame."""
        if self._broken is None and not self.at_boundary:
            raise self._break(error("connection-cut", count=self.pending))

    def abandon(self) -> None:
        """Nothing more will be read: what is half made becomes ``waste``. Idempotent."""
        if self._document is not None:
            self.waste += self._document.leavings()
        self._document, self._body = None, memoryview(b"")
        self.admit = _always

    def _messages(self, work: Work | None) -> Iterator[M]:
        while self._broken is None:
            try:
                message = self._next(work)
            except MemoryError as reason:
                raise self._break(reason) from None
            if message is None:
                return
            yield message
        raise self._broken

    def _next(self, work: Work | None) -> M | None:
        """The next message; None when it is not here, or the work is used up."""
        while work is None or work.left > 0:
            if self._document is None:
                size = self._complete()
                if size < 0:
                    break
                if size >= LARGE and work is not None and not self.admit():
                    break
                if size > SMALL:
                    self._open(size)
                    continue
                value = self._small(size)
            elif self._go_on(self._document, work):
                value = self._whole(self._document)
            else:
                continue
            if work is not None:
                work.left -= MESSAGE_WORK
            return self._parse(value)
        self._forget()
        return None

    def _announced(self) -> int:
        return int(PREFIX.unpack_from(self._buffer, self._read)[0])

    def _complete(self) -> int:
        """The size of the next frame, which is here; -1 when it is not. Raises ProtocolError for one too large."""
        there = len(self._buffer) - self._read - PREFIX.size
        if there < 0:
            return -1
        size = self._announced()
        if size > self.max_frame:
            raise self._break(error("frame-too-large", size=size, limit=self.max_frame))
        return size if there >= size else -1

    def _forget(self) -> None:
        """Drop what was read, once for all the frames of a chunk."""
        if self._read:
            del self._buffer[: self._read]
            self._read = 0

    def _small(self, size: int) -> Any:
        start = self._read + PREFIX.size
        self._read = start + size
        self.cost, self.items = MESSAGE_WORK + size // 8, 0
        try:
            return cbor.loads(bytes(memoryview(self._buffer)[start : self._read]), self.max_items)
        except cbor.CborError as reason:
            raise self._break(error("malformed-cbor", reason=str(reason))) from None

    def _open(self, size: int) -> None:
        """Begin with a frame that may take more than one turn. A large one keeps the buffer that it came in."""
        start = self._read + PREFIX.size
        end = start + size
        body: bytes | bytearray
        if size < LARGE:
            body = bytes(memoryview(self._buffer)[start:end])
            self._read, start, end = end, 0, size
        else:
            body, self._buffer, self._read = self._buffer, self._buffer[end:], 0
        self._body = memoryview(body)[start:end]
        self._document = cbor.Decoder(self._body, self.max_items)

    def _go_on(self, document: cbor.Decoder, work: Work | None) -> bool:
        """Decode on; is the frame complete now?"""
        before = document.spent
        try:
            return document.step(_WHOLE if work is None else work.left)
        except cbor.CborError as reason:
            raise self._break(error("malformed-cbor", reason=str(reason))) from None
        finally:
            if work is not None:
                work.left -= document.spent - before

    def _whole(self, document: cbor.Decoder) -> Any:
        self.cost, self.items = MESSAGE_WORK + document.spent, document.items
        self._document, self._body = None, memoryview(b"")
        return document.take()

    def _parse(self, value: Any) -> M:
        tag = value.get("type") if type(value) is dict else None
        struct_type = self._types.get(tag) if type(tag) is str else None
        if struct_type is None:
            raise self._break(self._wrong_type(value, tag), value)
        try:
            return msgspec.convert(value, struct_type)  # type: ignore[return-value]
        except msgspec.ValidationError as reason:
            fault = error("malformed-message", type=tag, reason=_clip(str(reason), 200))
            raise self._break(fault, value) from None

    def _wrong_type(self, value: Any, tag: Any) -> ChronetixError:
        if type(value) is not dict:
            return error("malformed-message", type="unknown", reason="it is not a map")
        if type(tag) is not str:
            return error("malformed-message", type="unknown", reason="its key `type` is missing or is not text")
        known = ", ".join(sorted(self._types))
        return error("malformed-message", type=_clip(tag), reason=f"this side takes only {known}")

    def _break(self, reason: E, made: Any = None) -> E:
        self._broken = reason
        self.waste += self._document.leavings() if self._document is not None else [made]
        self._document, self._body = None, memoryview(b"")
        self._buffer = bytearray()
        self._read = 0
        return reason


_WHOLE: Final = 1 << 62
"""More work than any frame is."""


def _clip(text: str, limit: int = 64) -> str:
    """What a peer wrote, short enough to be quoted."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
