"""What every flow of the daemon shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from chronetixd.aside import Aside
from chronetixd.bus import Bus
from chronetixd.deaths import Deaths
from chronetixd.events import Events
from chronetixd.fdstore import Store
from chronetixd.journal import Journal
from chronetixd.launch import Launcher
from chronetixd.logs import Logs
from chronetixd.nursery import Nursery
from chronetixd.spares import Spares
from protocol.messages import MAX_FRAME


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
