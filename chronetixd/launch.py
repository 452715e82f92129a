"""The launcher: the small process that forks workers for us, and its replacement when it dies.

It is started before anything else and has everything imported, so that a worker costs a fork. Workers are our own
children; a launcher that dies takes none with it. Requests that it had not answered then fail, later ones wait for its
successor, which is started at once, and after a growing pause when launchers keep dying before they are ready.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import structlog

from chronetixd.connection import Connection
from chronetixd.core.worker import Exit
from chronetixd.output import Output
from chronetixd.pidfd import Process
from chronetixd.proc import children, seen
from chronetixd.startpath import SAFE
from chronetixd.want import AGAIN_S, wanting
from protocol.errors import ChronetixError, error
from protocol.messages import LauncherReady, Message, Spawn, Spawned, SpawnFailed

FromLauncher = LauncherReady | Spawned | SpawnFailed
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
"""Between launchers that die before they are ready."""


NOT_INHERITED = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What the supervisor tells the daemon alone; a worker must not speak in its name."""


@dataclass(frozen=True, slots=True)
class Request:
    """A worker to start. Its descriptors are the launcher's to close; ``group`` is one of the folder of its control
    group, -1 for none."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    control: int
    stdout: int
    stderr: int
    on_spawned: Callable[[int, int], None]
    """Called with pid and pidfd, which is then the callee's."""
    on_failed: Callable[[str], None]
    spare: bool = False
    group: int = -1
    data_limit: int = 0


@dataclass(slots=True)
class _Running:
    """One launcher process."""

    process: Process
    connection: Connection
    output: Output
    ready: bool = False
    asked: dict[int, Request] = field(default_factory=dict)


