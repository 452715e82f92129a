"""What every flow of the daemon shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from chronetix.protocol.messages import MAX_FRAME
from chronetixd.bus.event_bus import Bus
from chronetixd.loop.aside import Aside
from chronetixd.records.events import Events
from chronetixd.records.exits import Deaths
from chronetixd.records.logs import Logs
from chronetixd.store.journal import Journal
from chronetixd.systemd.fdstore import Store
from chronetixd.workers.launcher import Launcher
from chronetixd.workers.pool import Spares
from chronetixd.workers.sandbox import Nursery


@dataclass(frozen=True, slots=True)
class Services:
    """What a flow needs of the daemon around it."""

    loop: asyncio.AbstractEventLoop
    launcher: Launcher
    spares: Spares
    nursery: Nursery
    bus: Bus
    events: Events
    logs: Logs
    deaths: Deaths
    disk: Aside
    """For the state folder."""
    checks: Aside
    """For what flows name: files of anybody, anywhere, and large contracts."""
    journal: Journal
    store: Store
    socket: Callable[[], str]
    """Path of the control socket."""
    daemon: str
    max_frame: int = MAX_FRAME
    held_warning_s: Callable[[], float] = lambda: 30.0
    """Of flows that are submitted from now on."""
