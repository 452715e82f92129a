"""Reports troubles of the daemon's parts that change nothing else: a line in the log, and an event."""

from __future__ import annotations

import asyncio

import structlog

from chronetixd.records.events import Events


class Troubles:
    """Each method is called with what is wrong, or with an empty text once the trouble is over."""

    def __init__(self, loop: asyncio.AbstractEventLoop, events: Events) -> None:
        self._loop = loop
        self._events = events
        self._log = structlog.get_logger("chronetixd")

    def journal(self, trouble: str) -> None:
        """Report that the journal cannot be written, or is complete again."""
        if trouble:
            self._log.error("the journal cannot be written; flows run on, a crash would lose changes", reason=trouble)
        else:
            self._log.info("the journal is complete again")
        self._events.emit("journal-failing" if trouble else "journal-complete", message=trouble)

    def logs_soon(self, trouble: str) -> None:
        """Report as :meth:`logs` does, when called from the thread that writes log files."""
        self._loop.call_soon_threadsafe(self.logs, trouble)

    def logs(self, trouble: str) -> None:
        """Report that log files cannot be written, or are written again."""
        if trouble:
            self._log.error("the output of workers cannot be written; it is kept in memory only", reason=trouble)
        self._events.emit("logs-not-written" if trouble else "logs-written", message=trouble)

    def deaths(self, trouble: str) -> None:
        """Report that exits of workers cannot be written, or are written again."""
        if trouble:
            self._log.error("exits of workers cannot be written; the last ones are kept in memory", reason=trouble)
        self._events.emit("deaths-not-written" if trouble else "deaths-written", message=trouble)

    def deaths_damage(self, damage: str) -> None:
        """Report that the record of earlier exits cannot be read."""
        self._log.error("the record of earlier exits is damaged", reason=damage)
        self._events.emit("deaths-damaged", message=damage)

    def spares_full(self, count: int) -> None:
        """Report that as many spare workers as configured have been forked."""
        self._events.emit("spares-ready", spares=count)
