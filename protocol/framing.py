"""Frames: a u32 big-endian length, then that many bytes of one strict CBOR map whose ``type`` names the message.

Bytes in, messages out; no socket. Rules:

* a length above the cap is refused when its four bytes are there, before anything is allocated for it;
* a reader ignores keys that it does not know, and refuses types that its peer may not send;
* any bytes, in one piece or in many, give the same messages and then at most one ProtocolError, nothing else, unless
  memory runs out: that is a MemoryError, and the end of the stream all the same;
* a decoder that has refused a frame stays broken, because it cannot find the beginning of the next frame;
* a caller that serves other connections too gives a :class:`Work`: when it is used up the decoder stops, also within a
  frame, and goes on the next time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, Generic, TypeVar, get_args

import msgspec

from chronetix.protocol import cbor
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.messages import MAX_FRAME, Item, Result, WireMessage

PREFIX: Final = struct.Struct(">I")
"""The length in front of every frame, itself not counted."""

M = TypeVar("M", bound=WireMessage)
E = TypeVar("E", ChronetixError, MemoryError)

SMALL: Final = 2048
"""Largest size in bytes of a frame that is always decoded in one go."""

LARGE: Final = 64 * 1024
"""Smallest size in bytes of a frame that is decoded in the buffer in which it arrived, without a copy."""

MESSAGE_WORK: Final = 64
"""The work that a message takes beside its items, counted in items: its frame, its struct, its dispatch."""


class Work:
    """The work that may still be done in this turn, in items of CBOR (some 100 ns each)."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


def encode(message: WireMessage, max_frame: int = MAX_FRAME) -> bytes:
    """Return ``message`` as one frame. Raises LocalError ``frame-not-sendable`` for a value that CBOR cannot hold, or
    if the frame would be larger than ``max_frame``."""
    try:
        return cbor.frame(_plain(message), max_frame)
    except (cbor.CborError, TypeError, ValueError, RecursionError) as cause:
        raise _not_sendable(message, str(cause)) from cause


class Encoding:
    """Encodes an answer as a frame, in steps."""

    def __init__(self, message: Result | Item, max_frame: int = MAX_FRAME) -> None:
        fields = {"type": type_of(message), "id": message.id, "value": message.value}
        if isinstance(message, Result) and message.value is None:
            del fields["value"]
        self._message = message
        self._encoder = cbor.Encoder(fields, max_frame, _builtins)

    def step(self, work: Work) -> bool:
        """Encode as much as ``work`` permits, and return whether the frame is complete. Raises as :func:`encode`
        does."""
        before = self._encoder.spent
        try:
            return self._encoder.step(max(1, work.left))
        except (cbor.CborError, TypeError, ValueError, RecursionError) as cause:
            raise _not_sendable(self._message, str(cause)) from cause
        finally:
            work.left -= self._encoder.spent - before

    def take(self) -> bytes | bytearray:
        """Return the complete frame, which only the caller holds from now on."""
        return self._encoder.take()


def _builtins(value: Any) -> Any:
    return msgspec.to_builtins(value, builtin_types=_KEPT)


def _plain(message: WireMessage) -> Any:
    """Return the message as maps and lists; a value that is encoded already stays encoded."""
    value = getattr(message, "value", None)
    if type(value) is not cbor.Encoded:
        return msgspec.to_builtins(message, builtin_types=_KEPT)
    return {**msgspec.to_builtins(msgspec.structs.replace(message, value=None), builtin_types=_KEPT), "value": value}


def _not_sendable(message: WireMessage, reason: str) -> ChronetixError:
    return error("frame-not-sendable", type=type_of(message), reason=reason)


_KEPT: Final = (bytes, bytearray)


def type_of(message: WireMessage | type[WireMessage]) -> str:
    """Return the tag that the message has on the wire."""
    return str(message.__struct_config__.tag)


@cache
def message_types(union: Any) -> dict[str, type[WireMessage]]:
    """Return the struct by tag for every member of a union such as ``messages.ToWorker``, or for one message type."""
    return {type_of(member): member for member in get_args(union) or (union,)}


def _always() -> bool:
    """Admit every large frame at once."""
    return True


