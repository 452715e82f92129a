"""Processes by pidfd: told of an exit by the event loop, reaped without a race, signalled with their whole group.

Workers are our children, but made by clone with no exit signal, so waiting for them needs __WALL.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from chronetixd.core.worker import Exit

_WALL = 0x40000000
"""Linux's __WALL: children of every kind."""


_NOT_OURS = (ProcessLookupError, PermissionError)
"""It is gone, or has become another user's (setuid): no signal of ours reaches it."""


class Process:
    """Owns ``pidfd``. ``on_exit`` is called once when the process has ended; it then has to call :meth:`reap`. Whoever
    takes the process over replaces it."""

    __slots__ = ("_loop", "exited", "on_exit", "pid", "pidfd")

    def __init__(self, loop: asyncio.AbstractEventLoop, pid: int, pidfd: int, on_exit: Callable[[], None]) -> None:
        self._loop = loop
        self.pid = pid
        self.pidfd = pidfd
        self.on_exit = on_exit
        self.exited = False

        def ended() -> None:
            loop.remove_reader(self.pidfd)
            self.exited = True
            self.on_exit()

        loop.add_reader(pidfd, ended)

    def signal(self, number: signal.Signals) -> None:
        """Send it to the process and to its process group. Nothing happens when it has been reaped."""
        if self.pidfd < 0:
            return
        with suppress(*_NOT_OURS):
            signal.pidfd_send_signal(self.pidfd, number)
        with suppress(*_NOT_OURS):
            os.killpg(self.pid, number)

    def reap(self) -> Exit:
        """Kill what is left of its process group, then take its exit status. Once, after ``on_exit``.

        The group's number cannot have been given away: its leader, unreaped, still holds it.
        """
        with suppress(*_NOT_OURS):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            status = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | _WALL)
        finally:
            os.close(self.pidfd)
            self.pidfd = -1
        if status is None:
            raise RuntimeError(f"process {self.pid} was said to have ended, but has no exit status")
        return exit_of(status.si_code, status.si_status)


def exit_of(code: int, status: int) -> Exit:
    """What waitid's ``si_code`` and ``si_status`` mean."""
    if code == os.CLD_EXITED:
        return Exit(code=status)
    try:
        return Exit(signal=signal.Signals(status).name)
    except ValueError:
        return Exit(signal=f"signal {status}")
