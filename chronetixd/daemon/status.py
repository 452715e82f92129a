"""Reports the daemon's state to the service manager: one line of status, and requests for more time.

Rules: the line is sent when it has changed, at most once in EVERY_S, and never without a service manager; an idle
daemon sends nothing. While the daemon starts or stops, it asks for more time every EXTEND_EVERY_S without a limit,
because the start and the drain of flows have limits of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chronetixd.core.flow_messages import FlowState
from chronetixd.flows.registry import Flows
from chronetixd.records.events import Event, Events
from chronetixd.systemd.notify import ServiceManager, supervised
from chronetixd.workers.pool import WorkerPool

EVERY_S = 1.0
EXTEND_EVERY_S = 5.0
EXTENSION_S = 3 * EXTEND_EVERY_S


class Report:
    """Sends the status line; follows the daemon's events from :meth:`ready` on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        supervisor: ServiceManager,
        flows: Flows,
        spares: WorkerPool,
        events: Events,
    ) -> None:
        self._loop = loop
        self._supervisor = supervisor
        self._flows = flows
        self._spares = spares
        self._events = events
        self._said = ""
        self._timer: asyncio.TimerHandle | None = None
        self._unfollow: Callable[[], None] = lambda: None

    def line(self) -> str:
        """Return the status line: how many flows and workers there are."""
        living = self._flows.living
        running = sum(run.state is FlowState.RUNNING for run in living)
        others = len(living) - running
        parts = [f"{running} flow{'s' * (running != 1)} running"]
        if others:
            parts.append(f"{others} starting or draining")
        parts.append(f"{len(self._flows.worker_pids())} workers, {len(self._spares.ready)} spare")
        return ", ".join(parts)

    def ready(self) -> None:
        """Report that the daemon is ready, or has ended a reload, and report changes of its status from now on."""
        self._cancel()
        self._said = self.line()
        self._supervisor.ready(self._said)
        if supervised():
            self._unfollow = self._events.feed.follow(self._happened)

    def starting(self) -> None:
        """Ask the service manager for more time until :meth:`ready`, while stored flows start."""
        if supervised():
            self._extend()

    def stopping(self) -> None:
        """Report that the daemon is stopping, and ask the service manager for more time until :meth:`stop`."""
        self._cancel()
        self._supervisor.stopping(self.line())
        if supervised():
            self._extend()

    def stop(self) -> None:
        """Send no further report. Idempotent."""
        self._cancel()

    def _cancel(self) -> None:
        self._unfollow()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _happened(self, _event: Event) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(EVERY_S, self._say)

    def _say(self) -> None:
        self._timer = None
        line = self.line()
        if line != self._said:
            self._said = line
            self._supervisor.status(line)

    def _extend(self) -> None:
        self._supervisor.extend_timeout(EXTENSION_S, self.line())
        self._timer = self._loop.call_later(EXTEND_EVERY_S, self._extend)
