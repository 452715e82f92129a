"""The launcher: the small process that forks workers for the daemon, and its replacement when it ends.

The launcher is started before anything else and has imported everything that a worker needs, so that starting a worker
costs a fork. Workers are children of the daemon; a launcher that ends takes no worker with it. Rules:

* A launcher that ends is replaced: at once, or after a growing pause when launchers end before they are ready. Requests
  wait for a launcher that is ready, and requests that the ended launcher had not answered are made again.
* Workers that the ended launcher had forked and not announced are killed first, so that no worker is started twice.
* At most ABREAST requests are open at a time. If a thousand workers are to be started, they occupy neither the loop nor
  the launcher's socket with descriptors; each answer makes room for the next request.
* A launcher without an open request is not watched. For each answer it has ANSWER_S (READY_S until it is ready). A
  launcher that is stopped, hangs or breaks the protocol is killed and replaced.
* After HOPELESS launchers in a row that were never ready, waiting requests are refused until a launcher is ready again.
  The daemon and running workers are not affected.

These rules are one class, because all of them decide about the same open requests.
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
"""The pause before a launcher is replaced that ended before it was ready: FIRST_PAUSE_S after the first, twice as long
after each further one, up to LONGEST_PAUSE_S."""

HOPELESS = 5
"""How many launchers in a row may end before they are ready, until requests are refused instead of waiting for the next
launcher."""

READY_S = 60.0
"""How long a launcher may take for its imports on a busy machine."""

ANSWER_S = 5.0
"""How long a launcher may take for one answer (a fork) before it counts as stopped or hanging."""

ABREAST = 32
"""How many requests may be open at a time: more than the launcher forks in one go, so that it never waits for the
daemon."""

NOT_INHERITED = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Environment variables that the service manager sets for the daemon alone; a worker must not notify it in the daemon's
name."""


@dataclass(frozen=True, slots=True, eq=False)
class SpawnRequest:
    """A request to start a worker. The launcher closes the descriptors. ``group`` is a descriptor of the folder of the
    worker's control group, or -1."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    control: int
    stdout: int
    stderr: int
    on_spawned: Callable[[int, int], None]
    """Called with the worker's pid and pidfd; the callee owns the pidfd."""
    on_failed: Callable[[str], None]
    on_lost: Callable[[str], None]
    """Called when the launcher ended before it had answered. A worker that it may have forked is killed; the request
    may be made again."""
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
    """When the launcher last did some work or was given work while it had none, by the loop's clock."""
    ready: bool = False
    asked: dict[int, SpawnRequest] = field(default_factory=dict)
    killed_because: str = ""
    """Why the daemon killed the launcher, or an empty string."""


