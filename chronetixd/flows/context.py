"""What every flow of the daemon shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chronetix.protocol.messages import MAX_FRAME
from chronetixd.bus.event_bus import Bus
from chronetixd.loop.aside import Aside
from chronetixd.records.events import Events
from chronetixd.records.exits import ExitRecords
from chronetixd.records.logs import Logs
from chronetixd.store.journal import Journal
from chronetixd.systemd.fdstore import DescriptorStore
from chronetixd.workers.launcher import Launcher
from chronetixd.workers.pool import Spares
from chronetixd.workers.process import WorkerProcess
from chronetixd.workers.sandbox import Sandboxes


@dataclass(frozen=True, slots=True)
class Services:
    """What a flow needs of the daemon around it."""

    loop: asyncio.AbstractEventLoop
    launcher: Launcher
    spares: Spares
    sandboxes: Sandboxes
    bus: Bus
    events: Events
    logs: Logs
    deaths: ExitRecords
    disk: Aside
    """For the state folder."""
    checks: Aside
    """For what flows name: files of anybody, anywhere, and large contracts."""
    journal: Journal
    store: DescriptorStore
    socket: Callable[[], str]
    """Path of the control socket."""
    daemon: str
    max_frame: int = MAX_FRAME
    held_warning_s: Callable[[], float] = lambda: 30.0
    """Of flows that are submitted from now on."""

    def start(self, worker: WorkerProcess, argv: Sequence[str], base_dir: str) -> None:
        """Have ``worker`` get its process: a spare one if there is any and it needs no program of its own. Raises
        OSError, and then it has none."""
        env = {"CHRONETIX_FLOW": worker.flow, "CHRONETIX_NODE": worker.node}
        spare = None if argv else self.spares.take()
        if spare is None:
            worker.spawn(self.launcher, argv, env, base_dir)
            return
        try:
            worker.adopt(spare, env, base_dir)
        except OSError:
            self.spares.give_back(spare)
            raise
