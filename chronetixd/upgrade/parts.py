"""The parts of a daemon that have state: what each of them hands over, and in which order they are rebuilt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from chronetixd.records.events import Event

if TYPE_CHECKING:
    from chronetixd.bus.event_bus import Bus
    from chronetixd.control.server import Server
    from chronetixd.flows.registry import Flows
    from chronetixd.linux.cgroups import Groups
    from chronetixd.loop.aside import Aside
    from chronetixd.packing import Bag, Unbag
    from chronetixd.records.audit import Audit
    from chronetixd.records.events import Events
    from chronetixd.records.exits import ExitRecords
    from chronetixd.records.logfiles import LogFiles
    from chronetixd.records.logs import Logs
    from chronetixd.store.journal import Journal
    from chronetixd.store.state_dir import StateDir
    from chronetixd.systemd.notify import ServiceManager
    from chronetixd.upgrade.snapshot import Snapshot
    from chronetixd.workers.orphans import Orphans
    from chronetixd.workers.pump import Pump


class Parts(NamedTuple):
    """All parts of one daemon that hand over state. Launcher, spare workers and clients are not handed over."""

    state: StateDir
    server: Server
    groups: Groups
    orphans: Orphans
    flows: Flows
    bus: Bus
    events: Events
    logs: Logs
    log_files: LogFiles
    audit: Audit
    deaths: ExitRecords
    disk: Aside
    journal: Journal
    supervisor: ServiceManager
    pump: Pump

    def upgrade_blockers(self) -> list[str]:
        """Return what blocks handing over now, as sentences; empty if nothing does."""
        ways = self.flows.upgrade_blockers
        if not self.orphans.settled or not self.groups.settled:
            ways.append("processes that an ended worker had started are being killed")
        if self.journal.awaited:
            ways.append("the journal waits for the disk")
        return ways

    def freeze(self, wait_s: float) -> None:
        """Stop the threads that read or write, once they have finished their present work and written what they can,
        but after ``wait_s`` in any case."""
        self.pump.halt()
        self.log_files.halt(wait_s)
        self.journal.settle(wait_s)
        self.deaths.flush()
        self.disk.settle(wait_s)

    def thaw(self) -> None:
        """Let the threads go on. Idempotent."""
        self.pump.resume()
        self.log_files.resume()

    def packed(self, bag: Bag) -> dict[str, Any]:
        """Return the parts' fields of a snapshot; descriptors go into ``bag``. There must be no
        ``upgrade_blockers``."""
        return {
            "lock": bag.put(self.state.lock),
            "server": self.server.packed(bag),
            "groups": self.groups.packed(),
            "strays": self.orphans.packed(),
            "flows": self.flows.packed(bag),
            "bus": self.bus.packed(),
            "events": self.events.feed.packed(),
            "logs": self.logs.packed(),
            "audit": self.audit.packed(),
            "deaths": self.deaths.packed(),
            "owed": self.journal.packed(),
            "unsent": self.supervisor.packed(bag),
        }

    def unpack(self, snapshot: Snapshot, bag: Unbag) -> None:
        """Take over the state of ``snapshot``; the threads stay stopped. Raises ValueError, OSError."""
        self.pump.halt()
        self.state.unpack(bag.take(snapshot.lock))
        self.server.unpack(snapshot.server, bag)
        self.groups.unpack(snapshot.groups)
        self.orphans.unpack(snapshot.strays)
        self.events.feed.unpack(snapshot.events, Event)
        self.logs.unpack(snapshot.logs)
        self.audit.unpack(snapshot.audit)
        self.deaths.unpack(snapshot.deaths)
        self.flows.unpack(snapshot.flows, bag)
        self.bus.unpack(snapshot.bus, self.flows.worker)
        self.supervisor.unpack(snapshot.unsent, bag)
