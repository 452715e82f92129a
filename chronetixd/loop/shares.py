"""Fair turns on the loop for work that is too much for one go: large frames that are decoded, answers that are encoded,
documents that are freed.

Rules: a turn of the loop has TURN of such work, whoever it is for, so that input, timers and calls of everybody else
come between; clients and workers take theirs alternately, so do users (flows) among them, and connections of one user.
Of a user's large documents one is made after the other: each may take 80 MB. A connection that has little to read does
it at once, as long as the turn has work left, and never stands in line.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary, proxy

from chronetix.protocol import cbor
from chronetix.protocol.framing import Work

TURN = 8192
"""Items that are worked on in one turn of the loop (about 1 ms)."""

ITEM_NS = 120
"""What an item is worth where work is measured by its time."""

SLICE = 2048
"""Items that one of those who stand in line works on before the next one is asked."""

WORTH = 4096
"""Items of a message that is freed in pieces."""

ABREAST = 4
"""Answers that are made at once for one of those in line."""

Step = Callable[[Work], bool]
"""Works until its :class:`Work` is used up or all is done; True when there is more to do."""


class ShareOwner(NamedTuple):
    """For whom something is done: ``client`` and a user, ``worker`` and a flow."""

    kind: str
    name: Hashable


DAEMON = ShareOwner("house", "")
"""Ourselves."""


class Shares:
    """Of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = proxy(loop)  # it is the loop that keeps us
        self._line: OrderedDict[str, OrderedDict[Hashable, deque[Step]]] = OrderedDict()
        self._at_once = Work(TURN)
        self._renewing = False
        self._turning = False
        self._pile: list[Any] = []
        self._makers: WeakValueDictionary[ShareOwner, asyncio.Semaphore] = WeakValueDictionary()
        self._making: WeakValueDictionary[ShareOwner, object] = WeakValueDictionary()

    def makers(self, who: ShareOwner) -> asyncio.Semaphore:
        """To be held while an answer is made for ``who``: what is half made counts nowhere yet. Forgotten with its last
        holder."""
        makers = self._makers.get(who)
        if makers is None:
            makers = self._makers[who] = asyncio.Semaphore(ABREAST)
        return makers

    def begin(self, who: ShareOwner, document: object) -> bool:
        """May the large document of a connection of ``who`` be made? Not while another one is, until :meth:`end`."""
        return self._making.setdefault(who, document) is document

    def end(self, who: ShareOwner, document: object) -> None:
        """It is made, or left. Idempotent."""
        if self._making.get(who) is document:
            del self._making[who]

    def at_once(self) -> Work:
        """What may be done in this turn of the loop by who does not stand in line."""
        if not self._renewing:
            self._renewing = True
            self._loop.call_soon(self._renew)
        return self._at_once

    def join(self, who: ShareOwner, step: Step) -> None:
        """Let ``step`` be done piece by piece for ``who``, until it says that all is done. It must not raise."""
        self._line.setdefault(who.kind, OrderedDict()).setdefault(who.name, deque()).append(step)
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def discard(self, made: list[Any]) -> None:
        """Free documents that nobody else has piece by piece; takes them out of the list ``made``."""
        if not self._pile and made:
            self.join(DAEMON, self._free)
        self._pile += made
        made.clear()

    def _free(self, work: Work) -> bool:
        work.left -= SLICE
        try:
            return not cbor.dismantle(self._pile, SLICE)
        except MemoryError:
            self._pile.clear()
            return False

    def _renew(self) -> None:
        self._renewing = False
        self._at_once.left = TURN

    def _turn(self) -> None:
        left = TURN
        while self._line and left > 0:
            kind = next(iter(self._line))
            names = self._line[kind]
            name = next(iter(names))
            step = names[name].popleft()
            work = Work(min(SLICE, left))
            given = work.left
            more = step(work)
            left -= max(given - work.left, 1)
            if more:
                names[name].append(step)
            names.move_to_end(name)
            self._line.move_to_end(kind)
            if not names[name]:
                del names[name]
            if not names:
                del self._line[kind]
        self._turning = bool(self._line)
        if self._turning:
            self._loop.call_soon(self._turn)


_SHARES: WeakKeyDictionary[asyncio.AbstractEventLoop, Shares] = WeakKeyDictionary()


def of(loop: asyncio.AbstractEventLoop) -> Shares:
    """Those of ``loop``."""
    shares = _SHARES.get(loop)
    if shares is None:
        shares = _SHARES[loop] = Shares(loop)
    return shares
