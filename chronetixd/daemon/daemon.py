"""The daemon: starts, resumes from an earlier image, reloads its configuration, hands over and ends its parts.

Order of the start: state folder (its lock admits one daemon), journal, audit log, control socket, launcher, the flows
of the journal that are to run again; then the service manager is notified. Order of the end: flows drain, clients get
their answers, the launcher ends, the socket and the lock are removed. A first SIGTERM or SIGINT drains, a second one
kills the workers; SIGHUP reads the configuration again. ``build`` makes the parts. Start, hand-over, resumption and end
are one file, because each takes the same parts in an order that mirrors another's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Collection
from functools import partial
from typing import Any

import msgspec
import structlog
import uvloop

from chronetix.protocol.errors import ChronetixError, error
from chronetixd import installed
from chronetixd.control.admission import Admission, rules_of, socket_group
from chronetixd.control.verbs import VerbContext
from chronetixd.control.views import Figures, ProcessFigures
from chronetixd.core.flow_messages import FlowState, StopMode
from chronetixd.daemon.build import DaemonCallbacks, build
from chronetixd.daemon.status import Report
from chronetixd.dataplane import shm_support
from chronetixd.doctor import Side, Surroundings, examine
from chronetixd.flows.apply import Rollouts
from chronetixd.flows.run import FlowRun
from chronetixd.flows.worker_records import is_alive
from chronetixd.linux import fd_reserve
from chronetixd.loop.signals import SignalHandlers
from chronetixd.packing import Bag, Unbag
from chronetixd.records import logs
from chronetixd.settings import Configured, Settings, Source, keep_fixed
from chronetixd.store.descriptor_names import Stored
from chronetixd.store.journal_file import Recovered
from chronetixd.systemd.activation import Received
from chronetixd.upgrade import rehearsal
from chronetixd.upgrade.arrival import Arrival, configured_by
from chronetixd.upgrade.parts import Parts
from chronetixd.upgrade.sequence import Upgrade
from chronetixd.upgrade.snapshot import Snapshot, Upgraded

EXIT_BROKEN = 70
"""Exit code (sysexits.h: EX_SOFTWARE) of a daemon that ends because its own state is unknown after an exception."""

FAREWELL_S = 1.0
"""How long clients may take to read their last answers when the daemon ends."""

SWITCH_S = 0.0005
"""How long the loop may wait for another thread of the daemon that computes; one answer may take several such waits."""

PARTING_S = 0.05
"""How long clients may take to read their last answers before an upgrade, during which clients and workers wait."""


class Daemon:
    """One run of the daemon. ``received`` holds the descriptors that the service manager handed over; ``source`` reads
    the configuration again."""

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
        self._components = components = build(
            settings,
            loop,
            name=f"chronetixd {version}",
            tells=DaemonCallbacks(
                client=lambda sock: self._admission.connected(sock),
                known_pids=self._known_pids,
                launcher_ready=self._launcher_ready,
                launcher_lost=self._launcher_lost,
                launcher_hopeless=self._launcher_hopeless,
                held_warning_s=lambda: self.settings.held_warning,
            ),
        )
        self._figures = Figures()
        self._report = Report(loop, components.supervisor, components.flows, components.spares, components.events)
        self._signals = SignalHandlers(loop)
        self._stop_requests = 0
        self._stopping, self._ending = asyncio.Event(), asyncio.Event()
        self._ready = False
        self._starting: set[FlowRun] = set()
        self._left = Recovered((), (), ())
        """The content of the journal at the start, until its flows are restored."""
        self._identity: dict[str, Any] = {
            "daemon": version,
            "pid": os.getpid(),
            "started_unix_ns": time.time_ns(),
            "state_dir": settings.state_dir,
            "socket": settings.socket,
            "upgraded": None,
        }
        self._parts = Parts(
            state=components.state,
            server=components.server,
            groups=components.groups,
            orphans=components.orphans,
            flows=components.flows,
            bus=components.bus,
            events=components.events,
            logs=components.logs,
            log_files=components.log_files,
            audit=components.audit,
            deaths=components.deaths,
            disk=components.disk,
            journal=components.journal,
            supervisor=components.supervisor,
            pump=components.pump,
        )
        self._upgrade = Upgrade(loop, self, version)
        context = VerbContext(
            flows=components.flows,
            rollouts=Rollouts(components.flows, components.services),
            bus=components.bus,
            events=components.events,
            logs=components.logs,
            audit=components.audit,
            spares=components.spares,
            identity=self._identity,
            journal=components.journal,
            examine=self._examine,
            settings=lambda: self._configured.shown(),
            reads=components.reads,
            figures=self._look_at,
            upgrade=self._upgrade,
            ending=self._ending,
        )
        self._admission = Admission(loop, context, components.audit, settings, components.name, components.inspection)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._configured.settings

    async def _look_at(self, pids: Collection[int]) -> dict[int, ProcessFigures]:
        """Return the figures from /proc of the processes ``pids``, by process id."""
        found = await self._components.looks.ask(lambda: self._figures.of(pids))
        self._components.looks.do(lambda: self._figures.refresh(pids))
        return found

    async def run(self, arrival: Arrival | None = None) -> None:
        """Run until the daemon is told to stop; with ``arrival`` resume where the image before this one has stopped.
        Raises ChronetixError when the daemon cannot start; all parts are closed then."""
        if arrival is None:
            self._components.state.claim()
        else:
            with arrival:
                self.unpack(arrival.snapshot, arrival.bag)
        try:
            self._begin() if arrival is None else self._resume(arrival)
            await self._stopping.wait()
            await self._wind_up()
        finally:
            self._report.stop()
            self._components.close()
            self._signals.close()
        self._log.info("stopped")

    def _begin(self) -> None:
        """Start all parts in order, as the first image of this process."""
        self._handle_signals()
        shm_support.begin()
        self._components.journal.open()
        self._components.audit.open()
        self._listen()
        self._components.watchdog.start()
        self._report.starting()
        self._components.orphans.start()
        self._left = self._components.journal.recover()
        self._components.groups.open(keep=(life.pid for life in self._left.workers if is_alive(life)))
        self._log.info(
            "control groups",
            group=str(self._components.groups.base or ""),
            enabled=self._components.groups.enabled,
            missing=self._components.groups.missing,
            reason=self._components.groups.reason,
        )
        self._components.garbage.begin()
        self._components.launcher.start(self._known_pids)
        self._log.info("listening", socket=str(self._components.server.path), state_dir=self.settings.state_dir)
        self._restore()

    def _handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._signals.handle(number, self.request_stop)
        self._signals.handle(signal.SIGHUP, self.reload)
        for number in (signal.SIGUSR1, signal.SIGUSR2):  # their default would end the daemon: logrotate sends them
            self._signals.handle(number, partial(self._log.info, "a signal that changes nothing", signal=number.name))

    # -- from one image to the next ------------------------------------------------------------------------

    def upgrade_blockers(self) -> list[str]:
        """Return what blocks an upgrade now, as sentences; empty if nothing does."""
        ways = self._parts.upgrade_blockers()
        if not self._ready:
            ways.append("the daemon is starting")
        if self._stopping.is_set():
            ways.append("the daemon is stopping")
        return ways

    async def hold(self) -> None:
        """Hold back starts of new workers and end the spare workers; return when all workers that were asked for
        earlier have been started."""
        await self._components.spares.stop()
        await self._components.launcher.hold()

    async def part(self) -> None:
        """Disconnect all clients with the error ``daemon-upgrading``, and accept no connection: new clients wait in the
        socket's queue."""
        self._components.supervisor.reloading()
        self._components.server.hold()
        await self._admission.part(error("daemon-upgrading"), PARTING_S)
        await self._components.inspection.stop(PARTING_S)

    def freeze(self) -> None:
        """Stop the threads that read or write, after they have written what they can."""
        self._parts.freeze(PARTING_S)

    def release(self, failed: Upgraded) -> None:
        """Resume after an upgrade has ``failed``: undo ``hold``, ``part`` and ``freeze`` as far as they were done."""
        self._tell_upgraded(failed)
        self._parts.thaw()
        self._components.server.resume()
        self._components.launcher.release()
        self._components.spares.release()
        self._report.ready()

    def packed(self, bag: Bag, upgrade: Upgraded, since_ns: int) -> Snapshot:
        """Return the snapshot for the next image, and add its descriptors to ``bag``. There must be no
        ``upgrade_blockers``."""
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
        """Rebuild the daemon that ``snapshot`` describes, without starting any part. A ``rehearsal`` only examines the
        journal. Raises ChronetixError, ValueError, OSError."""
        rules_of(self.settings, None)
        self._parts.unpack(snapshot, bag)
        self._identity["started_unix_ns"] = snapshot.started_unix_ns
        self._identity["socket"] = str(self._components.server.path)
        if rehearsal:
            self._components.journal.examine()
        else:
            self._components.journal.open()

    def _resume(self, arrival: Arrival) -> None:
        """Start all parts after they were rebuilt; from here on the image before cannot take over again."""
        snapshot = arrival.snapshot
        self._handle_signals()
        self._components.orphans.start(again=True)
        arrival.complete()
        self._components.groups.open(keep=self._components.flows.worker_pids())
        self._components.journal.add_pending(snapshot.owed)
        self._components.audit.resume()
        self._take_over(self.settings)
        self._parts.thaw()
        self._components.watchdog.start()
        self._ready = True
        self._loop.call_soon(self._arrived, snapshot, arrival.failed)

    def _arrived(self, snapshot: Snapshot, failed: str) -> None:
        """Report the upgrade and resume flows, launcher and clients, in the first turn of the loop."""
        pause_ns = time.monotonic_ns() - snapshot.since_ns
        self._tell_upgraded(msgspec.structs.replace(snapshot.upgrade, pause_ns=pause_ns, failed=failed))
        self._components.garbage.begin()
        self._components.launcher.start(self._known_pids)
        self._components.flows.resume_after_upgrade(snapshot.flows)
        self._components.orphans.look_soon()
        self._components.server.resume()
        self._report.ready()

    def _tell_upgraded(self, upgraded: Upgraded) -> None:
        self._identity["upgraded"] = told = msgspec.to_builtins(upgraded)
        ms = upgraded.pause_ns / 1e6
        text = f"{upgraded.before} → {upgraded.after}; the control plane stood still for {ms:.0f} ms"
        if upgraded.failed:
            text = f"{upgraded.after} has not taken over, {upgraded.before} goes on: {upgraded.failed}"
        self._components.events.emit("upgrade-failed" if upgraded.failed else "upgraded", message=text, **told)
        (self._log.error if upgraded.failed else self._log.info)(text)

    def _restore(self) -> None:
        """Run the flows of the journal again that had not been stopped; the daemon is ready when each of them has
        started, has failed to start, or waits for a worker to attach."""
        left, self._left = self._left, Recovered((), (), ())
        for row in left.corrupt:
            self._log.error("a row of the journal is corrupt and is ignored", row=row)
        kept = Stored(self._received.stored, self._components.store)
        self._received.stored.clear()
        self._starting = set(self._components.flows.restore(left, kept))
        kept.close()
        for run in tuple(self._starting):
            self._log.info("a flow goes on" if run.recovery is not None else "a flow runs again", flow=run.name)
            run.watch(partial(self._restored, run))
            self._restored(run)

    def _restored(self, run: FlowRun) -> None:
        waits = run.recovery is not None or run.state in (FlowState.VALIDATED, FlowState.STARTING)
        if (not waits or run.attachable) and run in self._starting:
            self._starting.discard(run)
            self._ready_if_all_is()

    def _listen(self) -> None:
        inherited, self._received.control = self._received.control, None
        group = None if inherited is not None else socket_group(self.settings)
        self._components.server.listen(inherited, group)
        self._identity["socket"] = str(self._components.server.path)
        self._take_over(self.settings)

    def reload(self) -> None:
        """Read the configuration again and put new values into force that take no restart; if any value is wrong, no
        setting changes."""
        if not self._ready or self._stopping.is_set():
            self._log.warning("the configuration is not read again while the daemon starts or stops")
            return
        self._components.supervisor.reloading()
        try:
            configured = self._source()
            changed, fixed = self._configured.changed(configured.settings)
            settings = keep_fixed(self.settings, configured.settings)
            self._components.server.renew()
            self._take_over(settings)
        except ChronetixError as reason:
            self._log.error("the configuration was not reloaded", reason=str(reason))
            self._components.events.emit("reload-failed", message=str(reason))
        else:
            self._configured = Configured(settings, configured.origins)
            text = f"changed: {', '.join(changed) or 'nothing'}"
            if fixed:
                text += f"; after a restart only: {', '.join(fixed)}"
            self._components.events.emit("reloaded", message=text, changed=changed, fixed=fixed)
            self._log.info("the configuration was read again", changed=changed, needs_restart=fixed)
        self._report.ready()

    def _take_over(self, settings: Settings) -> None:
        """Put ``settings`` into force. Raises ChronetixError ``config-invalid``, and then nothing has changed."""
        rules = rules_of(settings, self._components.server.group if self._components.server.inherited else None)
        self._components.server.open_to_all(rules.reach_beyond(self._components.server.group))
        self._admission.configure(settings, rules)
        self._components.flows.limits = settings.limits
        self._components.spares.resize(settings.spares)
        self._components.audit.limit, self._components.audit.reads = settings.audit_bytes, settings.audit_reads
        logs.configure(settings.log_level, settings.log_format)

    def request_stop(self) -> None:
        """Drain all flows and end the daemon; when called again, kill the remaining workers."""
        self._stop_requests += 1
        fd_reserve.lift()
        mode = StopMode.DRAIN if self._stop_requests == 1 else StopMode.KILL
        self._log.info("stopping", how=str(mode), flows=len(self._components.flows.living))
        self._report.stopping()
        self._components.flows.stop_all(mode)
        self._stopping.set()

    async def _wind_up(self) -> None:
        await self._components.spares.stop()
        for run in self._components.flows.living:
            await run.until(run.has_ended)
        self._components.server.close()
        self._ending.set()
        farewells = [self._loop.create_task(client.farewell()) for client in self._admission.clients]
        if farewells:
            await asyncio.wait(farewells, timeout=FAREWELL_S)
        for client in tuple(self._admission.clients):
            client.abort()
        if farewells:
            await asyncio.wait(farewells)
        await self._components.launcher.stop()
        await self._components.orphans.stop()
        await self._components.inspection.stop(FAREWELL_S)

    def _known_pids(self) -> set[int]:
        """Return the process ids of all children that a part of the daemon knows; other children are orphans."""
        others = self._components.launcher.pids | self._upgrade.rehearsal.pids | self._components.inspection.pids
        return self._components.flows.worker_pids() | self._components.spares.pids | others

    def _examine(self) -> list[dict[str, str]]:
        facts = {
            "cgroup_reason": self._components.groups.reason,
            "cgroup_missing": self._components.groups.missing,
            "audit_lost": self._components.audit.lost,
            "journal_trouble": self._components.journal.trouble,
        }
        settings = msgspec.structs.replace(self.settings, socket=str(self._components.server.path))
        return [finding.as_map() for finding in examine(Surroundings(settings, facts), (Side.DAEMON,))]

    # -- the launcher --------------------------------------------------------------------------------------

    def _launcher_ready(self, pid: int) -> None:
        self._components.events.emit("launcher-ready", launcher=pid)
        self._components.spares.refill()
        self._ready_if_all_is()

    def _ready_if_all_is(self) -> None:
        if self._ready or self._starting or not (self._components.launcher.ready or self._components.launcher.hopeless):
            return
        self._ready = True
        self._log.info("ready", launcher=self._components.launcher.pid)
        self._report.ready()

    def _launcher_lost(self, reason: str) -> None:
        """Report that the launcher has ended; the launcher replaces itself, and nothing else stops."""
        self._components.events.emit("launcher-lost", message=reason)
        for run in self._components.flows.living:
            run.notify_watchers()

    def _launcher_hopeless(self, reason: str) -> None:
        """Report that no launcher gets ready. Until one does, starts of workers fail; the daemon serves clients, and
        adopted workers run on."""
        self._log.error("no worker can be started", reason=reason)
        self._components.events.emit("launcher-hopeless", message=reason)
        self._loop.call_soon(self._ready_if_all_is)


