"""What parts of the daemon tell of themselves that nothing follows from: a line in its log, and an event."""

from __future__ import annotations

import asyncio

import structlog

from chronetixd.records.events import Events


class Troubles:
    """Each is called with what is wrong, or with nothing once it is right again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, events: Events) -> None:
        self._loop = loop
        self._events = events
        self._log = structlog.get_logger("chronetixd")

    def journal(self, trouble: str) -> None:
        """It cannot be written."""
        if trouble:
            self._log.error("the journal fails; what runs goes on, a crash would lose what it lacks", reason=trouble)
        else:
            self._log.info("the journal is complete again")
        self._events.emit("journal-failing" if trouble else "journal-complete", message=trouble)

    def logs_soon(self, trouble: str) -> None:
        """:meth:`logs`, from the thread that writes them."""
        self._loop.call_soon_threadsafe(self.logs, trouble)

    def logs(self, trouble: str) -> None:
        """Log files cannot be written."""
        if trouble:
            self._log.error("what workers print cannot be written; it is in memory only", reason=trouble)
        self._events.emit("logs-not-written" if trouble else "logs-written", message=trouble)

    def deaths(self, trouble: str) -> None:
        """Exits cannot be written."""
        if trouble:
            self._log.error("exits cannot be written down; the last ones are kept in memory", reason=trouble)
        self._events.emit("deaths-not-written" if trouble else "deaths-written", message=trouble)

    def deaths_damage(self, damage: str) -> None:
        """What was written of exits cannot be read."""
        self._log.error("what was known of earlier exits is damaged", reason=damage)
        self._events.emit("deaths-damaged", message=damage)

    def spares_full(self, count: int) -> None:
        """As many workers as wanted are forked ahead."""
        self._events.emit("spares-ready", spares=count)
