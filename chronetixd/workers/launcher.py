"""The launcher: the small process that forks workers for us, and its replacement when it dies.

It is started before anything else and has everything imported, so that a worker costs a fork. Workers are our own
children; a launcher that dies takes none with it. Rules:

* it is a child like any other: whenever it dies its successor is started, at once, or after a growing pause when
  launchers end before they are ready; starts wait for one that is ready, and are asked for again with the next;
* what it had forked and not told of is ended first, so that nothing is started twice;
* it is asked for at most ABREAST workers at a time, so that a thousand that are to start neither keep the loop nor fill
  its socket with descriptors; the next ones as it answers;
* it is asked nothing when it has nothing to do, and has ANSWER_S for each answer (READY_S until it is ready): one that
  is stopped, hangs or answers garbage is killed, and that is a death like any other;
* after HOPELESS launchers in a row that were never ready whoever waits is told so, until one is ready again. The daemon
  and what runs go on.

All of these are about the requests that are open, which is why they are one class.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import structlog

from chronetix.protocol.errors import ChronetixError, LocalError, error
from chronetix.protocol.messages import LauncherReady, Spawn, Spawned, SpawnFailed, WireMessage
from chronetixd.core.worker import Exit
from chronetixd.linux.exhaustion import AGAIN_S, wanting
from chronetixd.linux.pidfd import Process
from chronetixd.linux.proc import children, seen
from chronetixd.loop.connection import Connection
from chronetixd.startpath import SAFE
from chronetixd.workers.output import Output

FromLauncher = LauncherReady | Spawned | SpawnFailed
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
"""Between launchers that die before they are ready."""

HOPELESS = 5
"""Launchers in a row that end before they are ready, until starts are refused instead of waiting for the next one."""

READY_S = 60.0
"""How long a launcher may take for its imports, on a machine that is busy with others."""

ANSWER_S = 5.0
"""How long it may take for one answer, a fork, before it counts as stopped or hanging."""

ABREAST = 32
"""Workers that it is asked for at a time: more than it forks in one go, so that it never waits for us."""

NOT_INHERITED = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What the supervisor tells the daemon alone; a worker must not speak in its name."""


@dataclass(frozen=True, slots=True, eq=False)
class SpawnRequest:
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
    on_lost: Callable[[str], None]
    """The launcher died before it had answered. A worker that it may have forked is ended; asking again is allowed."""
    spare: bool = False
    user: str = ""
    """Whose the process is to be; empty for the daemon's user."""
    group: int = -1
    data_limit: int = 0


@dataclass(slots=True)
class _Running:
    """One launcher process."""

    process: Process
    connection: Connection
    output: Output
    active_at: float
    """When it last had something to do and did it, or began, by the loop's clock."""
    ready: bool = False
    asked: dict[int, SpawnRequest] = field(default_factory=dict)
    killed_because: str = ""
    """Why it was killed."""