class MessageDecoder(Generic[M]):
    """Turns a byte stream into the messages of one union.

    ``union`` is one of the unions of ``chronetix.protocol.messages``; anything else that arrives is refused.
    ``max_frame`` and ``max_items`` bound each frame and may be changed at any time.
    """

    def __init__(self, union: Any, max_frame: int = MAX_FRAME, max_items: int = cbor.MAX_ITEMS) -> None:
        self._types = message_types(union)
        self.max_frame = max_frame
        self.max_items = max_items
        self.cost = 0
        """The work that the last message took, in the unit of :class:`Work`."""
        self.items = 0
        """How many items the last message had; 0 for one of at most SMALL bytes."""
        self.admit: Callable[[], bool] = _always
        """Called before a frame of LARGE bytes or more is begun with a :class:`Work`; the frame waits while it returns
        False."""
        self.waste: list[Any] = []
        """Objects that were decoded from refused frames; the caller takes them and frees them in slices
        (:func:`cbor.dismantle`)."""
        self._buffer = bytearray()
        self._read = 0
        self._body: memoryview = memoryview(b"")
        """The content of the frame that is being decoded."""
        self._document: cbor.Decoder | None = None
        self._broken: ChronetixError | MemoryError | None = None

    @property
    def at_boundary(self) -> bool:
        """Whether no frame has begun that has not ended, so that the peer may close."""
        return not self.pending

    @property
    def pending(self) -> int:
        """How many bytes of frames have arrived whose messages have not been returned yet."""
        return len(self._buffer) - self._read + (PREFIX.size + len(self._body) if self._document else 0)

    @property
    def busy(self) -> bool:
        """Whether there is work to do without further bytes."""
        if self._document is not None:
            return True
        there = len(self._buffer) - self._read - PREFIX.size
        if there < 0 or self._broken is not None:
            return False
        size = self._announced()
        return there >= size or size > self.max_frame

    @property
    def making(self) -> bool:
        """Whether a frame of LARGE bytes or more is partly decoded."""
        return self._document is not None and len(self._body) >= LARGE

    @property
    def rest(self) -> bytes:
        """The bytes that are ``pending``, for a decoder in another process that goes on with them."""
        begun = PREFIX.pack(len(self._body)) + bytes(self._body) if self._document else b""
        return begun + bytes(self._buffer[self._read :])

    def feed(self, data: bytes | bytearray | memoryview, work: Work | None = None) -> Iterator[M]:
        """Take ``data`` and iterate over the messages that are complete now.

        ``data`` is taken at once; messages are decoded as the caller iterates, and the next iterator returns those that
        this one did not. With ``work`` the iterator ends when the work is used up. The iterator raises ProtocolError
        (``frame-too-large``, ``malformed-cbor``, ``malformed-message``) after the messages before the wrong frame, and
        so does every later iterator.
        """
        if self._broken is None:
            try:
                self._buffer += data
            except MemoryError as reason:
                raise self._break(reason) from None
        return self._messages(work)

    def end(self) -> None:
        """Handle that the peer has closed the connection. Raises ProtocolError ``connection-cut`` if it closed within a
        frame."""
        if self._broken is None and not self.at_boundary:
            raise self._break(error("connection-cut", count=self.pending))

    def abandon(self) -> None:
        """Stop reading, and move partly decoded objects to ``waste``. Idempotent."""
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
        """Return the next message; None if it has not arrived, or the work is used up."""
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
        """Return the size of the next frame if it has arrived, else -1. Raises ProtocolError for a frame that is too
        large."""
        there = len(self._buffer) - self._read - PREFIX.size
        if there < 0:
            return -1
        size = self._announced()
        if size > self.max_frame:
            raise self._break(error("frame-too-large", size=size, limit=self.max_frame))
        return size if there >= size else -1

    def _forget(self) -> None:
        """Drop the bytes that were decoded, once for all frames of a chunk."""
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
        """Begin a frame that may take more than one turn. A large one is decoded in the buffer in which it arrived."""
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
        """Go on decoding a frame, and return whether it is complete."""
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
"""More work than any frame takes."""


def _clip(text: str, limit: int = 64) -> str:
    """Return a peer's text, cut to ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