def rehearse(state: int) -> None:
    """Rebuild a daemon from the snapshot in descriptor ``state`` without starting it, report the outcome to the running
    daemon, and end this process. Raises ChronetixError, ValueError, OSError."""

    def rebuild(snapshot: Snapshot) -> tuple[str, int]:
        source, configured = configured_by(snapshot)
        made = Daemon(configured, Received(), source, uvloop.new_event_loop(), installed.version())
        made.unpack(snapshot, Unbag(snapshot.descriptors), rehearsal=True)
        return installed.version(), len(made._components.flows.worker_pids())

    rehearsal.rehearse(state, rebuild)


def run(configured: Configured, received: Received, source: Source, arrival: Arrival | None = None) -> None:
    """Run a daemon in this thread until it is told to stop; with ``arrival`` it resumes where the image before has
    stopped. Raises ChronetixError when the daemon cannot start."""
    fd_reserve.keep()
    sys.setswitchinterval(SWITCH_S)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(_unexpected)
        known = installed.version() if arrival is None else arrival.version
        await Daemon(configured, received, source, asyncio.get_running_loop(), known).run(arrival)

    try:
        uvloop.run(main())
    finally:
        received.close()


def _unexpected(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle an exception that a callback of the loop did not catch (want of memory, a defect) by ending the process.

    What the callback left half done is not known, and a flow that the daemon has lost track of would stand still for
    ever. So the process ends as in a crash, from which the next daemon recovers.
    """
    log = structlog.get_logger("chronetixd")
    reason = context.get("exception")
    if "handle" not in context:
        log.error(context["message"], exc_info=reason)
        return
    try:
        log.critical("ending after an internal failure: the daemon's state is not known", exc_info=reason)
    finally:
        os._exit(EXIT_BROKEN)