class Launcher:
    """Keeps one launcher running. ``on_ready`` and ``on_lost`` (with a reason) tell of each, ``on_hopeless`` that none
    gets ready; ``answer_s`` and ``ready_s`` are ANSWER_S and READY_S."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_ready: Callable[[int], None],
        on_lost: Callable[[str], None],
        on_hopeless: Callable[[str], None] = lambda _reason: None,
        on_announced: Callable[[], None] = lambda: None,
        answer_s: float = ANSWER_S,
        ready_s: float = READY_S,
    ) -> None:
        """``on_announced`` is called when ``announced`` has become true."""
        self._loop = loop
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_hopeless = on_hopeless
        self._on_announced = on_announced
        self._answer_s = answer_s
        self._ready_s = ready_s
        self._log = structlog.get_logger("chronetixd.launcher")
        self._running: _Running | None = None
        self._waiting: deque[SpawnRequest] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._pause_s = FIRST_PAUSE_S
        self._failures = 0
        """Launchers in a row that have ended before they were ready."""
        self._trouble = ""
        """How the last one has ended, until the next is ready."""
        self._deadline: asyncio.TimerHandle | None = None
        self._serial = 0
        self._orphans: set[Process] = set()
        self._orphans_due = False
        """Strays are still to be looked for."""
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
        return {orphan.pid for orphan in self._orphans} | ({self.pid} if self._running else set())

    @property
    def announced(self) -> bool:
        """Everything that was forked for us is known to us."""
        return self._running is None or not self._running.asked

    @property
    def ready(self) -> bool:
        """It runs and has everything imported."""
        return self._running is not None and self._running.ready

    @property
    def hopeless(self) -> str:
        """Why no worker can be started now, and none waits to be; empty when one may."""
        if self._failures < HOPELESS:
            return ""
        reason = f"{self._failures} launchers in a row ended before they were ready, the last so: {self._trouble}"
        return str(error("launcher-lost", reason=reason))

    @property
    def trouble(self) -> str:
        """What starts wait for, as a sentence; empty when they do not."""
        return "" if self.ready or not self._trouble else f"the next launcher is not ready: {self._trouble}"

    def spawn(self, request: SpawnRequest) -> None:
        """Have a worker started; ends in one of the request's calls, but for :meth:`withdraw`."""
        self._waiting.append(request)
        if self.hopeless:
            self._loop.call_soon(self._refuse_waiting)
        else:
            self._ask_waiting()

    def withdraw(self, request: SpawnRequest) -> bool:
        """It is not wanted any more. True when it was not asked for yet, and now is not: none of its calls comes."""
        if request not in self._waiting:
            return False
        self._waiting.remove(request)
        _close_all(request.control, request.stdout, request.stderr, request.group)
        return True

    def _ask(self, running: _Running, request: SpawnRequest) -> None:
        self._serial += 1
        message = Spawn(
            id=self._serial,
            name=request.name,
            argv=list(request.argv),
            env=dict(request.env),
            cwd=request.cwd,
            user=request.user,
            spare=request.spare,
            cgroup=request.group >= 0,
            data_limit=request.data_limit,
        )
        if not running.asked:
            self._asked_since = time.clock_gettime(time.CLOCK_BOOTTIME)
            self._arm(running, self._answer_s)
        running.asked[self._serial] = request
        descriptors = (request.control, request.stdout, request.stderr, request.group)
        running.connection.send(message, descriptors[: 3 + message.cgroup], give=True)

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
        self._refuse_waiting("the daemon is stopping")
        await self._end()

    async def _end(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._stopped = asyncio.Event()
        if self._running is not None:  # it may be stopped, or hang: it has nothing to lose
            self._running.connection.close()
            self._running.process.signal(signal.SIGKILL)
        if self._running is not None or self._orphans:
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
                    [sys.executable, SAFE, "-m", "chronetix.nodeworker.process.launcher"],
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
        self._running = _Running(process, connection, output, self._loop.time())
        connection.start()
        self._arm(self._running, self._ready_s)

    def _ask_waiting(self) -> None:
        """Ask for what waits, as far as there is a launcher to ask, and nothing is left of the one before."""
        running = self._running
        if running is None or not running.ready or self._held is not None or self._orphans or self._orphans_due:
            return
        while self._waiting and len(running.asked) < ABREAST:
            self._ask(running, self._waiting.popleft())

    def _refuse_waiting(self, reason: str = "") -> None:
        reason = reason or self.hopeless
        if not reason:
            return
        waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            _close_all(request.control, request.stdout, request.stderr, request.group)
            request.on_failed(reason)

    # -- one that does not answer --------------------------------------------------------------------------

    def _arm(self, running: _Running, seconds: float) -> None:
        """It has something to do: look after it until :meth:`_rest`."""
        running.active_at = self._loop.time()
        self._disarm()
        self._deadline = self._loop.call_later(seconds, self._check_answer, running, seconds)

    def _disarm(self) -> None:
        """Nothing is expected of it: no timer runs."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _check_answer(self, running: _Running, seconds: float) -> None:
        """Kill it if it has said nothing for so long. What has come meanwhile counts: we may have been stopped."""
        self._deadline = None
        running.connection.drain_input()
        if running is not self._running or self._deadline is not None or (running.ready and not running.asked):
            return
        left = running.active_at + seconds - self._loop.time()
        if left > 0:
            self._deadline = self._loop.call_later(left, self._check_answer, running, seconds)
            return
        what = "forked no worker" if running.ready else "was not ready"
        running.killed_because = f"{what} for {seconds:g} s, as if it were stopped or hung, and was killed"
        self._log.error("the launcher does not answer", launcher=running.process.pid, reason=running.killed_because)
        running.process.signal(signal.SIGKILL)

    def _message(self, message: WireMessage, descriptors: list[int]) -> None:
        assert self._running is not None
        match message:
            case LauncherReady(pid=pid):
                self._running.ready = True
                self._pause_s, self._failures, self._trouble = FIRST_PAUSE_S, 0, ""
                self._disarm()
                self._on_ready(pid)
                self._ask_waiting()
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
        if self._running is not None:
            self._running.active_at = self._loop.time()
        self._ask_waiting()
        if self.announced:
            self._disarm()
            self._on_announced()
            if self._held is not None:
                self._held.set()

    def _printed(self, pid: int, line: str) -> None:
        self._log.warning(line, launcher=pid)

    def _broken(self, process: Process, fault: ChronetixError | None) -> None:
        """The connection ended: the process has, or is of no use any more."""
        if fault is not None:
            lies = not isinstance(fault, LocalError)
            text = "the launcher broke the protocol" if lies else "the launcher could not be served and is replaced"
            self._log.error(text, reason=str(fault))
        process.signal(signal.SIGKILL)

    def _exited(self) -> None:
        running = self._running
        assert running is not None
        if self._stopped is None:
            running.connection.drain_input()
        self._running = None
        self._disarm()
        running.output.finish()
        ended = running.process.reap()
        running.connection.close()
        if self._stopped is not None:
            self._stopped_if_empty()
            return
        if running.asked:
            self._kill_orphans(int(self._asked_since * os.sysconf("SC_CLK_TCK")))
        self._lost(running, ended)

    def _lost(self, running: _Running, ended: Exit) -> None:
        last = f"; its last line: {running.output.tail[-1]}" if running.output.tail else ""
        reason = f"the launcher (pid {running.process.pid}) {running.killed_because or ended}{last}"
        asked = tuple(running.asked.values())
        if self._held is not None:
            self._held.set()
        if running.ready:
            self._trouble = reason
            self._on_lost(reason)
            self._launch()
        else:
            self._failed_to_launch(reason)
        for request in asked:
            request.on_lost(reason)

    def _failed_to_launch(self, reason: str) -> None:
        self._failures += 1
        self._trouble = reason
        self._on_lost(reason)
        if self._stopped is None:
            self._retry = self._loop.call_later(self._pause_s, self._launch)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if self._failures == HOPELESS:
            self._on_hopeless(self.hopeless)
        self._refuse_waiting()

    # -- strays --------------------------------------------------------------------------------------------

    def _kill_orphans(self, asked: int) -> None:
        """Workers that the dead launcher had forked but not told of are our children and nobody's: end them. They are
        younger than the request of ``asked``; what is older has another story."""
        known = self._known() | self.pids
        self._orphans_due = False
        try:
            for pid in children(os.getpid()):
                found = None if pid in known else seen(pid)
                if found is not None and found.started >= asked:
                    self._kill_orphan(pid)
        except OSError as reason:
            if not wanting(reason):
                raise
            self._orphans_due = True
            self._loop.call_later(AGAIN_S, self._kill_orphans_later, asked)

    def _kill_orphans_later(self, asked: int) -> None:
        """As soon as nothing that the present launcher has forked can be mistaken for one."""
        if self.announced:
            self._kill_orphans(asked)
            self._ask_waiting()
        else:
            self._loop.call_later(AGAIN_S, self._kill_orphans_later, asked)

    def _kill_orphan(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        orphan = Process(self._loop, pid, pidfd, lambda: self._reap_orphan(orphan))
        self._orphans.add(orphan)
        orphan.signal(signal.SIGKILL)

    def _reap_orphan(self, orphan: Process) -> None:
        self._orphans.discard(orphan)
        orphan.reap()
        self._log.warning("a worker that the launcher had not announced was ended", worker=orphan.pid)
        self._stopped_if_empty()
        self._ask_waiting()

    def _stopped_if_empty(self) -> None:
        if self._stopped is not None and self._running is None and not self._orphans:
            self._stopped.set()


def _close_all(*descriptors: int) -> None:
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)


def _environment(control: int) -> dict[str, str]:
    """What the launcher, and so every worker, inherits."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return {**kept, "CHRONETIX_FD": str(control)}
