"""The daemon put together: settings in, a running event loop, an exit code out.

Order of the start: state folder (so that there is one daemon), journal, audit log, control socket, launcher, the flows
that are wanted still; then the supervisor is told. Order of the end: flows drain, clients are answered, the launcher
ends, the socket and the lock go. A first SIGTERM or SIGINT drains, a second one kills the workers; SIGHUP reads the
configuration again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvloop

from chronetix.protocol.errors import ChronetixError, error
from chronetixd.bus.event_bus import Bus
from chronetixd.control.admission import Admission, rules_of, socket_group
from chronetixd.control.server import Server
from chronetixd.control.verbs import Context
from chronetixd.control.views import Figures
from chronetixd.core.flow_messages import FlowState, StopMode
from chronetixd.daemon.status import Report
from chronetixd.dataplane import shm_support
from chronetixd.doctor import Place, Side, examine
from chronetixd.flows.apply import Rollouts
from chronetixd.flows.context import Services
from chronetixd.flows.registry import Flows
from chronetixd.flows.run import FlowRun
from chronetixd.flows.worker_records import lives_on
from chronetixd.linux import fd_reserve
from chronetixd.linux.cgroups import Groups, find_place
from chronetixd.loop import garbage
from chronetixd.loop.aside import Aside
from chronetixd.loop.inspection import Inspection
from chronetixd.loop.turns import Turns
from chronetixd.packing import Bag, Unbag
from chronetixd.records import logs
from chronetixd.records.audit import Audit
from chronetixd.records.events import Events
from chronetixd.records.exits import Deaths
from chronetixd.records.logfiles import LogFiles
from chronetixd.records.logs import Logs
from chronetixd.settings import Configured, Settings, Source, keep_fixed
from chronetixd.store.descriptor_names import Stored
from chronetixd.store.journal import Journal, Recovered
from chronetixd.store.state_dir import StateDir
from chronetixd.systemd.activation import Received
from chronetixd.systemd.fdstore import Store, limit_of
from chronetixd.systemd.notify import Supervisor
from chronetixd.systemd.watchdog import of_environment
from chronetixd.upgrade import rehearsal
from chronetixd.upgrade.arrival import Arrival, configured_by
from chronetixd.upgrade.parts import Parts
from chronetixd.upgrade.sequence import Upgrade
from chronetixd.upgrade.snapshot import Snapshot, Upgraded
from chronetixd.workers.launcher import Launcher
from chronetixd.workers.orphans import Strays
from chronetixd.workers.pool import Spares
from chronetixd.workers.pump import Pump
from chronetixd.workers.sandbox import Nursery

EXIT_BROKEN = 70
"""Exit code (sysexits.h: EX_SOFTWARE) of a daemon that does not know any more what it was doing."""

FAREWELL_S = 1.0
"""How long clients may take to read their last answers when the daemon ends."""

CHECKS, READS = 4, 4
"""Flows that are checked at once, and logs that are read at once, before others have to wait for the files of these."""

SWITCH_S = 0.0005
"""How long the loop waits for a thread of ours that computes; there are several such waits in one answer."""

PARTING_S = 0.05
"""The same when the next image takes over, and everybody waits for that."""


def version() -> str:
    """The installed version, ``0+source`` when run from a tree that is not installed. (Slow to find out.)"""
    from importlib import metadata

    try:
        return metadata.version("chronetix")
    except metadata.PackageNotFoundError:
        return "0+source"


class Daemon:
    """One run of the daemon. ``received`` is what the supervisor handed over; ``source`` reads the configuration."""

    def __init__(
        self,
        configured: Configured,
        received: Received,
        source: Source,
        loop: asyncio.AbstractEventLoop,
        version: str,
    ) -> None:
        settings = configured.settings
        self._configured = configured
        self._received = received
        self._source = source
        self._loop = loop
        self._log = structlog.get_logger("chronetixd")
        self._name = f"chronetixd {version}"
        self._events = Events()
        self._log_files = LogFiles(
            Path(settings.state_dir) / "logs",
            time.time_ns(),
            settings.log_file_bytes,
            settings.log_files,
            self._logs_trouble_soon,
        )
        self._logs = Logs(files=self._log_files)
        self._state = StateDir(Path(settings.state_dir))
        self._audit = Audit(loop, self._state.path, settings.audit_bytes, self._events, settings.audit_reads)
        self._server = Server(loop, Path(settings.socket), self._client)
        self._watchdog = of_environment(loop)
        self._groups = Groups(loop, find_place(settings.cgroup), settings.state_dir)
        self._turns = Turns(loop)
        self._garbage = garbage.of(loop)
        self._strays = Strays(loop, self._known_pids, lambda: self._launcher.announced, self._turns)
        self._pump = Pump(loop)
        self._inspection = Inspection(loop)
        nursery = Nursery(self._groups, self._strays, self._pump, self._turns)
        self._launcher = Launcher(
            loop,
            on_ready=self._launcher_ready,
            on_lost=self._launcher_lost,
            on_hopeless=self._launcher_hopeless,
            on_announced=self._strays.look_soon,
        )
        self._bus = Bus(loop, self._events)
        self._spares = Spares(loop, self._launcher, nursery, settings.spares, self._spares_full)
        self._scribe = scribe = Aside(loop, "chronetix-journal")
        self._journal = Journal(
            Path(settings.state_dir) / "journal",
            self._journal_trouble,
            loop.call_later,
            scribe.do,
            scribe.post,
            scribe.settle,
        )
        self._supervisor = Supervisor(loop.call_later)
        self._store = Store(self._supervisor, limit_of(os.environ))
        self._disk = Aside(loop, "chronetix-disk")
        self._looks, self._figures = Aside(loop, "chronetix-looks"), Figures()
        self._reads = Aside(loop, "chronetix-reads", threads=READS)
        self._checks = Aside(loop, "chronetix-checks", threads=CHECKS)
        self._deaths = Deaths(
            Path(settings.state_dir) / "deaths",
            lambda trouble: self._disk.post(partial(self._deaths_trouble, trouble)),
            lambda damage: self._disk.post(partial(self._deaths_damage, damage)),
            self._disk.do,
        )
        services = Services(
            loop,
            self._launcher,
            self._spares,
            nursery,
            self._bus,
            self._events,
            self._logs,
            self._deaths,
            self._disk,
            self._checks,
            self._journal,
            self._store,
            lambda: str(self._server.path),
            self._name,
            settings.max_frame,
            lambda: self.settings.held_warning,
        )
        self._flows = Flows(services, settings.limits, self._journal)
        self._report = Report(loop, self._supervisor, self._flows, self._spares, self._events)
        self._stop_requests = 0
        self._stopping = asyncio.Event()
        self._ready = False
        self._starting: set[FlowRun] = set()
        self._left = Recovered((), (), ())
        """What the journal had at the start, until it is restored."""
        self._identity: dict[str, Any] = {
            "daemon": version,
            "pid": os.getpid(),
            "started_unix_ns": time.time_ns(),
            "state_dir": settings.state_dir,
            "socket": settings.socket,
            "upgraded": None,
        }
        self._ending = asyncio.Event()
        self._parts = Parts(
            self._state,
            self._server,
            self._groups,
            self._strays,
            self._flows,
            self._bus,
            self._events,
            self._logs,
            self._log_files,
            self._audit,
            self._deaths,
            self._disk,
            self._journal,
            self._supervisor,
            self._pump,
        )
        self._upgrade = Upgrade(loop, self, version)
        self._context = Context(
            self._flows,
            Rollouts(self._flows, services),
            self._bus,
            self._events,
            self._logs,
            self._audit,
            self._spares,
            self._identity,
            self._journal,
            self._examine,
            lambda: self._configured.shown(),
            self._reads,
            self._look_at,
            self._upgrade,
            self._ending,
        )
        self._admission = Admission(loop, self._context, self._audit, settings, self._name, self._inspection)

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self._configured.settings

    async def _look_at(self, pids: Collection[int]) -> dict[int, dict[str, float]]:
        """What /proc says of them."""
        found = await self._looks.ask(lambda: self._figures.of(pids))
        self._looks.do(lambda: self._figures.refresh(pids))
        return found

    async def run(self, arrival: Arrival | None = None) -> None:
        """Until stopped; with ``arrival`` where the image before this one has stopped. Raises ChronetixError when it
        cannot start."""
        if arrival is None:
            self._state.claim()
        else:
            with arrival:
                self.unpack(arrival.snapshot, arrival.bag)
        try:
            self._begin() if arrival is None else self._go_on(arrival)
            await self._stopping.wait()
            await self._wind_up()
        finally:
            self._garbage.end()
            self._server.close()
            self._bus.close()
            self._journal.close()
            self._scribe.close(0)
            self._supervisor.close()
            self._strays.close()
            self._pump.close()
            self._log_files.close()
            self._disk.close()
            self._looks.close()
            self._checks.close(0)
            self._reads.close(0)
            self._groups.close()
            self._watchdog.stop()
            self._report.stop()
            self._audit.close()
            self._state.release()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._loop.remove_signal_handler(number)
        self._log.info("stopped")

    def _begin(self) -> None:
        """As the first image of this process."""
        self._handle_signals()
        shm_support.begin()
        self._journal.open()
        self._audit.open()
        self._listen()
        self._watchdog.start()
        self._report.starting()
        self._strays.start()
        self._left = self._journal.recover()
        self._groups.open(keep=(life.pid for life in self._left.lives if lives_on(life)))
        self._log.info(
            "control groups",
            group=str(self._groups.base or ""),
            enabled=self._groups.enabled,
            missing=self._groups.missing,
            reason=self._groups.reason,
        )
        self._garbage.begin()
        self._launcher.start(self._known_pids)
        self._log.info("listening", socket=str(self._server.path), state_dir=self.settings.state_dir)
        self._restore()

    def _handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.request_stop)
        self._loop.add_signal_handler(signal.SIGHUP, self.reload)

    # -- from one image to the next ------------------------------------------------------------------------

    def in_the_way(self) -> list[str]:
        """What keeps this daemon from being handed over now, as sentences."""
        ways = self._parts.in_the_way()
        if not self._ready:
            ways.append("the daemon is starting")
        if self._stopping.is_set():
            ways.append("the daemon is stopping")
        return ways

    async def hold(self) -> None:
        """New workers wait from now on; those that were asked for are there, and no spare ones are."""
        await self._spares.stop()
        await self._launcher.hold()

    async def part(self) -> None:
        """Nobody is served any more: clients are sent away, and who connects waits."""
        self._supervisor.reloading()
        self._server.hold()
        await self._admission.part(error("daemon-upgrading"), PARTING_S)
        await self._inspection.stop(PARTING_S)

    def freeze(self) -> None:
        """No thread reads or writes any more; what can be written is."""
        self._parts.freeze(PARTING_S)

    def release(self, failed: Upgraded) -> None:
        """Go on after all. Undoes ``hold``, ``part`` and ``freeze`` as far as they were done."""
        self._tell_upgraded(failed)
        self._parts.thaw()
        self._server.go_on()
        self._launcher.release()
        self._spares.release()
        self._report.ready()

    def packed(self, bag: Bag, upgrade: Upgraded, since_ns: int) -> Snapshot:
        """Everything that the next image has to know. Nothing may be ``in_the_way``."""
        parts = self._parts.packed(bag)
        return Snapshot(
            upgrade=upgrade,
            since_ns=since_ns,
            descriptors=bag.descriptors,
            config=self._source.config,
            flags=self._source.flags,
            settings=self.settings,
            started_unix_ns=self._identity["started_unix_ns"],
            **parts,
        )

    def unpack(self, snapshot: Snapshot, bag: Unbag, *, rehearsal: bool = False) -> None:
        """Be the daemon that ``snapshot`` was, up to the last step before anything acts. Raises ChronetixError,
        ValueError, OSError."""
        rules_of(self.settings, None)
        self._parts.unpack(snapshot, bag)
        self._identity["started_unix_ns"] = snapshot.started_unix_ns
        self._identity["socket"] = str(self._server.path)
        if rehearsal:
            self._journal.examine()
        else:
            self._journal.open()

    def _go_on(self, arrival: Arrival) -> None:
        """Everything is rebuilt: from here on this image acts."""
        snapshot = arrival.snapshot
        self._handle_signals()
        self._strays.start(again=True)
        arrival.complete()
        self._groups.open(keep=self._flows.worker_pids())
        self._journal.owe(snapshot.owed)
        self._audit.go_on()
        self._take_over(self.settings)
        self._parts.thaw()
        self._watchdog.start()
        self._ready = True
        self._loop.call_soon(self._arrived, snapshot, arrival.failed)

    def _arrived(self, snapshot: Snapshot, failed: str) -> None:
        """The first turn of the loop: what was held goes on."""
        pause_ns = time.monotonic_ns() - snapshot.since_ns
        self._tell_upgraded(msgspec.structs.replace(snapshot.upgrade, pause_ns=pause_ns, failed=failed))
        self._garbage.begin()
        self._launcher.start(self._known_pids)
        self._flows.go_on(snapshot.flows)
        self._strays.look_soon()
        self._server.go_on()
        self._report.ready()

    def _tell_upgraded(self, upgraded: Upgraded) -> None:
        self._identity["upgraded"] = told = msgspec.to_builtins(upgraded)
        ms = upgraded.pause_ns / 1e6
        text = f"{upgraded.before} → {upgraded.after}; the control plane stood still for {ms:.0f} ms"
        if upgraded.failed:
            text = f"{upgraded.after} has not taken over, {upgraded.before} goes on: {upgraded.failed}"
        self._events.emit("upgrade-failed" if upgraded.failed else "upgraded", message=text, **told)
        (self._log.error if upgraded.failed else self._log.info)(text)

    def _restore(self) -> None:
        """Run again what is wanted still; the daemon is ready when that has started, or failed to."""
        left, self._left = self._left, Recovered((), (), ())
        for row in left.rotten:
            self._log.error("a row of the journal is not what was written, and is left out", row=row)
        kept = Stored(self._received.stored, self._store)
        self._received.stored.clear()
        self._starting = set(self._flows.restore(left, kept))
        kept.close()
        for run in tuple(self._starting):
            self._log.info("a flow goes on" if run.home is not None else "a flow runs again", flow=run.name)
            run.watch(partial(self._restored, run))
            self._restored(run)

    def _restored(self, run: FlowRun) -> None:
        waits = run.home is not None or run.state in (FlowState.VALIDATED, FlowState.STARTING)
        if not waits and run in self._starting:
            self._starting.discard(run)
            self._ready_if_all_is()

    def _journal_trouble(self, trouble: str) -> None:
        if trouble:
            self._log.error("the journal fails; what runs goes on, a crash would lose what it lacks", reason=trouble)
        else:
            self._log.info("the journal is complete again")
        self._events.emit("journal-failing" if trouble else "journal-complete", message=trouble)

    def _listen(self) -> None:
        inherited, self._received.control = self._received.control, None
        group = None if inherited is not None else socket_group(self.settings)
        self._server.listen(inherited, group)
        self._identity["socket"] = str(self._server.path)
        self._take_over(self.settings)

    def reload(self) -> None:
        """Read the configuration again and take over what can be; all of it is as before when any of it is wrong."""
        if not self._ready or self._stopping.is_set():
            self._log.warning("the configuration is not read again while the daemon starts or stops")
            return
        self._supervisor.reloading()
        try:
            configured = self._source()
            changed, fixed = self._configured.changed(configured.settings)
            settings = keep_fixed(self.settings, configured.settings)
            self._take_over(settings)
        except ChronetixError as reason:
            self._log.error("the configuration was not taken over", reason=str(reason))
            self._events.emit("reload-failed", message=str(reason))
        else:
            self._configured = Configured(settings, configured.origins)
            text = f"changed: {', '.join(changed) or 'nothing'}"
            if fixed:
                text += f"; after a restart only: {', '.join(fixed)}"
            self._events.emit("reloaded", message=text, changed=changed, fixed=fixed)
            self._log.info("the configuration was read again", changed=changed, needs_restart=fixed)
        self._report.ready()

    def _take_over(self, settings: Settings) -> None:
        """Put ``settings`` into force. Raises ChronetixError ``config-invalid``, and then nothing has changed."""
        rules = rules_of(settings, self._server.group if self._server.inherited else None)
        self._server.open_to_all(rules.reach_beyond(self._server.group))
        self._admission.configure(settings, rules)
        self._flows.limits = settings.limits
        self._spares.resize(settings.spares)
        self._audit.limit, self._audit.reads = settings.audit_bytes, settings.audit_reads
        logs.configure(settings.log_level, settings.log_format)

    def _logs_trouble_soon(self, trouble: str) -> None:
        """From the thread that writes them."""
        self._loop.call_soon_threadsafe(self._logs_trouble, trouble)

    def _logs_trouble(self, trouble: str) -> None:
        if trouble:
            self._log.error("what workers print cannot be written; it is in memory only", reason=trouble)
        self._events.emit("logs-not-written" if trouble else "logs-written", message=trouble)

    def _deaths_trouble(self, trouble: str) -> None:
        if trouble:
            self._log.error("exits cannot be written down; the last ones are kept in memory", reason=trouble)
        self._events.emit("deaths-not-written" if trouble else "deaths-written", message=trouble)

    def _deaths_damage(self, damage: str) -> None:
        self._log.error("what was known of earlier exits is damaged", reason=damage)
        self._events.emit("deaths-damaged", message=damage)

    def request_stop(self) -> None:
        """First: drain everything and end. Again: kill what is left."""
        self._stop_requests += 1
        fd_reserve.lift()
        mode = StopMode.DRAIN if self._stop_requests == 1 else StopMode.KILL
        self._log.info("stopping", how=str(mode), flows=len(self._flows.living))
        self._report.stopping()
        self._flows.stop_all(mode)
        self._stopping.set()

    async def _wind_up(self) -> None:
        await self._spares.stop()
        for run in self._flows.living:
            await run.until(run.has_ended)
        self._server.close()
        self._ending.set()
        farewells = [self._loop.create_task(client.farewell()) for client in self._admission.clients]
        if farewells:
            await asyncio.wait(farewells, timeout=FAREWELL_S)
        for client in tuple(self._admission.clients):
            client.abort()
        if farewells:
            await asyncio.wait(farewells)
        await self._launcher.stop()
        await self._strays.stop()
        await self._inspection.stop(FAREWELL_S)

    def _known_pids(self) -> set[int]:
        """Children of ours that are somebody's."""
        others = self._launcher.pids | self._upgrade.rehearsal.pids | self._inspection.pids
        return self._flows.worker_pids() | self._spares.pids | others

    # -- clients -------------------------------------------------------------------------------------------

    def _client(self, sock: socket.socket) -> None:
        self._admission.connected(sock)

    def _examine(self) -> list[dict[str, str]]:
        facts = {
            "cgroup_reason": self._groups.reason,
            "cgroup_missing": self._groups.missing,
            "audit_lost": self._audit.lost,
            "journal_trouble": self._journal.trouble,
        }
        settings = msgspec.structs.replace(self.settings, socket=str(self._server.path))
        return [finding.as_map() for finding in examine(Place(settings, facts), (Side.DAEMON,))]

    # -- the launcher --------------------------------------------------------------------------------------

    def _launcher_ready(self, pid: int) -> None:
        self._events.emit("launcher-ready", launcher=pid)
        self._spares.refill()
        self._ready_if_all_is()

    def _ready_if_all_is(self) -> None:
        if self._ready or self._starting or not (self._launcher.ready or self._launcher.hopeless):
            return
        self._ready = True
        self._log.info("ready", launcher=self._launcher.pid)
        self._report.ready()

    def _spares_full(self, count: int) -> None:
        self._events.emit("spares-ready", spares=count)

    def _launcher_lost(self, reason: str) -> None:
        """It is replaced, and nothing else stops."""
        self._events.emit("launcher-lost", message=reason)
        for run in self._flows.living:
            run.tell()

    def _launcher_hopeless(self, reason: str) -> None:
        """None gets ready: starts are refused meanwhile. The daemon serves, and what survived it goes on."""
        self._log.error("no worker can be started", reason=reason)
        self._events.emit("launcher-hopeless", message=reason)
        self._loop.call_soon(self._ready_if_all_is)


