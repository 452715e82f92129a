"""One Unix stream socket that carries messages and descriptors, and never waits.

Rules:

* Messages to be sent are queued and flushed once in a turn of the loop, so that messages of one turn share system
  calls. Received messages go to ``on_message`` in their order.
* A fault of the peer, or of a handler, ends this connection only. Descriptors that a handler leaves in its list are
  closed.
* A peer that cannot be written to is still read to its end, because its last messages matter.
* A stranger's descriptors are not received here but by an inspector. A stranger's socket is closed where nothing waits
  for what its unread bytes bring.

Receiving and sending are one class, because each depends on the other: a peer that reads no answers is not read from,
and a peer that cannot be written to is still read.
"""

from __future__ import annotations

import array
import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from chronetix.protocol.descriptors import ANCILLARY_SIZE, Channel, pieces, received
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.framing import Work
from chronetix.protocol.messages import MAX_FRAME, WireMessage
from chronetixd.linux.exhaustion import exhausted, no_room, wanting
from chronetixd.linux.pipes import waiting
from chronetixd.loop import shares
from chronetixd.loop.closing import close, close_all, close_own, close_socket
from chronetixd.loop.inspection import Inspection, Taken, pass_rights
from chronetixd.loop.shares import ShareOwner
from chronetixd.packing import Bag, Packed, Unbag

READ_SIZE = 64 * 1024
"""How many bytes one read takes: bounds one connection's share of a turn of the loop, and is small enough for malloc to
reuse the buffer."""

GATHER = 256 * 1024
"""How many bytes are joined for one send."""

MAX_UNREAD = 4 * 1024 * 1024
"""How many bytes may wait for a peer before nothing more is read from it: it must read its answers before it makes
further requests."""

MAX_UNSENT = 256
"""How many descriptors may wait for a client to read: the daemon keeps no more for a client that reads none."""

SENT_ALONG = "what a peer has sent along"

_seen = bytearray(READ_SIZE)
"""Receives bytes that MSG_PEEK has shown before."""

OnMessage = Callable[[WireMessage, list[int]], None]
OnEnd = Callable[[ChronetixError | None], None]


class PackedConnection(Packed, frozen=True):
    """A control socket: what was read of an incomplete frame, with its descriptors, and what is still to be sent, with
    its descriptors."""

    fd: int
    reading: bool
    unwritable: bool = False
    unread: bytes = b""
    arrived: list[int] = []
    unsent: list[tuple[bytes, list[int]]] = []