class Launcher:
    """Keeps one launcher running. ``on_ready`` and ``on_lost`` (with a reason) tell of each."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_ready: Callable[[int], None],
        on_lost: Callable[[str, bool], None],
        on_announced: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_announced`` is called when ``announced`` has become true."""
        self._loop = loop
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_announced = on_announced
        self._log = structlog.get_logger("chronetixd.launcher")
        self._running: _Running | None = None
        self._waiting: list[Request] = []
        self._retry: asyncio.TimerHandle | None = None
        self._pause_s = FIRST_PAUSE_S
        self._serial = 0
        self._strays: set[Process] = set()
        self._known: Callable[[], set[int]] = set
        self._stopped: asyncio.Event | None = None
        self._held: asyncio.Event | None = None
        """Set once everything is answered; what is asked for meanwhile waits."""
        self._asked_since = 0.0
        """Seconds after boot of the oldest request that is not answered, or of an earlier one."""

    def start(self, known_pids: Callable[[], set[int]]) -> None:
        """Start it. ``known_pids`` names our children that are somebody's; others found after a crash are strays."""
        self._known = known_pids
        self._launch()

    @property
    def pid(self) -> int:
        """Of the launcher that runs now, 0 without one."""
        return self._running.process.pid if self._running else 0

    @property
    def pids(self) -> set[int]:
        """Processes that are ours and not reaped."""
        return {stray.pid for stray in self._strays} | ({self.pid} if self._running else set())

    @property
    def announced(self) -> bool:
        """Everything that was forked for us is known to us."""
        return self._running is None or not self._running.asked

    @property
    def ready(self) -> bool:
        """It runs and has everything imported."""
        return self._running is not None and self._running.ready

    def spawn(self, request: Request) -> None:
        """Have a worker started; ends in one of the request's two calls."""
        if self._running is None or self._held is not None:
            self._waiting.append(request)
            return
        self._serial += 1
        message = Spawn(
            id=self._serial,
            name=request.name,
            argv=list(request.argv),
            env=dict(request.env),
            cwd=request.cwd,
            spare=request.spare,
            cgroup=request.group >= 0,
            data_limit=request.data_limit,
        )
        if not self._running.asked:
            self._asked_since = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._running.asked[self._serial] = request
        descriptors = (request.control, request.stdout, request.stderr, request.group)
        self._running.connection.send(message, descriptors[: 3 + message.cgroup], give=True)

    async def hold(self) -> None:
        """Wait until everything is answered that was asked for, then end the launcher. What is asked for from now on
        waits until :meth:`release`."""
        self._held = asyncio.Event()
        if not self.announced:
            await self._held.wait()
        await self._end()

    def release(self) -> None:
        """Have a launcher again after :meth:`hold`. Idempotent."""
        if self._held is not None:
            self._held = self._stopped = None
            if self._running is None:
                self._launch()
            else:
                self._ask_waiting()

    async def stop(self) -> None:
        """End the launcher and wait for it. Workers are not touched."""
        if self._retry is not None:
            self._retry.cancel()
        for request in self._waiting:
            _close_all(request.control, request.stdout, request.stderr, request.group)
        self._refuse(self._waiting, "the daemon is stopping")
        self._waiting = []
        await self._end()

    async def _end(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._stopped = asyncio.Event()
        if self._running is not None:
            self._running.connection.close()
        if self._running is not None or self._strays:
            await self._stopped.wait()

    # -- one launcher --------------------------------------------------------------------------------------

    def _launch(self) -> None:
        """Start one; what it cannot be given now (descriptors, a process) it is given later."""
        self._retry = None
        with ExitStack() as opened:
            try:
                ours, theirs = (opened.enter_context(sock) for sock in socket.socketpair(socket.AF_UNIX))
                read_end, write_end = os.pipe()
                opened.callback(os.close, write_end)
                opened.callback(os.close, read_end)
                popen = subprocess.Popen(
                    [sys.executable, SAFE, "-m", "nodeworker.launcher"],
                    stdin=subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=write_end,
                    env=_environment(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
                opened.callback(popen.wait)
                opened.callback(popen.kill)
                pidfd = os.pidfd_open(popen.pid)
            except OSError as reason:
                failed = str(reason)
            else:
                opened.pop_all()
                theirs.close()
                os.close(write_end)
                self._adopt(popen, pidfd, ours, read_end)
                return
        self._failed_to_launch(failed)

    def _adopt(self, popen: subprocess.Popen[bytes], pidfd: int, ours: socket.socket, read_end: int) -> None:
        popen.returncode = 0  # its exit status is taken through its pidfd, not by subprocess
        process = Process(self._loop, popen.pid, pidfd, self._exited)
        connection = Connection(
            self._loop, ours, FromLauncher, on_message=self._message, on_end=partial(self._broken, process)
        )
        output = Output(self._loop, read_end, partial(self._printed, popen.pid), lambda: None)
        self._running = _Running(process, connection, output)
        connection.start()
        self._ask_waiting()

    def _ask_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            self.spawn(request)

    def _message(self, message: Message, descriptors: list[int]) -> None:
        assert self._running is not None
        match message:
            case LauncherReady(pid=pid):
                self._running.ready = True
                self._pause_s = FIRST_PAUSE_S
                self._on_ready(pid)
            case Spawned(id=number, pid=pid):
                request = self._running.asked.pop(number, None)
                if request is None:
                    raise error("malformed-message", type="spawned", reason=f"spawn {number} was not asked for")
                request.on_spawned(pid, descriptors.pop())
                self._answered()
            case SpawnFailed(id=number, message=text):
                request = self._running.asked.pop(number, None)
                if request is None:
                    raise error("malformed-message", type="spawn-failed", reason=f"spawn {number} was not asked for")
                request.on_failed(text)
                self._answered()

    def _answered(self) -> None:
        if self.announced:
            self._on_announced()
            if self._held is not None:
                self._held.set()

    def _printed(self, pid: int, line: str) -> None:
        self._log.warning(line, launcher=pid)

    def _broken(self, process: Process, fault: ChronetixError | None) -> None:
        """The connection ended: the process has, or is of no use any more."""
        if fault is not None:
            self._log.error("the launcher broke the protocol", reason=str(fault))
        process.signal(signal.SIGKILL)

    def _exited(self) -> None:
        running = self._running
        assert running is not None
        if self._stopped is None:
            running.connection.drain_input()
        self._running = None
        running.output.finish()
        ended = running.process.reap()
        running.connection.close()
        if self._stopped is not None:
            self._stopped_if_empty()
            return
        if running.asked:
            self._kill_strays(int(self._asked_since * os.sysconf("SC_CLK_TCK")))
        self._lost(running, ended)

    def _lost(self, running: _Running, ended: Exit) -> None:
        last = f"; its last line: {running.output.tail[-1]}" if running.output.tail else ""
        reason = f"the launcher (pid {running.process.pid}) {ended}{last}"
        self._refuse(running.asked.values(), reason)
        if self._held is not None:
            self._held.set()
        if running.ready:
            self._on_lost(reason, True)
            self._launch()
        else:
            self._failed_to_launch(reason)

    def _failed_to_launch(self, reason: str) -> None:
        self._on_lost(reason, False)
        if self._stopped is None:
            self._retry = self._loop.call_later(self._pause_s, self._launch)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    @staticmethod
    def _refuse(requests: Iterable[Request], reason: str) -> None:
        for request in tuple(requests):
            request.on_failed(reason)

    # -- strays --------------------------------------------------------------------------------------------

    def _kill_strays(self, asked: int) -> None:
        """Workers that the dead launcher had forked but not told of are our children and nobody's: end them. They are
        younger than the request of ``asked``; what is older has another story."""
        known = self._known() | self.pids
        try:
            for pid in children(os.getpid()):
                found = None if pid in known else seen(pid)
                if found is not None and found.started >= asked:
                    self._kill_stray(pid)
        except OSError as reason:
            if not wanting(reason):
                raise
            self._loop.call_later(AGAIN_S, self._kill_strays_later, asked)

    def _kill_strays_later(self, asked: int) -> None:
        """As soon as nothing that the present launcher has forked can be mistaken for one."""
        if self.announced:
            self._kill_strays(asked)
        else:
            self._loop.call_later(AGAIN_S, self._kill_strays_later, asked)

    def _kill_stray(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        stray = Process(self._loop, pid, pidfd, lambda: self._reap_stray(stray))
        self._strays.add(stray)
        stray.signal(signal.SIGKILL)

    def _reap_stray(self, stray: Process) -> None:
        self._strays.discard(stray)
        stray.reap()
        self._log.warning("a worker that the launcher had not announced was ended", worker=stray.pid)
        self._stopped_if_empty()

    def _stopped_if_empty(self) -> None:
        if self._stopped is not None and self._running is None and not self._strays:
            self._stopped.set()


def _close_all(*descriptors: int) -> None:
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)


def _environment(control: int) -> dict[str, str]:
    """What the launcher, and so every worker, inherits."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return {**kept, "CHRONETIX_FD": str(control)}
