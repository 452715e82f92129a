"""Feeds the service manager's watchdog, but only while the event loop works.

Each beat passes through the whole loop: a timer writes a byte into a socket pair, the loop's poll reports it, a reader
takes it, and only then the watchdog is fed. A loop that is stuck in a callback, that has lost its timers, or that no
longer polls does not feed it, and systemd ends and restarts the daemon. Without a watchdog no timer runs.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping

from chronetixd.systemd.notify import notify


def period_s(env: Mapping[str, str], pid: int) -> float | None:
    """Return the seconds between two beats: a third of $WATCHDOG_USEC, so that one late beat does no harm. None if no
    watchdog watches the process ``pid``."""
    allowed, meant = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", str(pid))
    if not allowed.isdecimal() or int(allowed) == 0 or meant != str(pid):
        return None
    return int(allowed) / 3e6


class Watchdog:
    """Calls ``feed`` every ``period`` seconds, through the loop, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, period: float | None, feed: Callable[[], object] | None = None
    ) -> None:
        self._loop = loop
        self._period = period
        self._feed = feed or (lambda: notify("WATCHDOG=1"))
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat, unless ``period`` is None."""
        if self._period is None:
            return
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._loop.add_reader(self._ends[0].fileno(), self._arrived)
        self._beat()

    def stop(self) -> None:
        """Stop beating. Idempotent."""
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
    """Return the watchdog that this process's environment asks for."""
    return Watchdog(loop, period_s(os.environ, os.getpid()))
