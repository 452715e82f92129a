"""The daemon's end of the control socket: what is sent, in the encoding that a check asks for, and what has come."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from chronetix.protocol import cbor
from chronetix.protocol.descriptors import ANCILLARY_SIZE, MAX_PER_SENDMSG, Channel, received
from chronetix.protocol.errors import error
from chronetix.protocol.framing import encode
from chronetix.protocol.messages import WireMessage, WorkerMessage

CHUNK: Final = 1 << 16

Reshape = Callable[[dict[str, Any]], dict[str, Any]]
"""Changes a message before it is encoded."""


class PlayedDaemon:
    """One control connection to the program."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        sock.settimeout(timeout_s)
        self._sock = sock
        self._channel: Channel[Any] = Channel(WorkerMessage)
        self.reshape: Reshape | None = None
        self.encode: Callable[[dict[str, Any]], bytes] = cbor.dumps
        """How a map becomes bytes, if messages are reshaped."""
        self.piece: int = 0
        """Bytes of each write; 0: each message in one."""
        self.closed = False
        """The program has closed its end."""

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def send(self, *messages: WireMessage, descriptors: Sequence[int] = ()) -> None:
        """Send messages in one write; the descriptors go with the first. Raises OSError."""
        self.write(b"".join(map(self._frame, messages)), descriptors)

    def _frame(self, message: WireMessage) -> bytes:
        whole = encode(message)
        if self.reshape is None and self.encode is cbor.dumps:
            return whole
        fields = cbor.loads(whole[4:])
        body = self.encode(self.reshape(fields) if self.reshape is not None else fields)
        return struct.pack(">I", len(body)) + body

    def write(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send bytes, whatever they are. Raises OSError."""
        view, size = memoryview(data), self.piece or len(data)
        carried = list(descriptors)
        while view:
            now, carried = carried[:MAX_PER_SENDMSG], carried[MAX_PER_SENDMSG:]
            part = view[: 1 if carried else size]
            sent = socket.send_fds(self._sock, [part], now) if now else self._sock.send(part)
            view = view[sent:]

    def receive(self) -> list[tuple[WireMessage, list[int]]]:
        """Return the messages that are there, with their descriptors, which are the caller's. Raises ChronetixError for
        bytes that break the protocol."""
        found: list[tuple[WireMessage, list[int]]] = []
        while not self.closed and select.select([self._sock], [], [], 0)[0]:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(CHUNK, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                data, ancillary, flags = b"", [], 0
            carried = received(ancillary)
            if flags & socket.MSG_CTRUNC:
                for descriptor in carried:
                    os.close(descriptor)
                raise error("missing-descriptors", type="any", expected="more", count=len(carried))
            if not data:
                self.closed = True
                self._channel.end()
                break
            found += self._channel.feed(data, carried)
        return found

    def hang_up(self) -> None:
        """End the connection in both directions, as the daemon's death does."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self.closed = True

    def close(self) -> None:
        """Close the connection, and every descriptor that came without its message. Idempotent."""
        self._channel.close()
        self._sock.close()


def wide(value: Any) -> bytes:
    """Return a value in CBOR whose every length and integer is as long as it may be: right, and nobody's habit."""

    def head(major: int, argument: int) -> bytes:
        return bytes([major << 5 | 27]) + struct.pack(">Q", argument)

    match value:
        case bool() | None:
            return cbor.dumps(value)
        case int():
            return head(0, value) if value >= 0 else head(1, -1 - value)
        case float():
            return b"\xfb" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return head(3, len(text)) + text
        case bytes():
            return head(2, len(value)) + value
        case list():
            return head(4, len(value)) + b"".join(map(wide, value))
        case dict():
            return head(5, len(value)) + b"".join(wide(key) + wide(each) for key, each in value.items())
    raise TypeError(f"{type(value).__name__} is no value of a message")
