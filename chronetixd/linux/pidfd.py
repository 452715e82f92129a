"""Processes by pidfd: the event loop reports their exit; they are reaped without a race and signalled with their group.

Workers are children of the daemon, made by clone without an exit signal, so that waiting for them needs __WALL. Workers
of an earlier daemon are children of another process; the kernel reports their exit through the pidfd.
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
"""Errors of a process that is gone, or runs as another user (setuid): the daemon's signals do not reach it."""


class Usage(NamedTuple):
    """Resources that a process has used in its life, including those of children that it has reaped."""

    max_rss_bytes: int
    cpu_ns: int


class Process:
    """A process by its ``pidfd``, which it owns. ``on_exit`` is called once when the process has ended, and has to call
    :meth:`reap` then. An owner that takes the process over replaces ``on_exit``. A process that is not ``ours`` was not
    started by the daemon: only it is signalled, never its group, and it is reaped by its own parent."""

    __slots__ = ("_loop", "_ours", "exited", "on_exit", "pid", "pidfd", "usage")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pid: int,
        pidfd: int,
        on_exit: Callable[[], None],
        *,
        ours: bool = True,
    ) -> None:
        self._loop = loop
        self._ours = ours
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
        """Send a signal once to the process and once to each other process of its group. A process that has moved to
        another group gets it as well. Does nothing for a process that has been reaped or released.

        A second SIGTERM has a meaning of its own for a worker (it interrupts the plugin's callback).
        """
        if self.pidfd < 0:
            return
        with suppress(*_NOT_OURS):
            if not self._ours or os.getpgid(self.pid) != self.pid:
                signal.pidfd_send_signal(self.pidfd, number)
        if self._ours:
            with suppress(*_NOT_OURS):
                os.killpg(self.pid, number)

    def release(self) -> None:
        """Forget the process, which may live on. Call this instead of :meth:`reap`."""
        self._loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1

    def kill_alone(self) -> None:
        """Send SIGKILL to the process and nobody else. Does nothing for a process that has been reaped."""
        if self.pidfd >= 0:
            with suppress(*_NOT_OURS):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self, *, with_group: bool = True) -> Exit:
        """Kill what is left of the process group, then reap the process and return its exit. Call this once, after
        ``on_exit``. Without ``with_group`` the group of a child is left: what its processes started comes to this
        process, which ends them. The processes of an earlier daemon's worker come to somebody else.

        The kernel cannot have reused the group's number, because the group's leader has not been reaped yet.
        """
        if not self._ours:
            try:
                return told_by(self.pid, self.pidfd)
            finally:
                os.close(self.pidfd)
                self.pidfd = -1
        if with_group or not self._is_child():
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

    def _is_child(self) -> bool:
        try:
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)
        except ChildProcessError:
            return False
        return True


_GET_INFO = 0xC040FF0B
_INFO_EXIT = 1 << 3
"""ioctl PIDFD_GET_INFO with struct pidfd_info's first version (64 bytes), and the bit of its mask for the exit."""


def told_by(pid: int, pidfd: int) -> Exit:
    """Return the exit of a process that is no child of this one. Until its parent has reaped it, /proc has the exit;
    afterwards the pidfd has it, but before Linux 6.15 it is unknown then.

    A process that is not reaped after the look into /proc is the one that was seen there, and no later one with its
    pid.
    """
    seen = proc.stat(pid)
    if seen is not None and seen.state == "Z" and _is_unreaped(pidfd):
        return exit_of(seen.exit)
    return _reaped(pidfd)


def _is_unreaped(pidfd: int) -> bool:
    """Return whether the pidfd's process still has its pid, that is, whether nobody has reaped it."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _reaped(pidfd: int) -> Exit:
    """Return the exit of a process that was reaped, as far as the kernel tells it."""
    info = bytearray(struct.pack("=Q56x", _INFO_EXIT))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return Exit()
    mask, status = struct.unpack("=Q52xi", info)
    return exit_of(status) if mask & _INFO_EXIT else Exit()


def is_pidfd(fd: int) -> bool:
    """Whether ``fd`` is a pidfd. Looks only at /proc: a system call on a descriptor of another kind might wait."""
    try:
        return "Pid:" in Path(f"/proc/self/fdinfo/{fd}").read_text()
    except OSError:
        return False


def exit_of(status: int) -> Exit:
    """Return the exit that wait4's ``status`` of an ended process means."""
    if os.WIFEXITED(status):
        return Exit(code=os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    try:
        return Exit(signal=signal.Signals(number).name)
    except ValueError:
        return Exit(signal=f"signal {number}")
