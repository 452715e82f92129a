"""The worker's control socket: framed messages with descriptors, both ways, over one connected stream socket.

Rules: any thread may send, a message is written whole before the next begins; one thread at a time receives. Sending
blocks when the daemon is slow to read, which is the back pressure of the control plane. A closed peer is ``EOFError``.

A link that ``survives`` may lose its socket and get another one: meanwhile messages are kept, up to MAX_KEPT bytes, and
what found no room is counted. Not kept is what tells of a state (TOLD_ANEW): whoever comes back tells the next daemon
how everything stands, and from :meth:`renew` on what changes after that.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import termios
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from struct import unpack
from typing import Any, Generic, TypeVar

from chronetix.protocol.descriptors import ANCILLARY_SIZE, Channel, Piece, pieces, received
from chronetix.protocol.errors import error
from chronetix.protocol.messages import (
    Drained,
    Finished,
    Linked,
    Offer,
    Pong,
    Segment,
    SegmentDropped,
    SegmentMapped,
    Started,
    Subscribe,
    Unsubscribe,
    WireMessage,
)
from chronetix.protocol.trust import listener

M = TypeVar("M", bound=WireMessage)

CHUNK = 64 * 1024
"""Bytes asked from the kernel at once."""

MAX_KEPT = 4 * 1024 * 1024
"""Bytes that wait for a daemon that is away; beyond them messages are dropped, and counted."""

TOLD_ANEW = (
    Started,
    Finished,
    Linked,
    Drained,
    Offer,
    Segment,
    SegmentMapped,
    SegmentDropped,
    Subscribe,
    Unsubscribe,
    Pong,
)
"""What the next daemon learns from how things stand."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A message that waits; its descriptors are ours."""

    parts: Sequence[Piece]
    state: bool

    @property
    def size(self) -> int:
        return sum(len(part.data) for part in self.parts)

    def close(self) -> None:
        for part in self.parts:
            for fd in part.descriptors:
                os.close(fd)


