"""Spare workers: processes that are forked in advance, have sent hello, and wait until a worker is needed.

A spare worker has everything that a worker has: control socket, pipes, pidfd, control group. It becomes a worker by the
message ``assign``, without a request to the launcher. Rules:

* The pool is refilled one worker at a time, and only when no worker was asked for during QUIET_S. When the pool is
  full, nothing runs here.
* A spare worker is a child of the daemon and outlives the launcher. One that dies is reaped and replaced, after a
  growing pause if it died before its hello. One that is stopped (SIGSTOP) when it is to be taken, or that sends no
  hello within GREET_S, is killed and replaced.
* When the daemon ends, all spare workers are killed and reaped.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from chronetixd.linux.cgroups import Leaf
from chronetixd.linux.pidfd import Process
from chronetixd.linux.proc import stat
from chronetixd.workers.launcher import FIRST_PAUSE_S, LONGEST_PAUSE_S, Launcher, SpawnRequest
from chronetixd.workers.sandbox import Sandboxes
from chronetixd.workers.tree import discard

QUIET_S = 0.25
"""How long no worker must have been asked for before the pool is refilled: starting a flow goes first."""

GREET_S = 30.0
"""How long a spare worker may take from its fork to its hello. A spare worker that was stopped would otherwise block
all further ones."""

NAME = "chronetix-spare"


@dataclass(frozen=True, slots=True)
class OutputPipes:
    """The daemon's ends of what connects it with a worker: the control socket, and the pipes that the worker prints
    into."""

    control: socket.socket
    stdout: int
    stderr: int

    def close(self) -> None:
        """Close all three."""
        self.control.close()
        os.close(self.stdout)
        os.close(self.stderr)


def open_streams() -> tuple[OutputPipes, tuple[int, int, int]]:
    """Return the daemon's ends, and the worker's: control socket, stdout, stderr. Raises OSError, and then nothing is
    left open."""
    opened: list[int] = []
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        opened += (ours.detach(), theirs.detach())
        opened += os.pipe()
        opened += os.pipe()
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    control, remote, out_read, out_write, err_read, err_write = opened
    return OutputPipes(socket.socket(fileno=control), out_read, err_read), (remote, out_write, err_write)


@dataclass(frozen=True, slots=True)
class Spare:
    """A worker without a name. The caller of :meth:`WorkerPool.take` owns its process and its streams."""

    process: Process
    streams: OutputPipes
    leaf: Leaf | None


class WorkerPool:
    """Keeps up to ``size`` spare workers. ``on_full`` is called with their number whenever the pool becomes full."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        launcher: Launcher,
        sandboxes: Sandboxes,
        size: int,
        on_full: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._launcher = launcher
        self._sandboxes = sandboxes
        self.size = size
        self._on_full = on_full
        self._log = structlog.get_logger("chronetixd.workers.pool")
        self._idle: dict[int, Spare] = {}
        self._starting: OutputPipes | None = None
        """The streams of the spare worker that was asked for and has not sent hello."""
        self._new_leaf: Leaf | None = None
        """The control group of the spare worker that was asked for and not forked yet."""
        self._dying: set[Process] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._hello_timer: asyncio.TimerHandle | None = None
        self._pause_s = FIRST_PAUSE_S
        self._stopped: asyncio.Event | None = None

    @property
    def pids(self) -> set[int]:
        """The processes of spare workers that are not reaped."""
        return {*self._idle, *(process.pid for process in self._dying)}

    @property
    def ready(self) -> list[int]:
        """The processes of spare workers that can be taken now."""
        return [pid for pid, spare in self._idle.items() if spare.streams is not self._starting]

    def take(self) -> Spare | None:
        """Take a living spare worker, or None if there is none. In both cases the next refill waits for QUIET_S."""
        taken = None
        for pid in self.ready:
            if _ended(self._idle[pid].process):
                continue  # _exited is about to be called
            taken = self._idle.pop(pid)
            if not _is_stopped(pid):
                break
            self._log.warning("a spare worker is stopped (SIGSTOP) and is replaced", worker=pid)
            self.dismiss(taken)
            taken = None
        self.refill(QUIET_S)
        return taken

    def resize(self, size: int) -> None:
        """Keep ``size`` spare workers from now on; surplus ones stay until they are taken."""
        self.size = size
        self.refill()

    def refill(self, after_s: float = 0.0) -> None:
        """Refill the pool ``after_s`` seconds from now. A later call replaces an earlier one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stopped is None and len(self._idle) < self.size:
            self._timer = self._loop.call_later(after_s, self._fork)

    async def stop(self) -> None:
        """Kill and reap all spare workers."""
        self._stopped = asyncio.Event()
        self.refill()
        for spare in tuple(self._idle.values()):
            self._discard(spare)
        self._stopped_if_empty()
        await self._stopped.wait()

    def release(self) -> None:
        """Refill the pool again after :meth:`stop`."""
        self._stopped = None
        self.refill()

    # -- one spare -----------------------------------------------------------------------------------------

    def _fork(self) -> None:
        self._timer = None
        if self._starting is not None or not self._launcher.ready:
            return  # the pool is refilled when that worker has sent hello, or when the launcher is ready
        try:
            self._new_leaf, group = self._sandboxes.new_cgroup(None)
        except OSError as reason:
            self._not_forked(str(reason))
            return
        try:
            streams, theirs = open_streams()
        except OSError as reason:
            self._discard_new_leaf()
            if group >= 0:
                os.close(group)
            self._not_forked(str(reason))
            return
        self._starting = streams
        calls = self._forked, self._refused, self._refused
        self._launcher.spawn(SpawnRequest(NAME, (), {}, "", *theirs, *calls, spare=True, group=group))

    def _discard_new_leaf(self) -> None:
        discard(self._new_leaf)
        self._new_leaf = None

    def _forked(self, pid: int, pidfd: int) -> None:
        assert self._starting is not None
        streams = self._starting
        spare = Spare(Process(self._loop, pid, pidfd, partial(self._exited, pid)), streams, self._new_leaf)
        self._new_leaf = None
        self._idle[pid] = spare
        if self._stopped is not None:
            self._starting = None
            self._discard(spare)
            return
        self._loop.add_reader(streams.control.fileno(), self._greeted, streams)
        self._hello_timer = self._loop.call_later(GREET_S, spare.process.signal, signal.SIGKILL)

    def _greeted(self, streams: OutputPipes) -> None:
        """A spare worker has sent hello. The message stays in the socket, for the flow that takes the worker."""
        self._arrived(streams)
        self._pause_s = FIRST_PAUSE_S
        if len(self._idle) == self.size:
            self._on_full(self.size)
        elif self._timer is None:
            self.refill()

    def _arrived(self, streams: OutputPipes) -> None:
        self._loop.remove_reader(streams.control.fileno())
        self._starting = None
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None

    def _exited(self, pid: int) -> None:
        """A spare worker has died before it was taken."""
        spare = self._idle.pop(pid)
        early = spare.streams is self._starting
        if early:
            self._arrived(spare.streams)
        self._reap(spare)
        if early:
            self._not_forked(f"spare worker {pid} died before it said hello")
        elif self._timer is None:
            self.refill()

    def _reap(self, spare: Spare) -> None:
        last = _last_output(spare.streams.stderr)
        spare.streams.close()
        self._log.warning("a spare worker ended", worker=spare.process.pid, how=str(spare.process.reap()), stderr=last)
        discard(spare.leaf)

    def _refused(self, reason: str) -> None:
        if self._starting is not None:
            self._starting.close()
            self._starting = None
        self._discard_new_leaf()
        self._not_forked(reason)

    def _not_forked(self, reason: str) -> None:
        if self._stopped is not None:
            self._stopped_if_empty()
            return
        self._log.warning("a spare worker could not be started", reason=reason, next_try_s=self._pause_s)
        self.refill(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    # -- the end -------------------------------------------------------------------------------------------

    def _discard(self, spare: Spare) -> None:
        process = spare.process
        if spare.streams is self._starting:
            self._arrived(spare.streams)
        del self._idle[process.pid]
        self.dismiss(spare)

    def dismiss(self, spare: Spare) -> None:
        """Kill a spare worker that was taken and cannot be used."""
        process = spare.process
        self._dying.add(process)
        process.on_exit = partial(self._gone, spare)
        process.signal(signal.SIGKILL)
        spare.streams.close()

    def _gone(self, spare: Spare) -> None:
        spare.process.reap()
        discard(spare.leaf)
        self._dying.discard(spare.process)
        self._stopped_if_empty()

    def _stopped_if_empty(self) -> None:
        if self._stopped is not None and not self._dying and self._starting is None:
            self._stopped.set()


def _ended(process: Process) -> bool:
    """Return whether the process is dead, also if the loop has not reported it yet."""
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _is_stopped(pid: int) -> bool:
    """Return whether SIGSTOP has stopped the process: it would get a name and do nothing."""
    found = stat(pid)
    return found is not None and found.state == "T"


def _last_output(stderr: int) -> str:
    os.set_blocking(stderr, False)
    try:
        return os.read(stderr, 4096).decode("utf-8", "backslashreplace").strip()
    except BlockingIOError:
        return ""
