"""Processes by pidfd: told of an exit by the event loop, reaped without a race, signalled with their whole group.

Workers are our children, but made by clone with no exit signal, so waiting for them needs __WALL. Those of a daemon
before us are nobody's; the kernel tells their exit through the pidfd.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from chronetixd.core.worker import Exit
from chronetixd.linux import proc

_WALL = 0x40000000
"""Linux's __WALL: children of every kind."""


_NOT_OURS = (ProcessLookupError, PermissionError)
"""It is gone, or has become another user's (setuid): no signal of ours reaches it."""


class Usage(NamedTuple):
    """What a process has used in its life, with those of its children that it waited for."""

    max_rss_bytes: int
    cpu_ns: int


class Process:
    """Owns ``pidfd``. ``on_exit`` is called once when the process has ended; it then has to call :meth:`reap`. Whoever
    takes the process over replaces it."""

    __slots__ = ("_loop", "exited", "on_exit", "pid", "pidfd", "usage")

    def __init__(self, loop: asyncio.AbstractEventLoop, pid: int, pidfd: int, on_exit: Callable[[], None]) -> None:
        self._loop = loop
        self.pid = pid
        self.pidfd = pidfd
        self.on_exit = on_exit
        self.exited = False
        self.usage: Usage | None = None
        """Set by :meth:`reap`."""

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
            pid, status, used = os.wait4(self.pid, os.WNOHANG | _WALL)
        except ChildProcessError:
            return told_by(self.pid, self.pidfd)
        finally:
            os.close(self.pidfd)
            self.pidfd = -1
        if pid == 0:
            raise RuntimeError(f"process {self.pid} was said to have ended, but has no exit status")
        self.usage = Usage(used.ru_maxrss * 1024, round((used.ru_utime + used.ru_stime) * 1e9))
        return exit_of(status)


_GET_INFO = 0xC040FF0B
_INFO_EXIT = 1 << 3
"""ioctl PIDFD_GET_INFO with struct pidfd_info's first version (64 bytes), and the bit of its mask for the exit."""


def told_by(pid: int, pidfd: int) -> Exit:
    """The exit of a process that is not our child: as long as its parent has not reaped it, /proc has it, afterwards
    the pidfd; unknown then before Linux 6.15, which does not keep it."""
    seen = proc.stat(pid)
    if seen is not None and seen.state == "Z":
        return exit_of(seen.exit)
    info = bytearray(struct.pack("=Q56x", _INFO_EXIT))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return Exit()
    mask, status = struct.unpack("=Q52xi", info)
    return exit_of(status) if mask & _INFO_EXIT else Exit()


def is_pidfd(fd: int) -> bool:
    """Whatever else it may be, it is asked nothing."""
    try:
        return "Pid:" in Path(f"/proc/self/fdinfo/{fd}").read_text()
    except OSError:
        return False


def exit_of(status: int) -> Exit:
    """What wait4's status of an ended process means."""
    if os.WIFEXITED(status):
        return Exit(code=os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    try:
        return Exit(signal=signal.Signals(number).name)
    except ValueError:
        return Exit(signal=f"signal {number}")
