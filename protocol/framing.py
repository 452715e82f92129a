"""Frames: a u32 big-endian length, then that many bytes of one strict CBOR map whose ``type`` names the message.

Bytes in, messages out; no socket. Rules:

* a length above the cap is refused when its four bytes are there, before anything is allocated for it;
* a reader ignores keys that it does not know, and refuses types that its peer may not send;
* any bytes, in one piece or in many, give the same messages and then at most one ProtocolError, nothing else;
* a decoder that has refused something stays broken: there is no way back into step.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, Generic, TypeVar, get_args

import msgspec

from protocol import cbor
from protocol.errors import ChronetixError, error
from protocol.messages import MAX_FRAME, Message

PREFIX: Final = struct.Struct(">I")
"""The length in front of every frame, itself not counted."""

M = TypeVar("M", bound=Message)


def encode(message: Message, max_frame: int = MAX_FRAME) -> bytes:
    """``message`` as one frame. Raises LocalError ``frame-not-sendable`` for a value CBOR has no place for, or when
    the frame would be larger than ``max_frame``."""
    try:
        body = cbor.dumps(_plain(message))
    except (cbor.CborError, TypeError, ValueError, RecursionError) as cause:
        raise _not_sendable(message, str(cause)) from cause
    if len(body) > max_frame:
        raise _not_sendable(message, f"it has {len(body)} bytes, at most {max_frame} fit")
    return PREFIX.pack(len(body)) + body


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


class Decoder(Generic[M]):
    """Turns a byte stream into the messages of one union.

    ``union`` is one of the unions of ``protocol.messages``; anything else that arrives is refused.
    """

    def __init__(self, union: Any, max_frame: int = MAX_FRAME) -> None:
        self._types = message_types(union)
        self._max_frame = max_frame
        self._buffer = bytearray()
        self._read = 0
        self._broken: ChronetixError | None = None

    @property
    def at_boundary(self) -> bool:
        """No frame has begun that has not ended: the peer may close now."""
        return len(self._buffer) == self._read

    @property
    def pending(self) -> int:
        """Bytes of the frame that has begun."""
        return len(self._buffer) - self._read

    @property
    def rest(self) -> bytes:
        """The bytes of the frame that has begun: for a decoder that goes on in another process."""
        return bytes(self._buffer[self._read :])

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[M]:
        """Take ``data`` and iterate over the messages that are complete now.

        ``data`` is taken at once; messages are decoded as the iterator goes, and what it leaves is there for the next
        one. The iterator raises ProtocolError (``frame-too-large``, ``malformed-cbor``, ``malformed-message``) after
        the messages that came before the offence, and so does every later one.
        """
        if self._broken is None:
            self._buffer += data
        return self._messages()

    def end(self) -> None:
        """The peer has closed. Raises ProtocolError ``connection-cut`` if it did so within a frame."""
        if self._broken is None and not self.at_boundary:
            raise self._break(error("connection-cut", count=self.pending))

    def _messages(self) -> Iterator[M]:
        buffer = self._buffer
        while self._broken is None:
            start = self._read + PREFIX.size
            if len(buffer) < start:
                return self._forget()
            size: int = PREFIX.unpack_from(buffer, self._read)[0]
            if size > self._max_frame:
                raise self._break(error("frame-too-large", size=size, limit=self._max_frame))
            if len(buffer) < start + size:
                return self._forget()
            self._read = start + size
            yield self._parse(bytes(memoryview(buffer)[start : self._read]))
        raise self._broken

    def _forget(self) -> None:
        """Drop what was read, once for all the frames of a chunk."""
        if self._read:
            del self._buffer[: self._read]
            self._read = 0

    def _parse(self, body: bytes) -> M:
        try:
            value = cbor.loads(body)
        except cbor.CborError as reason:
            raise self._break(error("malformed-cbor", reason=str(reason))) from None
        tag = value.get("type") if type(value) is dict else None
        struct_type = self._types.get(tag) if type(tag) is str else None
        if struct_type is None:
            raise self._break(self._wrong_type(value, tag))
        try:
            return msgspec.convert(value, struct_type)  # type: ignore[return-value]
        except msgspec.ValidationError as reason:
            raise self._break(error("malformed-message", type=tag, reason=_clip(str(reason), 200))) from None

    def _wrong_type(self, value: Any, tag: Any) -> ChronetixError:
        if type(value) is not dict:
            return error("malformed-message", type="unknown", reason="it is not a map")
        if type(tag) is not str:
            return error("malformed-message", type="unknown", reason="its key `type` is missing or is not text")
        known = ", ".join(sorted(self._types))
        return error("malformed-message", type=_clip(tag), reason=f"this side takes only {known}")

    def _break(self, reason: ChronetixError) -> ChronetixError:
        self._broken = reason
        self._buffer.clear()
        self._read = 0
        return reason


def _clip(text: str, limit: int = 64) -> str:
    """What a peer wrote, short enough to be quoted."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
