"""Assigns descriptors to messages: the bookkeeping of SCM_RIGHTS, without a socket.

Rules:

* descriptors are sent with the first byte of their message's frame, in one sendmsg; a message with more than
  MAX_PER_SENDMSG of them (a limit of Linux) sends the rest with the bytes that follow;
* the receiver keeps them in the order of arrival, and a message takes as many as its ``descriptors`` says;
* between two frames none may be left over; a descriptor without a message is closed, at the latest by
  :meth:`Channel.close`;
* the caller that takes a message owns its descriptors.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.framing import MessageDecoder, Work, encode, type_of
from chronetix.protocol.messages import MAX_FRAME, WireMessage

MAX_PER_SENDMSG: Final = 253
"""The largest number of descriptors in one sendmsg: SCM_MAX_FD of Linux."""

MAX_WAITING: Final = 4096
"""How many descriptors may wait for the end of their message's frame: bounds how many a peer can make this process keep
open."""

ANCILLARY_SIZE: Final = socket.CMSG_SPACE(MAX_PER_SENDMSG * array.array("i").itemsize)
"""The size in bytes of the buffer for a recvmsg's ancillary data that holds all descriptors of one sendmsg."""

M = TypeVar("M", bound=WireMessage)


class Piece(NamedTuple):
    """The bytes and descriptors for one sendmsg call."""

    data: bytes
    descriptors: Sequence[int]


def received(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors in a recvmsg's ancillary data, in their order. The caller owns them, and closes them if
    the call was truncated.

    A payload that was cut within a descriptor ends before it. Ancillary data other than SCM_RIGHTS is ignored.
    """
    found = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    return found.tolist()


def expected(message: WireMessage) -> int:
    """Return how many descriptors are sent with ``message``."""
    return int(getattr(message, "descriptors", 0))


def pieces(message: WireMessage, descriptors: Sequence[int] = (), max_frame: int = MAX_FRAME) -> list[Piece]:
    """Return the pieces of ``message`` for one or more sendmsg calls, in order.

    A sendmsg may send only a part of a piece's bytes; the descriptors are sent with the first of them, so the rest is
    sent without descriptors. Raises LocalError ``descriptors-mismatch`` or ``frame-not-sendable``.
    """
    if len(descriptors) != expected(message):
        raise error(
            "descriptors-mismatch",
            type=type_of(message),
            expected=expected(message),
            count=len(descriptors),
        )
    frame = encode(message, max_frame)
    extra = (len(descriptors) - 1) // MAX_PER_SENDMSG if descriptors else 0
    if extra >= len(frame):
        reason = f"{len(descriptors)} descriptors do not fit on {len(frame)} bytes"
        raise error("frame-not-sendable", type=type_of(message), reason=reason)
    cut = extra * MAX_PER_SENDMSG
    heads = [
        Piece(frame[at : at + 1], descriptors[at * MAX_PER_SENDMSG : (at + 1) * MAX_PER_SENDMSG]) for at in range(extra)
    ]
    return [*heads, Piece(frame[extra:], descriptors[cut:])]


class Channel(Generic[M]):
    """The receiving end of a stream that carries messages and descriptors.

    ``close_descriptor`` closes descriptors that belong to no message (``os.close``; a test may pass its own).
    """

    def __init__(
        self,
        union: Any,
        max_frame: int = MAX_FRAME,
        *,
        close_descriptor: Callable[[int], None] = os.close,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._decoder: MessageDecoder[M] = MessageDecoder(union, max_frame)
        self._waiting: deque[int] = deque()
        self._close_descriptor = close_descriptor
        self.max_waiting = max_waiting
        """Descriptors that may wait for the end of their message's frame."""
        self._broken: ChronetixError | None = None

    @property
    def at_boundary(self) -> bool:
        """Whether no frame has begun that has not ended."""
        return self._decoder.at_boundary

    @property
    def pending(self) -> int:
        """How many bytes of frames have arrived whose messages have not been returned yet."""
        return self._decoder.pending

    @property
    def busy(self) -> bool:
        """Whether there is work to do without further bytes."""
        return self._decoder.busy and self._broken is None

    @property
    def making(self) -> bool:
        """Whether a large frame is partly decoded."""
        return self._decoder.making

    @property
    def cost(self) -> int:
        """The work that the last message took, in the unit of :class:`Work`."""
        return self._decoder.cost

    @property
    def items(self) -> int:
        """How many items the last message had; 0 for a small one."""
        return self._decoder.items

    @property
    def waste(self) -> list[Any]:
        """Objects that were decoded from a refused frame; the caller takes them and frees them in slices."""
        return self._decoder.waste

    def admit(self, admit: Callable[[], bool]) -> None:
        """Set the function that is asked before a large frame is begun; see :class:`MessageDecoder`."""
        self._decoder.admit = admit

    def limit(self, max_frame: int, max_items: int) -> None:
        """Set the largest size in bytes and items of frames from now on."""
        self._decoder.max_frame, self._decoder.max_items = max_frame, max_items

    @property
    def rest(self) -> tuple[bytes, list[int]]:
        """The bytes and descriptors of the incomplete frame, to be fed to a channel in another process. This channel
        keeps them."""
        return self._decoder.rest, list(self._waiting)

    def feed(
        self, data: bytes | bytearray | memoryview, descriptors: Iterable[int] = (), work: Work | None = None
    ) -> Iterator[tuple[M, list[int]]]:
        """Take what one recvmsg has received, and iterate over the messages that are complete now, each with its
        descriptors.

        Bytes and descriptors are taken at once. A caller may leave the iterator, and the next one goes on. The iterator
        raises ProtocolError as :meth:`MessageDecoder.feed` does, and for too few, too many or unexpected descriptors;
        all waiting descriptors are closed then.
        """
        self._waiting.extend(descriptors)
        if self._broken is not None:
            self.close()
        elif len(self._waiting) > self.max_waiting:
            self._break(error("too-many-descriptors", limit=self.max_waiting))
        return self._messages(self._decoder.feed(data, work))

    def end(self) -> None:
        """Handle that the peer has closed the connection: close waiting descriptors. Raises ProtocolError
        ``connection-cut`` if the peer closed within a frame."""
        self.close()
        if self._broken is None:
            self._decoder.end()

    def abandon(self) -> None:
        """Stop reading: close waiting descriptors, and move partly decoded objects to ``waste``. Idempotent."""
        self.close()
        self._decoder.abandon()

    def close(self) -> None:
        """Close every descriptor that waits for its message. Idempotent."""
        while self._waiting:
            self._close_descriptor(self._waiting.popleft())

    def _messages(self, decoded: Iterator[M]) -> Iterator[tuple[M, list[int]]]:
        while True:
            if self._broken is not None:
                raise self._broken
            try:
                message = next(decoded, None)
            except ChronetixError as reason:
                raise self._break(reason) from None
            if message is None:
                break
            yield message, self._take(message)
        if self._waiting and self._decoder.at_boundary:
            raise self._break(error("unexpected-descriptors", count=len(self._waiting)))

    def _take(self, message: M) -> list[int]:
        count = expected(message)
        if count > len(self._waiting):
            raise self._break(
                error("missing-descriptors", type=type_of(message), expected=count, count=len(self._waiting))
            )
        return [self._waiting.popleft() for _ in range(count)]

    def _break(self, reason: ChronetixError) -> ChronetixError:
        self._broken = reason
        self.close()
        return reason