class ControlLink(Generic[M]):
    """One end of a control connection that receives the messages of ``union``."""

    def __init__(self, sock: socket.socket, union: Any) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._union = union
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._channel: Channel[M] = Channel(union)
        self.survives = False
        self._away = False
        self._renewed = False
        self._kept: deque[_Kept] = deque()
        self._kept_bytes = 0
        self.dropped = 0
        """Messages that found no room while the daemon was away."""
        self._ready: deque[tuple[M, list[int]]] = deque()
        self._stop = -1
        """An eventfd that ends every :meth:`receive`."""

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    @property
    def peer_user(self) -> int:
        """The user at the other end when the socket was made, or listened on. Raises OSError."""
        return listener(self._sock)

    @property
    def buffered(self) -> bool:
        """The next :meth:`receive` will not wait."""
        return bool(self._ready)

    def send(self, message: WireMessage, descriptors: Sequence[int] = ()) -> None:
        """Write ``message``; the descriptors stay the caller's. Raises LocalError for a message that cannot be encoded,
        OSError (BrokenPipeError, ConnectionResetError) when the peer is gone, and RuntimeError in a forked child: what
        it writes would stand in the middle of what its parent says."""
        if os.getpid() != self._owner:
            raise RuntimeError(
                "the connection to the daemon belongs to the process that was started as the node: let it speak"
            )
        parts = pieces(message, descriptors)
        with self._lock:
            if self._away:
                self._keep(message, parts)
                return
            try:
                self._write(parts)
            except OSError:
                if not self.survives:
                    raise
                self._away = True
                self._keep(message, parts)

    def _write(self, parts: Sequence[Piece]) -> None:
        for data, carried in parts:
            sent = socket.send_fds(self._sock, [data], list(carried)) if carried else self._sock.send(data)
            if sent < len(data):
                self._sock.sendall(memoryview(data)[sent:])

    def wait(self, timeout_s: float) -> bool:
        """Sleep until there is something to receive, or an end; False when the time is up."""
        if self._ready:
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if self._stop >= 0:
            poll.register(self._stop, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def receive(self) -> tuple[M, list[int]]:
        """The next message and its descriptors, which are the caller's now. Raises EOFError when the peer has closed
        (ProtocolError ``connection-cut`` within a frame), ProtocolError for what it must not send."""
        while not self._ready:
            data, carried = self._read()
            if not data:
                self._channel.end()
                raise EOFError("the daemon closed the control connection")
            self._ready.extend(self._channel.feed(data, carried))
        return self._ready.popleft()

    def _read(self) -> tuple[bytes, list[int]]:
        if self._stop >= 0 and not self._await_data():
            return b"", []
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(CHUNK, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return b"", []
        carried = received(ancillary)
        if flags & socket.MSG_CTRUNC:
            for descriptor in carried:
                os.close(descriptor)
            raise error("missing-descriptors", type="any", expected="more", count=len(carried))
        return data, carried

    def _await_data(self) -> bool:
        """False when nothing is to be received any more. Raises TimeoutError as the socket does."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        timeout_s = self._sock.gettimeout()
        there = poll.poll(None if timeout_s is None else timeout_s * 1000)
        if not there:
            raise TimeoutError("timed out")
        return all(fd != self._stop for fd, _ in there)

    @property
    def delivered(self) -> bool:
        """The daemon lives and has read all that was sent. Raises OSError."""
        with self._lock:
            if self._away:
                return False
            poll = select.poll()
            poll.register(self._sock, select.POLLRDHUP)
            (unread,) = unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)))
            return not unread and not poll.poll(0)  # in this order: a peer that dies throws away what it has not read

    # -- a daemon that is away -----------------------------------------------------------------------------

    @property
    def away(self) -> bool:
        """There is no daemon at the other end now."""
        return self._away

    def detach(self) -> None:
        """The daemon is gone: keep what is sent from now on. Half a message that came from it is forgotten."""
        with self._lock:
            self._away = True
            self._forget()
            self._drop_states()
            self._renewed = False

    def renew(self) -> None:
        """The next daemon is about to be told how everything stands: from now on what changes is kept too."""
        with self._lock:
            self._drop_states()
            self._renewed = True

    def attach(self, sock: socket.socket) -> None:
        """Go on over ``sock``: :meth:`receive` reads from it, :meth:`send_first` writes; what others send is kept until
        :meth:`resume`."""
        with self._lock:
            self._forget()
            self._sock = sock
            self._channel = Channel(self._union)

    def send_first(self, message: WireMessage, descriptors: Sequence[int] = ()) -> None:
        """Send before everything that is kept. Raises as :meth:`send`."""
        with self._lock:
            self._write(pieces(message, descriptors))

    def resume(self) -> None:
        """The new daemon has accepted: send what was kept, then as ever. A daemon that dies at once is noticed by
        whoever receives."""
        with self._lock:
            self._sock.settimeout(None)
            try:
                while self._kept:
                    self._write(self._kept[0].parts)
                    self._drop(self._kept.popleft())
            except OSError:
                return
            self._away = self._renewed = False

    def _keep(self, message: WireMessage, parts: Sequence[Piece]) -> None:
        state = isinstance(message, TOLD_ANEW)
        if state and not self._renewed:
            return
        if any(part.descriptors for part in parts):
            parts = [Piece(part.data, [os.dup(fd) for fd in part.descriptors]) for part in parts]
        kept = _Kept(parts, state)
        if self._kept_bytes + kept.size > MAX_KEPT:
            self.dropped += 1
            kept.close()
            return
        self._kept.append(kept)
        self._kept_bytes += kept.size

    def _drop_states(self) -> None:
        for kept in [each for each in self._kept if each.state]:
            self._kept.remove(kept)
            self._drop(kept)

    def _drop(self, kept: _Kept) -> None:
        self._kept_bytes -= kept.size
        kept.close()

    def _forget(self) -> None:
        while self._ready:
            for descriptor in self._ready.popleft()[1]:
                os.close(descriptor)
        self._channel.close()
        self._sock.close()

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took. Idempotent."""
        self._forget()
        while self._kept:
            self._drop(self._kept.popleft())
        stop, self._stop = self._stop, -1
        if stop >= 0:
            os.close(stop)

    def cut(self) -> None:
        """End the connection: whoever receives gets EOFError, and the daemon too. From any thread."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def make_stoppable(self) -> None:
        """From now on :meth:`stop_receiving` may be called. Raises OSError."""
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def stop_receiving(self) -> None:
        """Whoever receives, or will, gets EOFError; what is sent still goes out. Idempotent. Nothing in a forked child,
        whose parent has it too."""
        if os.getpid() == self._owner:
            os.eventfd_write(self._stop, 1)
