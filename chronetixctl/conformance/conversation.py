"""What is said between a running program and the played daemon, and every wait for it.

Every wait goes through :meth:`Conversation.until`: it serves the control socket and the peers until what is waited for
is there, and raises Failed when the program ends or the time is up. What the program says is kept in ``heard``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from chronetix import shm
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.framing import type_of
from chronetix.protocol.messages import Fault, Finished, Ping, Pong, WireMessage
from chronetixctl.conformance.control import PlayedDaemon
from chronetixctl.conformance.forms import Failed
from chronetixctl.conformance.program import RunningProgram, Subject

M = TypeVar("M", bound=WireMessage)

SLICE_S: Final = 0.002
"""How long a wait sleeps at most before it looks at the peers again: it must not depend on the program's rings."""

QUIET_S: Final = 0.15
"""How long a check listens for what must not come."""


class Conversation:
    """One process of the program and its control connection. ``on_message`` is called with each message and its
    descriptors, ``on_turn`` whenever the peers may have something to do."""

    def __init__(
        self, subject: Subject, on_message: Callable[[WireMessage, list[int]], None], on_turn: Callable[[], None]
    ) -> None:
        """Start the program. Raises OSError."""
        self.subject = subject
        self._on_message = on_message
        self._on_turn = on_turn
        self.heard: list[WireMessage] = []
        self.alone = False
        """There is no daemon: the program runs on without one."""
        self._kept: list[int] = []
        self._old_daemons: list[PlayedDaemon] = []
        ours, theirs = socket.socketpair()
        self.daemon = PlayedDaemon(ours, subject.timeout_s)
        try:
            self.program = RunningProgram(subject, theirs)
        except OSError:
            self.daemon.close()
            raise
        finally:
            theirs.close()
        self.bell = shm.Doorbell()

    def close(self) -> None:
        """End the program, and give everything back."""
        self.program.end()
        for daemon in (self.daemon, *self._old_daemons):
            daemon.close()
        while self._kept:
            os.close(self._kept.pop())
        self.bell.close()

    def keep(self, descriptor: int) -> int:
        """Close this descriptor at the end of the check."""
        self._kept.append(descriptor)
        return descriptor

    # -- waiting --------------------------------------------------------------------------------------------

    def until(
        self, done: Callable[[], bool], expected: str, limit_s: float | None = None, *, may_end: bool = False
    ) -> None:
        """Serve the program until ``done()``. Raises Failed when it ends before, unless it ``may_end``, or in time."""
        deadline = time.monotonic() + (self.subject.timeout_s if limit_s is None else limit_s)
        while True:
            self._serve()
            if done():
                return
            if not may_end and self.gone:
                self._lost(expected)
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failed(expected, self.seen("nothing came in time"))
            self._sleep(min(left, SLICE_S))

    def quiet(self, unwanted: Callable[[], bool], expected: str, limit_s: float = QUIET_S) -> None:
        """Serve the program for a moment. Raises Failed if ``unwanted()`` becomes true, or the program ends."""
        deadline = time.monotonic() + limit_s
        while (left := deadline - time.monotonic()) > 0:
            self._serve()
            if unwanted():
                raise Failed(expected, self.seen("it did not wait"))
            if self.gone:
                self._lost(expected)
            self._sleep(min(left, SLICE_S))

    @property
    def gone(self) -> bool:
        """Whether it has ended, or said that it fails."""
        if self.alone:
            return self.program.status is not None
        return self.daemon.closed or bool(self.said(Fault))

    def _sleep(self, limit_s: float) -> None:
        watched: list[int] = [self.bell.fileno(), *self.program.streams]
        if not self.daemon.closed:
            watched.append(self.daemon.fileno())
        ready, _, _ = select.select(watched, [], [], limit_s)
        for fd in ready:
            if fd in self.program.streams:
                self.program.read(fd)
        self.bell.clear()

    def _serve(self) -> None:
        try:
            for message, descriptors in self.daemon.receive():
                self._on_message(message, descriptors)
        except ChronetixError as reason:
            raise Failed("messages as PROTOCOL.md and protocol.cddl describe them", reason.message) from None
        self._on_turn()

    def _lost(self, expected: str) -> None:
        """Raises Failed: the program has ended, or has said that it fails."""
        self.program.await_end(self.subject.timeout_s if self.daemon.closed else 0.2)
        raise Failed(expected, self.seen())

    def seen(self, otherwise: str = "") -> str:
        """Return what has become of the program, for a failed check."""
        parts = []
        if (status := self.program.status) is not None:
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            parts.append(f"it {how}")
        elif self.daemon.closed:
            parts.append("it closed the control socket and runs on")
        elif otherwise:
            parts.append(otherwise)
        if faults := self.said(Fault):
            parts.append(f"fault in phase {faults[-1].phase}: {faults[-1].error}: {faults[-1].message}")
        parts.append(f"last message: {type_of(self.heard[-1])}" if self.heard else "it has sent no message")
        if printed := self.program.said():
            parts.append(f"printed: {printed}")
        return "; ".join(parts)

    def said(self, kind: type[M]) -> list[M]:
        """Return the messages of this kind that have come."""
        return [message for message in self.heard if isinstance(message, kind)]

    def await_said(self, kind: type[M], expected: str, count: int = 1, limit_s: float | None = None) -> M:
        """Wait for the message of this kind with that number, and return it."""
        self.until(lambda: len(self.said(kind)) >= count, expected, limit_s)
        return self.said(kind)[count - 1]

    def say(self, *messages: WireMessage, descriptors: Sequence[int] = ()) -> None:
        """Send messages. Raises Failed when the program does not read them any more."""
        try:
            self.daemon.send(*messages, descriptors=descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self._serve()
            self.program.await_end(self.subject.timeout_s)
            raise Failed(f"it reads {type_of(messages[0])}", self.seen("it closed the control socket")) from None
        except TimeoutError:
            raise Failed(f"it reads {type_of(messages[0])}", self.seen("it reads nothing")) from None

    def answer(self, message: WireMessage) -> None:
        """Send a message that the program need not wait for: it may have ended meanwhile."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.daemon.send(message)

    def ping(self, number: int) -> Pong:
        """Ask what it is doing."""
        self.say(Ping(id=number))
        self.until(
            lambda: any(pong.id == number for pong in self.said(Pong)), f"a pong with the id {number} of its ping"
        )
        return next(pong for pong in self.said(Pong) if pong.id == number)

    def lose_daemon(self) -> None:
        """The daemon dies, and the program is to run on."""
        self.daemon.hang_up()
        self.alone = True

    def accept(self, listener: socket.socket) -> None:
        """Take the program's connection to the next daemon."""
        listener.settimeout(0)
        found: list[socket.socket] = []

        def connected() -> bool:
            with contextlib.suppress(BlockingIOError):
                found.append(listener.accept()[0])
            return bool(found)

        self.until(connected, "its connection to the next daemon")
        self._old_daemons.append(self.daemon)
        self.daemon = PlayedDaemon(found[0], self.subject.timeout_s)
        self.alone = False

    # -- the end --------------------------------------------------------------------------------------------

    def finished(self, expected: str = "finished, and the end of its process with status 0") -> None:
        """Wait for its regular end."""
        self.until(lambda: bool(self.said(Finished)), expected)
        self.exited(expected, (0,))

    def exited(self, expected: str, statuses: Sequence[int] = (), limit_s: float | None = None) -> int:
        """Wait for the end of its process; its status, which is one of ``statuses`` if there are any."""
        self.until(lambda: self.program.status is not None, expected, limit_s, may_end=True)
        self._serve()
        status = self.program.status
        assert status is not None
        if statuses and status not in statuses:
            raise Failed(expected, self.seen())
        return status

    def aftermath(self) -> int | None:
        """Wait for a moment whether its process ends; its status, None if it goes on."""
        deadline = time.monotonic() + QUIET_S
        while self.program.status is None and time.monotonic() < deadline:
            self._serve()
            self._sleep(SLICE_S)
        return self.program.status

    def failed_orderly(self, expected: str) -> None:
        """Wait until it has given up by itself: with a status that is neither 0 nor a signal's."""
        if self.exited(expected) <= 0:
            raise Failed(expected, self.seen())
