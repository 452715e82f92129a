"""A synchronous client of the control socket: hello, calls, streamed answers.

Rules: one connection, used from one thread; any number of calls may be open at once. A call ends exactly once. A call
that the caller gives up (by leaving its stream, by Ctrl-C or by a time limit) is cancelled, and the connection stays
usable. Errors come from the catalogue: ChronetixError when no daemon answers, RemoteError for an error that the daemon
reports.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple

from chronetix.protocol import paths, trust
from chronetix.protocol.descriptors import ANCILLARY_SIZE, Channel, pieces, received
from chronetix.protocol.errors import ChronetixError, error, from_failure
from chronetix.protocol.handshake import concluded
from chronetix.protocol.messages import (
    PROTOCOL_VERSIONS,
    Call,
    Cancel,
    Failure,
    Hello,
    Item,
    Result,
    ToClient,
    Welcome,
    WireMessage,
)

CONNECT_TIMEOUT_S = 5.0
"""How long a daemon may take to accept the connection and to send its welcome."""

UPGRADE_TIMEOUT_S = 60.0
"""How long a daemon that has reported that it is being replaced may take to send its welcome. By then the next image
has taken over, or the earlier one goes on."""

CANCEL_TIMEOUT_S = 1.0
"""How long a cancelled call may take to end; after that the client closes the connection."""

LONGEST_WAIT_S = 86400.0
"""The longest single wait for the socket: poll takes its time limit as an int of milliseconds."""

_CHUNK = 256 * 1024

_Answer = Welcome | Failure | Item | Result


class Carried(NamedTuple):
    """A streamed item together with the descriptors that came with it; the receiver of the item closes them."""

    value: Any
    descriptors: list[int]


def socket_path(path: str | os.PathLike[str] | None = None) -> str:
    """Return the control socket's path: ``path`` if given, else the one that this user's environment names.

    Where neither names one and the user's own socket does not exist, the machine's socket is returned if it exists.
    """
    own = str(paths.socket_path(os.environ, os.getuid(), None if path is None else os.fspath(path)))
    named = path is not None or os.environ.get("CHRONETIX_SOCKET")
    if not named and not os.path.exists(own) and os.path.exists(paths.SYSTEM_SOCKET):
        return paths.SYSTEM_SOCKET
    return own


class Client:
    """A connection to chronetixd. A context manager; closing it ends the calls that are still open."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        """Wrap a connected stream socket. Callers use :meth:`connect` instead."""
        self.path = path
        """Path of the control socket."""
        self.welcome: Welcome | None = None
        """The daemon's welcome, with its software and protocol version."""
        self._sock = sock
        self._channel: Channel[Any] = Channel(ToClient)
        self._last_id = 0
        self._inbox: dict[int, deque[tuple[_Answer, list[int]]]] = {}
        self._lobby: deque[_Answer] = deque()

    @classmethod
    def connect(
        cls, path: str | os.PathLike[str] | None = None, *, timeout: float = CONNECT_TIMEOUT_S, software: str = ""
    ) -> Client:
        """Connect to the daemon at ``path`` (default: :func:`socket_path`) and exchange hello and welcome.

        Tries again within ``timeout`` seconds while the daemon answers that it is being upgraded. Sends nothing to a
        daemon that runs as a user other than this one, root or $CHRONETIX_DAEMON_USER
        (:mod:`chronetix.protocol.trust`). Raises ChronetixError ``daemon-unreachable``, ``server-not-trusted`` or
        ``not-allowed``, RemoteError when the daemon refuses; the socket is closed then.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                return cls._connect(path, deadline, timeout, software)
            except ChronetixError as reason:
                if reason.name != "daemon-upgrading" or time.monotonic() >= deadline:
                    raise

    @classmethod
    def _connect(cls, path: str | os.PathLike[str] | None, deadline: float, timeout: float, software: str) -> Client:
        where = socket_path(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        client = cls(sock, where)
        try:
            _connect(sock, where, max(0.0, deadline - time.monotonic()))
            trust.check(sock, where, os.environ.get("CHRONETIX_DAEMON_USER"))
            client._greet(deadline, software)
        except PermissionError as cause:
            sock.close()
            raise error("not-allowed", uid=os.getuid(), what=f"connect to {where}{_barred(where)}") from cause
        except TimeoutError as cause:
            sock.close()
            raise error("daemon-unreachable", socket=where, reason=f"no answer within {timeout:g} s") from cause
        except OSError as cause:
            sock.close()
            raise error("daemon-unreachable", socket=where, reason=_reason(cause, where)) from cause
        except BaseException:
            sock.close()
            raise
        return client

    def close(self) -> None:
        """Close the connection and the descriptors in answers that were not taken; the daemon then ends the open calls.
        Idempotent."""
        self._sock.close()
        self._channel.close()
        for inbox in self._inbox.values():
            _close_all(inbox)

    def fileno(self) -> int:
        """Return the socket's descriptor, for a caller that polls it together with other descriptors."""
        return self._sock.fileno()

    @property
    def waiting(self) -> bool:
        """Whether an answer to some call has been received already, so that the caller need not wait for the socket."""
        return any(self._inbox.values())

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(
        self,
        verb: str,
        /,
        *,
        timeout: float | None = None,
        on_item: Callable[[Any], None] | None = None,
        **args: Any,
    ) -> Any:
        """Call ``verb``, wait for its result and return its value; ``on_item`` is called with each item that is
        streamed before it.

        Arguments that are None are left out. Raises RemoteError for an error that the daemon reports, ChronetixError
        ``timed-out`` after ``timeout`` seconds, ``connection-lost`` when the daemon closes the connection.
        """
        messages = self._exchange(verb, args, timeout)
        while True:
            try:
                item = next(messages)
            except StopIteration as end:
                return end.value
            if on_item is not None:
                on_item(item)

    def stream(
        self, verb: str, /, *, timeout: float | None = None, descriptors: Sequence[int] = (), **args: Any
    ) -> Generator[Any, None, Any]:
        """Iterate over the items that ``verb`` streams until the call ends. Closing the iterator cancels the call.

        ``descriptors`` are sent with the call and stay the caller's to close. An item that arrives with descriptors is
        yielded as :class:`Carried`. Iterating raises what :meth:`call` raises.
        """
        return self._exchange(verb, args, timeout, descriptors)

    def _greet(self, deadline: float, software: str) -> None:
        hello = Hello(protocol=list(PROTOCOL_VERSIONS), role="client", software=software, pid=os.getpid())
        self._send(hello)
        while not self._lobby:
            self._receive(deadline, "a welcome")
        self.welcome = concluded(hello, self._lobby.popleft())

    def _exchange(
        self, verb: str, args: dict[str, Any], timeout: float | None, descriptors: Sequence[int] = ()
    ) -> Generator[Any, None, Any]:
        """Send the call, yield its items and return the result's value; cancel the call if the caller leaves early."""
        self._last_id += 1
        id = self._last_id
        self._inbox[id] = deque()
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = False
        try:
            given = {key: value for key, value in args.items() if value is not None}
            self._send(Call(id=id, verb=verb, args=given, descriptors=len(descriptors)), descriptors)
            while True:
                answer, carried = self._answer(id, deadline, verb)
                if isinstance(answer, Item):
                    yield Carried(answer.value, carried) if carried else answer.value
                    continue
                ended = True
                if isinstance(answer, Failure):
                    raise from_failure(answer)
                return answer.value if isinstance(answer, Result) else None
        except TimeoutError:
            raise error("timed-out", what=f"the answer to {verb}", seconds=f"{timeout:g}") from None
        except ChronetixError as reason:
            ended = ended or reason.name != "timed-out"
            raise
        finally:
            if not ended:
                self._cancel(id)
            _close_all(self._inbox.pop(id, ()))

    def _answer(self, id: int, deadline: float | None, verb: str) -> tuple[_Answer, list[int]]:
        inbox = self._inbox[id]
        while not inbox:
            self._receive(deadline, f"the answer to {verb}")
        return inbox.popleft()

    def _cancel(self, id: int) -> None:
        """Cancel the call and wait for its end; close the connection if that takes longer than CANCEL_TIMEOUT_S."""
        try:
            self._send(Cancel(id=id))
            deadline = time.monotonic() + CANCEL_TIMEOUT_S
            while True:
                answer, carried = self._answer(id, deadline, "cancel")
                for descriptor in carried:
                    os.close(descriptor)
                if not isinstance(answer, Item):
                    return
        except (OSError, ChronetixError):
            self.close()

    def _send(self, message: WireMessage, descriptors: Sequence[int] = ()) -> None:
        limit = {} if self.welcome is None else {"max_frame": self.welcome.max_frame}
        parts = pieces(message, descriptors, **limit)
        self._sock.settimeout(None if self.welcome else CONNECT_TIMEOUT_S)
        try:
            for data, carried in parts:
                flags = socket.MSG_NOSIGNAL
                sent = socket.send_fds(self._sock, [data], list(carried), flags) if carried else 0
                self._sock.sendall(memoryview(data)[sent:], flags)
        except (BrokenPipeError, ConnectionResetError) as cause:
            # The daemon may have sent a refusal before it closed; reading raises it, or that the connection is lost.
            with contextlib.suppress(TimeoutError):
                self._receive(time.monotonic() + CANCEL_TIMEOUT_S, "the message could be sent")
            raise error("connection-lost", expected="the message could be sent") from cause

    def _receive(self, deadline: float | None, expected: str) -> None:
        """Wait for data, read once and hand each message to its call.

        Raises TimeoutError at ``deadline`` (monotonic seconds), ChronetixError ``connection-lost`` with ``expected``
        when the daemon has closed the connection.
        """
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise TimeoutError
        self._sock.settimeout(None if remaining is None else min(remaining, LONGEST_WAIT_S))
        try:
            chunk, descriptors = self._read()
        except TimeoutError:
            if remaining is not None and remaining > LONGEST_WAIT_S:
                return
            raise
        except ConnectionResetError:
            chunk, descriptors = b"", []
        if not chunk:
            self._channel.end()
            raise error("connection-lost", expected=expected)
        for message, carried in self._channel.feed(chunk, descriptors):
            self._dispatch(message, carried)

    def _read(self) -> tuple[bytes, list[int]]:
        chunk, ancillary, flags, _ = self._sock.recvmsg(_CHUNK, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        descriptors = received(ancillary)
        if flags & socket.MSG_CTRUNC:
            for descriptor in descriptors:
                os.close(descriptor)
            raise error("missing-descriptors", type="any", expected="more", count=len(descriptors))
        return chunk, descriptors

    def _dispatch(self, message: _Answer, carried: list[int]) -> None:
        if isinstance(message, Welcome):
            self._lobby.append(message)
        elif message.id is None:
            assert isinstance(message, Failure)
            raise from_failure(message)
        elif message.id in self._inbox:
            self._inbox[message.id].append((message, carried))
        else:
            _close_all([(message, carried)])


def _connect(sock: socket.socket, where: str, timeout: float) -> None:
    """Connect ``sock`` to ``where``, waiting for a place in the daemon's accept queue, for which a non-blocking connect
    to a Unix socket does not wait. Raises OSError; TimeoutError (an OSError) after ``timeout`` seconds."""
    seconds, rest = divmod(max(timeout, 1e-6), 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(rest * 1e6)))
    sock.settimeout(None)
    try:
        sock.connect(where)
        sock.getpeername()  # a signal interrupts connect, and Python then reports success without a connection
    except BlockingIOError:
        raise TimeoutError from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 0))


