"""Feeds the supervisor's watchdog, and only while the event loop proves that it works.

A beat goes the way that everything goes here: a timer writes a byte into a socket pair, the loop's poll finds it, the
reader takes it, and only then is the watchdog fed. A loop that is stuck in a callback, that has lost its timers, or
that no longer polls feeds nothing, and systemd ends and restarts the daemon. Without a watchdog nothing runs.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping

from chronetixd.systemd.notify import notify


def period_s(env: Mapping[str, str], pid: int) -> float | None:
    """How often to feed: a third of what $WATCHDOG_USEC allows, so that one late beat is none too many. None where
    nobody watches this process."""
    allowed, meant = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", str(pid))
    if not allowed.isdecimal() or int(allowed) == 0 or meant != str(pid):
        return None
    return int(allowed) / 3e6


class Watchdog:
    """Beats every ``period`` seconds from :meth:`start` to :meth:`stop`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, period: float | None, feed: Callable[[], object] | None = None
    ) -> None:
        self._loop = loop
        self._period = period
        self._feed = feed or (lambda: notify("WATCHDOG=1"))
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Beat from now on, if somebody watches."""
        if self._period is None:
            return
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._loop.add_reader(self._ends[0].fileno(), self._arrived)
        self._beat()

    def stop(self) -> None:
        """Beat no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._ends is not None:
            self._loop.remove_reader(self._ends[0].fileno())
            for end in self._ends:
                end.close()
            self._ends = None

    def _beat(self) -> None:
        assert self._ends is not None
        self._ends[1].send(b"b")
        self._timer = self._loop.call_later(self._period or 0, self._beat)

    def _arrived(self) -> None:
        assert self._ends is not None
        self._ends[0].recv(64)
        self._feed()


def of_environment(loop: asyncio.AbstractEventLoop) -> Watchdog:
    """The watchdog that this process's environment asks for."""
    return Watchdog(loop, period_s(os.environ, os.getpid()))