class Launcher:
    """Keeps one launcher running. ``on_ready`` is called with the pid of each launcher that is ready, ``on_lost`` with
    the reason when one has ended, ``on_hopeless`` when launchers keep ending before they are ready. ``answer_s`` and
    ``ready_s`` stand for ANSWER_S and READY_S."""

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
        """``on_announced`` is called each time when ``announced`` becomes true."""
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
        """How many launchers in a row have ended before they were ready."""
        self._trouble = ""
        """How the last launcher ended; empty once the next one is ready."""
        self._deadline: asyncio.TimerHandle | None = None
        self._serial = 0
        self._orphans: set[Process] = set()
        self._orphans_due = False
        """Whether workers that an ended launcher had not announced are still to be searched for."""
        self._known: Callable[[], set[int]] = set
        self._stopped: asyncio.Event | None = None
        self._held: asyncio.Event | None = None
        """Set once all open requests are answered; new requests wait meanwhile."""
        self._asked_since = 0.0
        """Start of the oldest open request, or of an earlier one, in seconds since boot."""

    def start(self, known_pids: Callable[[], set[int]]) -> None:
        """Start a launcher. ``known_pids`` returns the daemon's children that belong to some part of it; after a
        launcher has ended, other children are killed."""
        self._known = known_pids
        self._launch()

    @property
    def pid(self) -> int:
        """The pid of the running launcher; 0 if none runs."""
        return self._running.process.pid if self._running else 0

    @property
    def pids(self) -> set[int]:
        """The launcher's process and the processes that it had not announced, as far as they are not reaped."""
        return {orphan.pid for orphan in self._orphans} | ({self.pid} if self._running else set())

    @property
    def announced(self) -> bool:
        """Whether the launcher has announced every process that it has forked."""
        return self._running is None or not self._running.asked

    @property
    def ready(self) -> bool:
        """Whether a launcher runs that has imported everything."""
        return self._running is not None and self._running.ready

    @property
    def hopeless(self) -> str:
        """Why requests are refused now instead of waiting; empty if they are not refused."""
        if self._failures < HOPELESS:
            return ""
        reason = f"{self._failures} launchers in a row ended before they were ready, the last so: {self._trouble}"
        return str(error("launcher-lost", reason=reason))

    @property
    def trouble(self) -> str:
        """What requests wait for, as a sentence; empty if they do not wait for a launcher."""
        return "" if self.ready or not self._trouble else f"the next launcher is not ready: {self._trouble}"

    def spawn(self, request: SpawnRequest) -> None:
        """Have a worker started. Ends with exactly one of the request's callbacks, unless :meth:`withdraw` returns
        True."""
        self._waiting.append(request)
        if self.hopeless:
            self._loop.call_soon(self._refuse_waiting)
        else:
            self._ask_waiting()

    def withdraw(self, request: SpawnRequest) -> bool:
        """Withdraw a request. Returns True if the launcher was not asked yet: then none of the request's callbacks is
        called."""
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
        """Wait until all open requests are answered, then end the launcher. New requests wait until :meth:`release`."""
        self._held = asyncio.Event()
        if not self.announced:
            await self._held.wait()
        await self._end()

    def release(self) -> None:
        """Start a launcher again after :meth:`hold`. Idempotent."""
        if self._held is not None:
            self._held = self._stopped = None
            if self._running is None:
                self._launch()
            else:
                self._ask_waiting()

    async def stop(self) -> None:
        """Refuse waiting requests, end the launcher and wait for its end. Workers go on."""
        self._refuse_waiting("the daemon is stopping")
        await self._end()

    async def _end(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._stopped = asyncio.Event()
        if self._running is not None:  # SIGKILL also ends a launcher that is stopped or hangs; it has no state
            self._running.connection.close()
            self._running.process.signal(signal.SIGKILL)
        if self._running is not None or self._orphans:
            await self._stopped.wait()

    # -- one launcher --------------------------------------------------------------------------------------

    def _launch(self) -> None:
        """Start a launcher. If descriptors or processes have run out, try again later."""
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
        """Give the launcher waiting requests, if one is ready and nothing is left of the launcher before it."""
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

    # -- a launcher that does not answer -------------------------------------------------------------------

    def _arm(self, running: _Running, seconds: float) -> None:
        """Begin to watch the launcher, which has work to do, until :meth:`_disarm`."""
        running.active_at = self._loop.time()
        self._disarm()
        self._deadline = self._loop.call_later(seconds, self._check_answer, running, seconds)

    def _disarm(self) -> None:
        """Stop watching: the launcher has nothing to do, so no timer runs."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _check_answer(self, running: _Running, seconds: float) -> None:
        """Kill the launcher if it has sent nothing for ``seconds``. Messages that have arrived are read first, because
        the daemon itself may have been stopped."""
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
        """Kill the launcher because its connection has ended: without a connection it is of no use."""
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

    # -- workers that an ended launcher had not announced --------------------------------------------------

    def _kill_orphans(self, asked: int) -> None:
        """Kill the workers that the ended launcher had forked and not announced: children of the daemon that no part of
        it knows and that started after ``asked`` (clock ticks since boot). Older children have another origin."""
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
        """Kill them once everything that the present launcher has forked is announced, so that none of it is mistaken
        for an orphan."""
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
    """Return the environment that the launcher, and so every worker, inherits."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return {**kept, "CHRONETIX_FD": str(control)}
