"""The daemon put together: settings in, a running event loop, an exit code out.

Order of the start: state folder (so that there is one daemon), journal, control socket, launcher, the flows that are
wanted still; then the supervisor is told.
Order of the end: flows drain, clients are answered, the launcher ends, the socket and the lock go. A first SIGTERM or
SIGINT drains, a second one kills the workers.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import time
from functools import partial
from importlib import metadata
from pathlib import Path

import structlog
import uvloop

from chronetixd import memory
from chronetixd.bus import Bus
from chronetixd.cgroups import Groups, find_place
from chronetixd.client import Client
from chronetixd.core.flow_words import FlowState, StopMode
from chronetixd.events import Events
from chronetixd.flowrun import FlowRun, Services
from chronetixd.flows import Flows
from chronetixd.journal import Journal
from chronetixd.launch import Launcher
from chronetixd.logs import Logs
from chronetixd.notify import notify
from chronetixd.nursery import Nursery
from chronetixd.server import Server
from chronetixd.settings import Settings
from chronetixd.spares import Spares
from chronetixd.state import StateDir
from chronetixd.strays import Strays
from chronetixd.verbs import Context
from protocol.errors import ChronetixError, error

FAREWELL_S = 1.0
"""How long clients may take to read their last answers when the daemon ends."""


def version() -> str:
    """The installed version, ``0+source`` when run from a tree that is not installed."""
    try:
        return metadata.version("chronetix")
    except metadata.PackageNotFoundError:
        return "0+source"


class Daemon:
    """One run of the daemon."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self._loop = loop
        self._log = structlog.get_logger("chronetixd")
        self._name = f"chronetixd {version()}"
        self._events = Events()
        self._logs = Logs()
        self._state = StateDir(Path(settings.state_dir))
        self._server = Server(loop, Path(settings.socket), self._client)
        self._groups = Groups(loop, find_place(settings.cgroup), settings.state_dir)
        self._strays = Strays(loop, self._known_pids, lambda: self._launcher.announced)
        nursery = Nursery(self._groups, self._strays)
        self._launcher = Launcher(
            loop, on_ready=self._launcher_ready, on_lost=self._launcher_lost, on_announced=self._strays.look_soon
        )
        self._bus = Bus(loop, self._events)
        self._spares = Spares(loop, self._launcher, nursery, settings.spares, self._spares_full)
        services = Services(
            loop,
            self._launcher,
            self._spares,
            nursery,
            self._bus,
            self._events,
            self._logs,
            self._name,
            settings.max_frame,
        )
        self._journal = Journal(Path(settings.state_dir) / "journal", self._journal_trouble, loop.call_later)
        self._flows = Flows(services, settings.limits, self._journal)
        self._clients: set[Client] = set()
        self._stop_requests = 0
        self._stopping = asyncio.Event()
        self._ready = False
        self._starting: set[FlowRun] = set()
        self._failure: ChronetixError | None = None
        identity = {
            "daemon": version(),
            "pid": os.getpid(),
            "started_unix_ns": time.time_ns(),
            "state_dir": settings.state_dir,
            "socket": settings.socket,
        }
        self._ending = asyncio.Event()
        self._context = Context(self._flows, self._bus, self._events, self._logs, self._spares, identity, self._ending)

    async def run(self) -> None:
        """Until stopped. Raises ChronetixError when it cannot start."""
        self._state.claim()
        try:
            memory.begin()
            self._journal.open()
            self._server.listen()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self.request_stop)
            self._strays.start()
            self._groups.open()
            self._log.info(
                "control groups",
                group=str(self._groups.base or ""),
                enabled=self._groups.enabled,
                missing=self._groups.missing,
                reason=self._groups.reason,
            )
            self._launcher.start(self._known_pids)
            self._log.info("listening", socket=self.settings.socket, state_dir=self.settings.state_dir)
            self._restore()
            await self._stopping.wait()
            await self._wind_up()
        finally:
            self._server.close()
            self._bus.close()
            self._journal.close()
            self._strays.close()
            self._groups.close()
            self._state.release()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.remove_signal_handler(number)
        if self._failure is not None:
            raise self._failure
        self._log.info("stopped")

    def _restore(self) -> None:
        """Run again what is wanted still; the daemon is ready when that has started, or failed to."""
        left = self._journal.recover()
        for row in left.rotten:
            self._log.error("a row of the journal is not what was written, and is left out", row=row)
        self._starting = set(self._flows.restore(left.flows))
        for run in tuple(self._starting):
            self._log.info("a flow runs again", flow=run.name)
            run.watch(partial(self._restored, run))

    def _restored(self, run: FlowRun) -> None:
        if run.state not in (FlowState.VALIDATED, FlowState.STARTING) and run in self._starting:
            self._starting.discard(run)
            self._ready_if_all_is()

    def _journal_trouble(self, trouble: str) -> None:
        if trouble:
            self._log.error("the journal fails; what runs goes on, a crash would lose what it lacks", reason=trouble)
        else:
            self._log.info("the journal is complete again")
        self._events.emit("journal-failing" if trouble else "journal-complete", message=trouble)

    def request_stop(self) -> None:
        """First: drain everything and end. Again: kill what is left."""
        self._stop_requests += 1
        mode = StopMode.DRAIN if self._stop_requests == 1 else StopMode.KILL
        self._log.info("stopping", how=str(mode), flows=len(self._flows.living))
        notify("STOPPING=1")
        self._flows.stop_all(mode)
        self._stopping.set()

    async def _wind_up(self) -> None:
        await self._spares.stop()
        for run in self._flows.living:
            await _ended(self._loop, run)
        self._server.close()
        self._ending.set()
        farewells = [self._loop.create_task(client.farewell()) for client in self._clients]
        if farewells:
            await asyncio.wait(farewells, timeout=FAREWELL_S)
        for client in tuple(self._clients):
            client.abort()
        if farewells:
            await asyncio.wait(farewells)
        await self._launcher.stop()
        await self._strays.stop()

    def _known_pids(self) -> set[int]:
        """Children of ours that are somebody's."""
        return self._flows.worker_pids() | self._spares.pids | self._launcher.pids

    # -- clients -------------------------------------------------------------------------------------------

    def _client(self, sock: socket.socket) -> None:
        client = Client(
            self._loop,
            sock,
            self._context,
            daemon=self._name,
            hello_s=self.settings.hello_timeout,
            max_frame=self.settings.max_frame,
            on_closed=self._clients.discard,
        )
        self._clients.add(client)
        if len(self._clients) > self.settings.max_clients:
            client.refuse(error("quota-exceeded", what="another client", limit=self.settings.max_clients))

    # -- the launcher --------------------------------------------------------------------------------------

    def _launcher_ready(self, pid: int) -> None:
        self._events.emit("launcher-ready", launcher=pid)
        self._spares.refill()
        self._ready_if_all_is()

    def _ready_if_all_is(self) -> None:
        if self._ready or not self._launcher.ready or self._starting:
            return
        self._ready = True
        self._log.info("ready", launcher=self._launcher.pid)
        notify("READY=1")

    def _spares_full(self, count: int) -> None:
        self._events.emit("spares-ready", spares=count)

    def _launcher_lost(self, reason: str, was_ready: bool) -> None:
        """A launcher that never worked is a broken installation: end. One that did is replaced; nothing else stops."""
        self._events.emit("launcher-lost", message=reason)
        if not was_ready and not self._ready:
            self._failure = error("launcher-lost", reason=reason)
            self.request_stop()


async def _ended(loop: asyncio.AbstractEventLoop, run: FlowRun) -> None:
    done = loop.create_future()

    def look() -> None:
        if run.machine.ended and not done.done():
            done.set_result(None)

    unwatch = run.watch(look)
    look()
    await done
    unwatch()


def _raise_descriptor_limit() -> None:
    """A flow of n nodes needs some 10 n descriptors here: take as many as the hard limit gives."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(settings: Settings) -> None:
    """Run a daemon in this thread until it is stopped. Raises ChronetixError when it cannot start."""
    _raise_descriptor_limit()

    async def main() -> None:
        await Daemon(settings, asyncio.get_running_loop()).run()

    uvloop.run(main())
