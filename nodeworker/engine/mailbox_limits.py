"""What may wait in a worker's mailbox: bounded, so that a slow callback costs messages and never memory.

Only the IO thread puts in, only the plugin's thread takes out, both without a lock. A tick that finds others waiting
is withheld and counts as missed by the next one of its timer; a message that finds too many bytes waiting is dropped,
and counted. What ends or starts the node always goes in.
"""

from __future__ import annotations

from collections import deque

import msgspec

from chronetix.nodeworker.engine.loop import Mailbox
from chronetix.protocol.messages import Deliver, Tick, ToWorker

MAX_WAITING_TICKS = 16
"""Events that may wait before further ticks are withheld."""

MAX_WAITING_BYTES = 8 * 1024 * 1024
"""Of messages; the daemon's own bound for a subscriber that does not read."""

REPORTED_AT_ONCE = 1000
"""Dropped messages that are reported together while there is no room."""

OVERHEAD = 1024
"""Bytes that a message takes beside its payload, about."""


class MailboxLimits:
    """The way into ``mailbox``. Counts messages that found no room since :meth:`account` was asked, and by topic since
    :meth:`report` was asked."""

    __slots__ = ("_by_topic", "_bytes", "_dropped", "_mailbox", "_sizes", "_unreported", "_withheld")

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._withheld: dict[str, int] = {}
        self._dropped = self._unreported = 0
        self._by_topic: dict[str, int] = {}

    def put(self, message: ToWorker) -> bool:
        """Take ``message`` in; False when it was withheld or dropped."""
        self._settle()
        size = 0
        if isinstance(message, Tick):
            if len(self._mailbox) >= MAX_WAITING_TICKS:
                self._withheld[message.id] = self._withheld.get(message.id, 0) + message.missed + 1
                return False
            earlier = self._withheld.pop(message.id, 0)
            if earlier:
                message = msgspec.structs.replace(message, missed=message.missed + earlier)
        elif isinstance(message, Deliver):
            size = len(message.payload) + OVERHEAD
            if self._bytes + size > MAX_WAITING_BYTES and self._mailbox:
                self._dropped += 1
                self._unreported += 1
                topic = str(message.envelope.get("topic", ""))
                self._by_topic[topic] = self._by_topic.get(topic, 0) + 1
                return False
        self._sizes.append(size)
        self._bytes += size
        self._mailbox.append(message)
        return True

    @property
    def owes(self) -> bool:
        """Dropped messages are to be reported or accounted for, once there is room again."""
        return bool(self._unreported or self._dropped)

    def report(self, *, last: bool = False) -> dict[str, int]:
        """Messages by topic that were dropped since the report before: once there is room again, earlier when they
        are many, and in the ``last`` report in any case."""
        if not self._unreported:
            return {}
        self._settle()
        if not last and self._unreported < REPORTED_AT_ONCE and self._bytes > MAX_WAITING_BYTES // 2:
            return {}
        told, self._by_topic, self._unreported = self._by_topic, {}, 0
        return told

    def account(self, *, last: bool = False) -> int:
        """Messages that were dropped since the account before, once there is room again, or in the ``last`` one; 0
        before that."""
        self._settle()
        if self._dropped and (last or self._bytes <= MAX_WAITING_BYTES // 2):
            told, self._dropped = self._dropped, 0
            return told
        return 0

    def _settle(self) -> None:
        """The mailbox is taken from in order: what it has less than we remember is the oldest."""
        for _ in range(len(self._sizes) - len(self._mailbox)):
            self._bytes -= self._sizes.popleft()
