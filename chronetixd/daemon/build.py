"""Makes the parts of a daemon from its settings and connects them.

No part acts before the daemon starts it, because the rehearsal of an upgrade makes all parts, too.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chronetixd.bus.event_bus import Bus
from chronetixd.control.server import Server
from chronetixd.daemon.troubles import Troubles
from chronetixd.flows.context import Services
from chronetixd.flows.registry import Flows
from chronetixd.linux.cgroups import Groups, find_place
from chronetixd.loop import garbage
from chronetixd.loop.aside import Aside
from chronetixd.loop.garbage import Garbage
from chronetixd.loop.inspection import Inspection
from chronetixd.loop.turns import Turns
from chronetixd.records.audit import Audit
from chronetixd.records.events import Events
from chronetixd.records.exits import ExitRecords
from chronetixd.records.logfiles import LogFiles
from chronetixd.records.logs import Logs
from chronetixd.settings import Settings
from chronetixd.store.journal import Journal
from chronetixd.store.state_dir import StateDir
from chronetixd.systemd.fdstore import DescriptorStore, limit_of
from chronetixd.systemd.notify import ServiceManager
from chronetixd.systemd.watchdog import Watchdog, of_environment
from chronetixd.workers.launcher import Launcher
from chronetixd.workers.orphans import Orphans
from chronetixd.workers.pool import WorkerPool
from chronetixd.workers.pump import Pump
from chronetixd.workers.sandbox import Sandboxes

CHECKS, READS = 4, 4
"""How many flows are checked at once, and how many logs are read at once; further ones wait for a free thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonCallbacks:
    """The daemon's functions that the parts call, to notify the daemon or to ask it for something."""

    client: Callable[[socket.socket], None]
    known_pids: Callable[[], set[int]]
    launcher_ready: Callable[[int], None]
    launcher_lost: Callable[[str], None]
    launcher_hopeless: Callable[[str], None]
    held_warning_s: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """All parts of a daemon except those that serve clients."""

    name: str
    events: Events
    log_files: LogFiles
    logs: Logs
    state: StateDir
    audit: Audit
    server: Server
    watchdog: Watchdog
    groups: Groups
    garbage: Garbage
    orphans: Orphans
    pump: Pump
    inspection: Inspection
    launcher: Launcher
    bus: Bus
    spares: WorkerPool
    journal: Journal
    scribe: Aside
    """The thread that writes the journal."""
    supervisor: ServiceManager
    store: DescriptorStore
    disk: Aside
    """The thread that writes other files in the state folder."""
    looks: Aside
    """The thread that reads /proc for the figures of workers."""
    reads: Aside
    """The threads that read log files for clients."""
    checks: Aside
    """The threads that check the files that flows name."""
    deaths: ExitRecords
    services: Services
    flows: Flows

    def close(self) -> None:
        """Close all parts; the lock of the state folder is released last."""
        self.garbage.end()
        self.server.close()
        self.bus.close()
        self.journal.close()
        self.scribe.close(0)
        self.supervisor.close()
        self.orphans.close()
        self.pump.close()
        self.log_files.close()
        self.disk.close()
        self.looks.close()
        self.checks.close(0)
        self.reads.close(0)
        self.groups.close()
        self.watchdog.stop()
        self.audit.close()
        self.state.release()


def build(settings: Settings, loop: asyncio.AbstractEventLoop, *, name: str, tells: DaemonCallbacks) -> Components:
    """Make all parts and return them. ``name`` is the daemon's name in its welcome to clients and workers."""
    folder = Path(settings.state_dir)
    events = Events()
    troubles = Troubles(loop, events)
    disk, scribe = Aside(loop, "chronetix-disk"), Aside(loop, "chronetix-journal")
    log_files = LogFiles(
        folder / "logs", time.time_ns(), settings.log_file_bytes, settings.log_files, troubles.logs_soon
    )
    logs = Logs(files=log_files)
    deaths = ExitRecords(
        folder / "deaths",
        lambda trouble: disk.post(partial(troubles.deaths, trouble)),
        lambda damage: disk.post(partial(troubles.deaths_damage, damage)),
        disk.do,
    )
    journal = Journal(folder / "journal", troubles.journal, loop.call_later, scribe.do, scribe.post, scribe.settle)
    audit = Audit(loop, folder, settings.audit_bytes, events, settings.audit_reads)
    server = Server(loop, Path(settings.socket), tells.client)
    supervisor = ServiceManager(loop.call_later)
    store = DescriptorStore(supervisor, limit_of(os.environ))
    groups = Groups(loop, find_place(settings.cgroup), settings.state_dir)
    turns = Turns(loop)
    pump = Pump(loop)
    strays = Orphans(loop, tells.known_pids, lambda: launcher.announced, turns)
    sandboxes = Sandboxes(groups, strays, pump, turns)
    launcher = Launcher(
        loop,
        on_ready=tells.launcher_ready,
        on_lost=tells.launcher_lost,
        on_hopeless=tells.launcher_hopeless,
        on_announced=strays.look_soon,
    )
    spares = WorkerPool(loop, launcher, sandboxes, settings.spares, troubles.spares_full)
    bus = Bus(loop, events)
    checks = Aside(loop, "chronetix-checks", threads=CHECKS)
    services = Services(
        loop=loop,
        launcher=launcher,
        spares=spares,
        sandboxes=sandboxes,
        bus=bus,
        events=events,
        logs=logs,
        exit_records=deaths,
        disk=disk,
        checks=checks,
        journal=journal,
        store=store,
        socket=lambda: str(server.path),
        daemon=name,
        max_frame=settings.max_frame,
        held_warning_s=tells.held_warning_s,
    )
    return Components(
        name=name,
        events=events,
        log_files=log_files,
        logs=logs,
        state=StateDir(folder),
        audit=audit,
        server=server,
        watchdog=of_environment(loop),
        groups=groups,
        garbage=garbage.of(loop),
        orphans=strays,
        pump=pump,
        inspection=Inspection(loop),
        launcher=launcher,
        bus=bus,
        spares=spares,
        journal=journal,
        scribe=scribe,
        supervisor=supervisor,
        store=store,
        disk=disk,
        looks=Aside(loop, "chronetix-looks"),
        reads=Aside(loop, "chronetix-reads", threads=READS),
        checks=checks,
        deaths=deaths,
        services=services,
        flows=Flows(services, settings.limits, journal),
    )
