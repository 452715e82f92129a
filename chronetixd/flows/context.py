"""The services of the daemon that all flows share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from chronetix.protocol.messages import MAX_FRAME
from chronetixd.bus.event_bus import Bus
from chronetixd.flows.artifacts import folder
from chronetixd.flows.plan import NodePlan
from chronetixd.loop.aside import Aside
from chronetixd.records.events import Events
from chronetixd.records.exits import ExitRecords
from chronetixd.records.logs import Logs
from chronetixd.store.journal import Journal
from chronetixd.systemd.fdstore import DescriptorStore
from chronetixd.workers.launcher import Launcher
from chronetixd.workers.pool import WorkerPool
from chronetixd.workers.process import WorkerProcess
from chronetixd.workers.sandbox import Sandboxes

CLEAN = {"PYTHONPATH": "", "PYTHONHOME": ""}
"""Variables of the daemon that would show its own modules to the Python of another environment."""


@dataclass(frozen=True, slots=True)
class Services:
    """What a flow needs of the daemon."""

    loop: asyncio.AbstractEventLoop
    launcher: Launcher
    spares: WorkerPool
    sandboxes: Sandboxes
    bus: Bus
    events: Events
    logs: Logs
    exit_records: ExitRecords
    disk: Aside
    """A thread for the state folder."""
    checks: Aside
    """Threads for checks of what flows name: files anywhere, owned by any user, and large contracts."""
    journal: Journal
    store: DescriptorStore
    socket: Callable[[], str]
    """Returns the path of the control socket."""
    daemon: str
    max_frame: int = MAX_FRAME
    held_warning_s: Callable[[], float] = lambda: 30.0
    """Returns the age in seconds at which a held frame is warned of, for flows that are submitted from now on."""

    def start(self, worker: WorkerProcess, plan: NodePlan, base_dir: str) -> None:
        """Give ``worker`` a process: a warm one from the pool if there is one and the node needs neither a program nor
        a user of its own, else a new one. Raises OSError, and then the worker has no process."""
        clean = CLEAN if plan.manifest.artifact.python_env else {}
        env = {**clean, **plan.manifest.env, "CHRONETIX_FLOW": worker.flow, "CHRONETIX_NODE": worker.node}
        cwd = folder(plan.manifest, base_dir)
        user = plan.manifest.user
        spare = None if plan.argv or user else self.spares.take()
        if spare is None:
            worker.spawn(self.launcher, plan.argv, env, cwd, user)
            return
        try:
            worker.adopt(spare, env, cwd)
        except OSError:
            self.spares.dismiss(spare)
            raise