class Connection:
    """Owns ``sock``. ``on_end`` is called once, with the fault of the peer or of a handler, or None; it is not called
    if this side closes first."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        union: Any,
        *,
        on_message: OnMessage,
        on_end: OnEnd,
        max_frame: int = MAX_FRAME,
        frame_s: float | None = None,
        inspection: Inspection | None = None,
        owner: int = -1,
        who: ShareOwner = shares.DAEMON,
    ) -> None:
        """With ``inspection`` the peer is a stranger: the inspector of ``owner`` receives and closes its
        descriptors."""
        sock.setblocking(False)
        self._loop = loop
        self._shares = shares.of(loop)
        self._who = who
        self._in_line = self._listening = False
        self._sock = sock
        self._fd = sock.fileno()
        self._channel: Channel[WireMessage] = Channel(union, max_frame, close_descriptor=close)
        self._channel.admit(partial(self._shares.begin, who, self))
        self._on_message = on_message
        self._on_end = on_end
        self._out: deque[tuple[bytes | bytearray | memoryview, Sequence[int], bool]] = deque()
        self._flushing = False
        self._writing = False
        self._reading = False
        self._paused = False
        self._received = 0
        self._inspection = inspection
        self._owner = owner
        self._taking = False
        """Whether an inspector is receiving; nothing else is read until it has answered."""
        self._frame_s = frame_s
        """How many seconds a peer has to complete a frame; None for no limit."""
        self._frame_timer: asyncio.TimerHandle | None = None
        self._delivered = 0
        self._unwritable = False
        self._closing = False
        self._output_ends = False
        self.backlog = 0
        """How many bytes wait to be sent."""
        self._unsent = 0
        """How many descriptors wait to be sent."""
        self.account: Callable[[int], None] | None = None
        """Called with the change of ``backlog``."""
        self.on_closed: Callable[[], None] | None = None
        """Called once when the socket is closed, by whichever side."""
        self.on_partial: Callable[[int], None] | None = None
        """Called after a read, only with ``frame_s``, with the number of bytes of the incomplete frame. It may raise
        ChronetixError to end the connection."""
        self.on_flushed: Callable[[], None] | None = None
        """Called when everything is sent."""

    @property
    def closed(self) -> bool:
        """Whether nothing is received or sent any more."""
        return self._fd < 0

    def packed(self, bag: Bag) -> PackedConnection:
        """Return all of the state; descriptors go into ``bag``."""
        unread, arrived = self._channel.rest
        return PackedConnection(
            fd=bag.put(self._fd),
            reading=self._reading,
            unwritable=self._unwritable,
            unread=unread,
            arrived=[bag.put(fd) for fd in arrived],
            unsent=[(bytes(data), [bag.put(fd) for fd in fds]) for data, fds, _ in self._out],
        )

    def unpack(self, packed: PackedConnection, bag: Unbag) -> None:
        """Continue as ``packed`` says. This object owns the socket already, and nothing was done with it. Raises
        OSError, ValueError."""
        self._unwritable = packed.unwritable
        self._channel.feed(packed.unread, [bag.take(fd) for fd in packed.arrived])
        for data, fds in packed.unsent:
            self._out.append((data, tuple(bag.take(fd) for fd in fds), True))
            self._waits(len(data))
            self._unsent += len(fds)
        if packed.reading:
            self.start()
            self._pause_if_unread()
        if self._out:
            self._flushing = True
            self._loop.call_soon(self._flush_soon)

    def start(self) -> None:
        """Begin to read. Until then, bytes stay in the socket."""
        self._reading = True
        self._settle()

    def send(self, message: WireMessage, descriptors: Sequence[int] = (), *, give: bool = False) -> None:
        """Queue ``message``. Never waits. With ``give`` the connection closes the descriptors once they are sent.

        Does nothing after the end of the connection, because the caller may not know of it yet. Raises LocalError for a
        message that cannot be encoded.
        """
        if self.closed or self._unwritable or self._closing:
            if give:
                close_own(descriptors)
            return
        for data, fds in pieces(message, descriptors):
            self._out.append((data, tuple(fds), give))
            self._waits(len(data))
            self._unsent += len(fds)
        if self._unsent > MAX_UNSENT and self._inspection is not None:
            self._forget_output()
            self._loop.call_soon(
                self._end, error("slow-reader", bytes=f"{MAX_UNSENT} descriptors with their", peer="this client")
            )
            return
        self._queued()

    def send_frame(self, frame: bytes | bytearray) -> None:
        """Queue an encoded frame, which must not change any more."""
        if self.closed or self._unwritable or self._closing:
            return
        self._out.append((frame, (), False))
        self._waits(len(frame))
        self._queued()

    def limit(self, max_frame: int, max_items: int) -> None:
        """Limit the size and the items of the peer's frames from now on."""
        self._channel.limit(max_frame, max_items)

    @property
    def cost(self) -> int:
        """How many items the work on the last message was worth."""
        return self._channel.cost

    @property
    def items(self) -> int:
        """How many items the last message has; 0 for a small one."""
        return self._channel.items

    def _waits(self, more: int) -> None:
        self.backlog += more
        if self.account is not None:
            self.account(more)

    def _queued(self) -> None:
        self._pause_if_unread()
        if not self._flushing and not self._writing:
            self._flushing = True
            self._loop.call_soon(self._flush_soon)

    def _pause_if_unread(self) -> None:
        if self._reading and not self._paused and self.backlog > MAX_UNREAD:
            self._paused = True
            self._settle()

    def drain_input(self) -> None:
        """Deliver everything that has arrived. Call it when the peer is known to be dead; a process that has inherited
        its socket may go on sending, which is not waited for."""
        enough = self._received + waiting(self._fd) if self._fd >= 0 else 0
        going = self._fd >= 0 and self._reading and not self._taking and self._take(None, [], None)
        while going and self._fd >= 0 and self._reading and not self._taking and self._received <= enough:
            going = self._look_in(None)

    def _look(self) -> None:
        """Read what has arrived, as far as this turn of the loop has work left."""
        enough = self._received + waiting(self._fd)
        while self._listening and self._received <= enough and self._look_in(self._shares.at_once()):
            self._settle()
        self._settle()

    def hand_over(self) -> socket.socket:
        """Return the socket, which the caller owns then. Nothing may wait to be sent."""
        assert not self._out
        self._stop_reading()
        self._channel.abandon()
        self._fd = -1
        if self.on_closed is not None:
            self.on_closed()
        return self._sock

    def pass_rights(self, most: int) -> None:
        """From now on the peer may send descriptors, at most ``most`` with one message."""
        self._channel.max_waiting = most
        pass_rights(self._sock, True)

    def end_output(self) -> None:
        """Send everything that is queued, then tell the peer that nothing more will come. Go on receiving."""
        self._output_ends = True
        if not self._out:
            self._shut_output()

    def _shut_output(self) -> None:
        self._unwritable = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close_after_flush(self) -> None:
        """Receive nothing more, send everything that is queued, then close. ``on_end`` is not called."""
        if self.closed:
            return
        self._closing = True
        self._stop_reading()
        if not self._out:
            self.close()

    def close(self) -> None:
        """Close now. ``on_end`` is not called. Idempotent."""
        if self.closed:
            return
        self._stop_reading()
        self._forget_output()
        self._channel.abandon()
        self._shares.discard(self._channel.waste)
        self._fd = -1
        if self._inspection is None:
            close_socket(self._sock)
        else:
            self._inspection.close(self._owner, self._sock)
        if self.on_closed is not None:
            self.on_closed()

    # -- in ------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        """Read once, and deliver complete messages as far as this turn of the loop has work left."""
        self._look_in(self._shares.at_once())
        self._settle()

    def _look_in(self, work: Work | None) -> bool:
        """Read once. Returns False if nothing (more) is there."""
        try:
            data, ancillary, flags = self._read()
        except (BlockingIOError, InterruptedError):
            return False
        except (OSError, MemoryError):
            data, ancillary, flags = b"", [], 0
        if flags & socket.MSG_CTRUNC and self._inspection is not None:
            self._take_in(self._inspection, data)
            return False
        return self._arrived(data, received(ancillary), work, truncated=bool(flags & socket.MSG_CTRUNC))

    def _read(self) -> tuple[bytes, Sequence[tuple[int, int, bytes]], int]:
        """Return what has arrived. A stranger's bytes are looked at first, and stay in the socket if descriptors come
        with them, which MSG_CTRUNC shows."""
        if self._inspection is None:
            return self._sock.recvmsg(READ_SIZE, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)[:3]
        data, _, flags, _ = self._sock.recvmsg(READ_SIZE, 0, socket.MSG_PEEK)
        if data and not flags & socket.MSG_CTRUNC:
            self._sock.recv_into(_seen, len(data))
        return data, [], flags

    def _take_in(self, inspection: Inspection, data: bytes) -> None:
        self._taking = True
        self._settle()
        inspection.take_in(self._owner, self._sock, len(data), partial(self._taken, data))

    def _taken(self, data: bytes, descriptors: Taken) -> None:
        """``data`` was received, with ``descriptors``; they are None if they were refused."""
        self._taking = False
        if isinstance(descriptors, ChronetixError):
            self._end(descriptors)
        elif not self._reading:
            close_all(descriptors or ())
        elif descriptors is None:
            self._end(self._refused(data))
        else:
            self._arrived(data, descriptors, self._shares.at_once())
            self._settle()

    def _refused(self, data: bytes) -> ChronetixError:
        """Return the error for a peer that has sent descriptors, along with ``data``, that it must not send."""
        try:
            for _ in self._channel.feed(data):
                pass
        except ChronetixError as reason:
            if reason.name != "missing-descriptors":
                return reason
            text = "it is neither shared memory nor a pipe"
            return error("descriptor-refused", what="what was sent along", reason=text)
        return error("unexpected-descriptors", count="some")

    def _arrived(self, data: bytes, descriptors: list[int], work: Work | None, *, truncated: bool = False) -> bool:
        """Deliver what is complete now; empty ``data`` is the end. Returns False if nothing (more) is to be read."""
        self._received += len(data)
        return self._take(data, descriptors, work, truncated=truncated)

    def _take(self, data: bytes | None, descriptors: list[int], work: Work | None, *, truncated: bool = False) -> bool:
        """Deliver what ``data`` completes: b"" is the end, None means no new bytes. Returns False at the end. A fault
        in what the peer has sent ends the connection and affects nothing else. ``truncated``: descriptors came for
        which this process had no room, so that their message cannot be handled."""
        fault: ChronetixError | None = None
        try:
            if not self._feed(data or b"", descriptors, None if data == b"" else work):
                return False
            if truncated:
                raise no_room(SENT_ALONG)
            if data != b"":
                if self._frame_s is not None:
                    self._watch_frame()
                return True
            self._channel.end()
        except ChronetixError as reason:
            fault = no_room(SENT_ALONG) if truncated and reason.name == "missing-descriptors" else reason
        except (MemoryError, SystemError):  # CPython raises the latter where it has no memory for a traceback
            fault = error("internal", what="reading what was sent", reason="there is no memory for it")
        self._shares.discard(self._channel.waste)
        self._end(fault)
        return False

    def _feed(self, data: bytes, descriptors: list[int], work: Work | None) -> bool:
        """Returns False if nothing more is to be read. Raises the fault of the peer. Handling a message counts as work
        too: messages that a thousand workers send at once are handled in many turns of the loop."""
        begun = time.thread_time_ns()
        for message, owned in self._channel.feed(data, descriptors, work):
            self._deliver(message, owned)
            if work is not None:
                now = time.thread_time_ns()
                work.left -= (now - begun) // shares.ITEM_NS
                begun = now
            if not self._reading:
                return False
            if self._channel.cost > shares.WORTH:
                self._shares.discard(documents(message))
            if self._paused and work is not None:
                break
        return True

    def _resume(self, work: Work) -> bool:
        """Work on queued input. A peer that reads no answers leaves the queue, and joins it again when it has read
        them."""
        going = self._reading and not self._paused and not self._taking and self._take(None, [], work)
        if going and self._channel.busy and not self._paused:
            if not self._channel.making:
                self._shares.end(self._who, self)
            return True
        self._in_line = False
        self._settle()
        return False

    def _settle(self) -> None:
        """Either listen to the socket, or queue because there is more input than fits one turn, or neither: then
        nothing is read, and the peer's bytes stay in its socket."""
        ready = self._reading and not self._paused and not self._taking
        busy = ready and self._channel.busy
        if not (busy and self._channel.making):
            self._shares.end(self._who, self)
        listen = ready and not busy
        if listen != self._listening:
            self._listening = listen
            if listen:
                self._loop.add_reader(self._fd, self._readable)
            else:
                self._loop.remove_reader(self._fd)
        if busy and not self._in_line:
            self._in_line = True
            self._shares.join(self._who, self._resume)

    def _watch_frame(self) -> None:
        """Watch the time of an incomplete frame."""
        if self.on_partial is not None:
            self.on_partial(self._channel.pending)
        if self._frame_timer is None and self._reading and not self._channel.at_boundary:
            self._frame_timer = self._loop.call_later(self._frame_s or 0, self._frame_late, self._delivered)

    def _frame_late(self, delivered: int) -> None:
        """The time is over for the frame that was incomplete when ``delivered`` messages had come. Bytes that have
        arrived meanwhile are read first, because the daemon itself may have been stopped. While the daemon does not
        listen, the peer cannot send."""
        self._frame_timer = None
        if not self._listening:
            delivered = -1
        else:
            self._look()
        if self._reading and not self._channel.at_boundary:
            if delivered == self._delivered and self._listening:
                self._end(error("frame-timeout", seconds=self._frame_s, count=self._channel.pending))
            else:
                self._watch_frame()

    def _deliver(self, message: WireMessage, owned: list[int]) -> None:
        self._delivered += 1
        try:
            self._on_message(message, owned)
        except ChronetixError:
            raise
        except MemoryError:
            raise
        except OSError as reason:
            if not wanting(reason):
                raise self._defect(message, reason) from reason
            raise exhausted(reason, f"handling {type(message).__name__}") from reason
        except Exception as reason:
            raise self._defect(message, reason) from reason
        finally:
            close_all(owned)

    @staticmethod
    def _defect(message: WireMessage, reason: Exception) -> ChronetixError:
        structlog.get_logger("chronetixd").exception("a message could not be handled", type=type(message).__name__)
        return error("internal", what=f"handling {type(message).__name__}", reason=repr(reason))

    def _end(self, fault: ChronetixError | None) -> None:
        if self._reading:
            self._stop_reading()
            self._on_end(fault)

    def _listen_again(self) -> None:
        """Listen again after a pause, once enough of the output is sent."""
        if self._paused and self.backlog <= MAX_UNREAD // 2:
            self._paused = False
            self._settle()

    def _stop_reading(self) -> None:
        if self._frame_timer is not None:
            self._frame_timer.cancel()
            self._frame_timer = None
        if self._reading:
            self._reading = False
            self._settle()

    # -- out -----------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                self._send_some()
                self._listen_again()
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._flush)
            return
        except (OSError, MemoryError):
            self._unwritable = True
            self._forget_output()
            self._listen_again()
        self._stop_writing()
        if self.on_flushed is not None:
            self.on_flushed()
        if self._closing and not self.closed:
            self.close()
        elif self._output_ends and not self.closed:
            self._shut_output()

    def _send_some(self) -> None:
        data, descriptors, give = self._out[0]
        if descriptors:
            sent = self._sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
            if give:
                close_own(descriptors)
            self._unsent -= len(descriptors)
            self._out[0] = (data, (), False)
        else:
            sent = self._sock.sendmsg(self._gathered())
        self._sent(sent)

    def _gathered(self) -> list[bytes | bytearray | memoryview]:
        parts: list[bytes | bytearray | memoryview] = []
        size = 0
        for data, descriptors, _ in self._out:
            if descriptors or size >= GATHER or len(parts) == 64:
                break
            parts.append(data)
            size += len(data)
        return parts

    def _sent(self, count: int) -> None:
        self._waits(-count)
        while count:
            data, descriptors, give = self._out[0]
            if count < len(data):
                self._out[0] = (memoryview(data)[count:], descriptors, give)
                return
            count -= len(data)
            self._out.popleft()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _forget_output(self) -> None:
        if self._fd >= 0:
            self._stop_writing()
        for _, descriptors, give in self._out:
            if give:
                close_own(descriptors)
        self._out.clear()
        self._waits(-self.backlog)
        self._unsent = 0


def documents(message: WireMessage) -> list[Any]:
    """Return the lists and maps that are fields of ``message``, to be freed in pieces."""
    fields = (getattr(message, name) for name in message.__struct_fields__)
    return [value for value in fields if type(value) in (list, dict)]