def _close_all(answers: Iterable[tuple[_Answer, list[int]]]) -> None:
    for _, carried in answers:
        for descriptor in carried:
            os.close(descriptor)


_KINDS: Final = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _reason(cause: OSError, where: str) -> str:
    """Return why connecting to ``where`` failed. Looks at the file too, because the kernel reports the same error for a
    socket without a listener and for a file that is no socket."""
    if isinstance(cause, FileNotFoundError):
        folder = os.path.dirname(os.path.abspath(where))
        return "there is no such socket" if os.path.isdir(folder) else f"there is no folder {folder}"
    if isinstance(cause, NotADirectoryError):
        return "a part of its path is a file and not a folder"
    if isinstance(cause, ConnectionRefusedError):
        kind = _kind(where)
        if kind in (stat.S_IFSOCK, None):
            return "nobody listens on this socket: its daemon has ended, or it is another program's"
        return f"it is {_KINDS.get(kind, 'something else')}, no socket"
    if cause.errno == errno.EPROTOTYPE:
        return "it is a socket, but no stream socket: not a daemon's"
    return cause.strerror or str(cause)


def _barred(where: str) -> str:
    """Return the end of the message ``not-allowed`` that names what bars this user from ``where``: a folder of the
    path, or that the file is no socket. Empty when the socket itself bars the user."""
    folder = os.path.dirname(os.path.abspath(where))
    try:
        os.stat(where)
    except PermissionError:
        return f": this user may not enter {folder} or a folder above it"
    except OSError:
        return ""
    kind = _kind(where)
    return f", which is {_KINDS[kind]} and no socket" if kind in _KINDS else ""


def _kind(path: str) -> int | None:
    """Return the file type of ``path`` as ``stat.S_IFMT`` gives it; None when ``path`` cannot be examined."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except OSError:
        return None