def rehearse(state: int) -> None:
    """Rebuild a daemon from the snapshot in descriptor ``state`` without acting, and say so. Ends this process. Raises
    ChronetixError, ValueError, OSError."""

    def rebuild(snapshot: Snapshot) -> tuple[str, int]:
        source, configured = configured_by(snapshot)
        made = Daemon(configured, Received(), source, uvloop.new_event_loop(), version())
        made.unpack(snapshot, Unbag(snapshot.descriptors), rehearsal=True)
        return version(), len(made._flows.worker_pids())

    rehearsal.rehearse(state, rebuild)


def run(configured: Configured, received: Received, source: Source, arrival: Arrival | None = None) -> None:
    """Run a daemon in this thread until it is stopped; with ``arrival`` one that goes on where the image before has
    stopped. Raises ChronetixError when it cannot start."""
    fd_reserve.keep()
    sys.setswitchinterval(SWITCH_S)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(_unexpected)
        known = version() if arrival is None else arrival.version
        await Daemon(configured, received, source, asyncio.get_running_loop(), known).run(arrival)

    try:
        uvloop.run(main())
    finally:
        received.close()


def _unexpected(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback of the loop has raised what nobody had thought of (want of memory, a defect). What it left half done
    is not known, and a flow of which the daemon has lost track would stand still for ever; so it ends as by a crash,
    which the next daemon knows how to go on from."""
    log = structlog.get_logger("chronetixd")
    reason = context.get("exception")
    if "handle" not in context:
        log.error(context["message"], exc_info=reason)
        return
    try:
        log.critical("ending: an internal failure, and what was half done is not known", exc_info=reason)
    finally:
        os._exit(EXIT_BROKEN)
