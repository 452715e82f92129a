"""The daemon's side of the inspectors (``inspector``): which process has a stranger's descriptors, and for how long.

Rules: the daemon looks at incoming bytes without receiving them (MSG_PEEK). If descriptors come with them, an inspector
receives both and returns the descriptors that are harmless. Each owner (a user) has an inspector of its own, so that a
close that waits holds up only that owner's connections. An inspector that does not answer within LIMIT_S is killed, and
counts against its owner until it has ended; an owner with MAX_ENDING such inspectors is to be refused.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Final, Literal

import structlog

from chronetix.protocol.descriptors import ANCILLARY_SIZE, received
from chronetix.protocol.errors import ChronetixError
from chronetixd.linux.exhaustion import exhausted, no_room, wanting
from chronetixd.linux.pidfd import Process
from chronetixd.linux.pipes import waiting
from chronetixd.loop import inspector

LIMIT_S = 5.0
"""How long one request to an inspector may take. Its work takes microseconds unless a peer makes it wait."""

IDLE_S = 10.0
"""After how long without a request an inspector is ended."""

MAX_ENDING = 4
"""How many inspectors of one owner may be unable to end because of the descriptors that they hold."""

PURPOSE: Final = "what a client has sent along"

SO_PASSRIGHTS = 83
"""Linux 6.16: whether descriptors may be sent to a socket. Sockets that it accepts inherit the option."""

Taken = list[int] | ChronetixError | None
"""The received descriptors; the error for which the daemon could not take them; None if they were refused or no
inspector was available."""

OnTaken = Callable[[Taken], None]


def pass_rights(sock: socket.socket, wanted: bool) -> None:
    """Let peers send descriptors to ``sock``, or have the kernel refuse them at the sender. Before Linux 6.16 peers
    always can send them, which costs an inspector and nothing else. (CHRONETIX_WITHOUT=passrights makes a newer kernel
    behave like this, for tests.)"""
    if "passrights" in os.environ.get("CHRONETIX_WITHOUT", "").split(","):
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, wanted)
    except OSError:
        return


class _Inspector:
    """One inspector process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, line: socket.socket, process: Process) -> None:
        self._loop = loop
        self.line = line
        self.process = process
        self.asked: deque[tuple[int, OnTaken]] = deque()
        """Requests that are not answered: their number, and the function that gets the answer."""
        self.on_over: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(line.fileno(), self._answered)
        self._time()

    def ask(self, number: int, sock: socket.socket, size: int, on_taken: OnTaken) -> None:
        """Send a request. Raises OSError, and then nothing was requested."""
        socket.send_fds(self.line, [inspector.REQUEST.pack(number, size)], [sock.fileno()])
        self.asked.append((number, on_taken))
        if len(self.asked) == 1:
            self._time()

    def _time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LIMIT_S if self.asked else IDLE_S, self.end)

    def _answered(self) -> None:
        try:
            packet, ancillary, flags, _ = self.line.recvmsg(
                inspector.ANSWER.size, ANCILLARY_SIZE, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            packet, ancillary, flags = b"", [], 0
        if not packet:
            self.end()
            return
        number, count = inspector.ANSWER.unpack(packet)
        descriptors = received(ancillary)  # harmless: an inspector sends no others
        expected, on_taken = self.asked.popleft()
        assert number == expected
        self._time()
        if count == inspector.REFUSED or flags & socket.MSG_CTRUNC:
            for fd in descriptors:
                os.close(fd)
            on_taken(no_room(PURPOSE) if flags & socket.MSG_CTRUNC else None)
            self.end()
        else:
            on_taken(descriptors)

    def wait(self, seconds: float) -> None:
        """Wait at most ``seconds`` until all requests are answered. This blocks the loop, and is for an upgrade
        only."""
        self.line.settimeout(seconds)
        try:
            while self.asked:
                self.line.recv(1, socket.MSG_PEEK)
                self._answered()
        except OSError:
            self.end()

    def end(self) -> None:
        """End the inspector; its end closes all descriptors that it holds. Idempotent."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self._loop.remove_reader(self.line.fileno())
        self.line.close()
        self.process.signal(signal.SIGKILL)
        self.on_over()
        while self.asked:
            self.asked.popleft()[1](None)


class Inspection:
    """The inspectors of all owners. None is started before the first request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._at_work: dict[int, _Inspector] = {}
        self._ending: dict[int, set[Process]] = {}
        self._numbers = itertools.count(1)
        self._kept: deque[tuple[int, socket.socket]] = deque()
        """Sockets that are to be closed and for which no inspector was available."""
        self._empty = asyncio.Event()

    @property
    def pids(self) -> set[int]:
        """The inspector processes that are not reaped."""
        ending = {process.pid for processes in self._ending.values() for process in processes}
        return ending | {each.process.pid for each in self._at_work.values()}

    @property
    def busy(self) -> bool:
        """Whether a request is not answered."""
        return any(each.asked for each in self._at_work.values())

    def refuses(self, owner: int) -> bool:
        """Return whether ``owner`` has sent too many descriptors that cannot be closed. A refused owner's connections
        bring no further ones."""
        return len(self._ending.get(owner, ())) >= MAX_ENDING

    def take_in(self, owner: int, sock: socket.socket, size: int, on_taken: OnTaken) -> None:
        """Have the ``size`` bytes that wait in ``sock`` received, with their descriptors. ``on_taken`` is called later
        with the descriptors, which it then owns, or with the reason why there are none (see ``Taken``)."""
        asked = self._ask(owner, sock, size, on_taken)
        if asked is not True:
            self._loop.call_soon(on_taken, asked)

    def close(self, owner: int, sock: socket.socket) -> None:
        """Close ``sock``, on which ``owner`` has connected, without waiting for descriptors in its unread bytes."""
        try:
            sock.shutdown(socket.SHUT_RDWR)  # nothing more can be sent to it
            if not waiting(sock.fileno()):
                sock.close()
                return
        except OSError:
            pass  # not connected any more; unread bytes may still be there
        if self._ask(owner, sock, 0, lambda _: None) is True:
            sock.close()  # the inspector has a duplicate, and closes the last one
        else:
            self._kept.append((owner, sock))

    def settle(self, seconds: float) -> None:
        """Wait at most ``seconds`` until all requests are answered, then end all inspectors. This blocks the loop, and
        is for an upgrade only."""
        for each in tuple(self._at_work.values()):
            each.wait(seconds)
            each.end()

    async def stop(self, seconds: float) -> None:
        """End all inspectors, waiting at most ``seconds``. An inspector that cannot end is left behind: it holds
        nothing of the daemon."""
        for each in tuple(self._at_work.values()):
            each.end()
        if self._ending:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), seconds)
            except TimeoutError:
                structlog.get_logger("chronetixd").warning(
                    "a descriptor that a peer has sent cannot be closed yet; its inspector process is left behind",
                    pids=self.pids,
                )

    def _ask(self, owner: int, sock: socket.socket, size: int, on_taken: OnTaken) -> Literal[True] | Taken:
        """Return True if the request was sent; otherwise what ``on_taken`` is to be called with."""
        try:
            found = self._at_work.get(owner) or self._start(owner)
            if found is None:
                return None
            found.ask(next(self._numbers), sock, size, on_taken)
        except OSError as reason:
            if not isinstance(reason, BlockingIOError | BrokenPipeError | ConnectionResetError) and not wanting(reason):
                raise
            return exhausted(reason, PURPOSE) if wanting(reason) else None
        return True

    def _start(self, owner: int) -> _Inspector | None:
        """Start the inspector of ``owner``; None if ``owner`` is refused. Raises OSError."""
        if self.refuses(owner):
            return None
        with ExitStack() as opened:
            ours, theirs = (opened.enter_context(s) for s in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", inspector.__file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
            opened.callback(popen.wait)
            opened.callback(popen.kill)
            pidfd = os.pidfd_open(popen.pid)
            opened.pop_all()
        theirs.close()
        popen.returncode = 0  # its exit status is taken through its pidfd, not by subprocess
        ours.setblocking(False)
        process = Process(self._loop, popen.pid, pidfd, lambda: self._exited(owner, process))
        made = self._at_work[owner] = _Inspector(self._loop, ours, process)
        made.on_over = partial(self._over, owner, made)
        return made

    def _over(self, owner: int, ended: _Inspector) -> None:
        if self._at_work.get(owner) is ended:
            del self._at_work[owner]
        if not ended.process.exited:
            self._ending.setdefault(owner, set()).add(ended.process)

    def _exited(self, owner: int, process: Process) -> None:
        at_work = self._at_work.get(owner)
        if at_work is not None and at_work.process is process:
            at_work.end()
        process.reap()
        self._ending.get(owner, set()).discard(process)
        if not self._ending.get(owner):
            self._ending.pop(owner, None)
        if not self._ending:
            self._empty.set()
        self._retry()

    def _retry(self) -> None:
        kept, self._kept = self._kept, deque()
        for owner, sock in kept:
            self.close(owner, sock)
