"""Fair shares of the loop for work that is too much for one turn: decoding large frames, encoding answers, freeing
documents.

Rules: in one turn of the loop at most TURN items of such work are done, for all owners together, so that input, timers
and other calls run in between. Clients and workers alternate; among clients the users alternate, among workers the
flows, and within one of them the connections. Of one user's large documents only one is decoded at a time, because each
may take 80 MB. A connection that has little to read does it at once, as long as the turn has work left, and never
queues.
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
"""How many items are worked on in one turn of the loop (about 1 ms)."""

ITEM_NS = 120
"""How much time counts as one item, where work is measured by its time."""

SLICE = 2048
"""How many items are worked on for one step in the queue before the next step has its turn."""

WORTH = 4096
"""From how many items on a message is freed in pieces."""

ABREAST = 4
"""How many answers may be encoded at once for one owner."""

Step = Callable[[Work], bool]
"""Works until its :class:`Work` is used up or all is done; returns True when there is more to do."""


class ShareOwner(NamedTuple):
    """For whom work is done: kind ``client`` and a user, or kind ``worker`` and a flow."""

    kind: str
    name: Hashable


DAEMON = ShareOwner("house", "")
"""Work of the daemon itself."""


class Shares:
    """The shares of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = proxy(loop)  # the loop keeps this object, so this object must not keep the loop
        self._line: OrderedDict[str, OrderedDict[Hashable, deque[Step]]] = OrderedDict()
        self._at_once = Work(TURN)
        self._renewing = False
        self._turning = False
        self._pile: list[Any] = []
        self._makers: WeakValueDictionary[ShareOwner, asyncio.Semaphore] = WeakValueDictionary()
        self._making: WeakValueDictionary[ShareOwner, object] = WeakValueDictionary()

    def makers(self, who: ShareOwner) -> asyncio.Semaphore:
        """Return the semaphore to be held while an answer is encoded for ``who``: half an answer is counted nowhere. It
        is forgotten with its last holder."""
        makers = self._makers.get(who)
        if makers is None:
            makers = self._makers[who] = asyncio.Semaphore(ABREAST)
        return makers

    def begin(self, who: ShareOwner, document: object) -> bool:
        """Return whether the large document of a connection of ``who`` may be decoded now. Until :meth:`end` is called,
        no other one may."""
        return self._making.setdefault(who, document) is document

    def end(self, who: ShareOwner, document: object) -> None:
        """The document is decoded, or given up. Idempotent."""
        if self._making.get(who) is document:
            del self._making[who]

    def at_once(self) -> Work:
        """Return the work that may be done in this turn of the loop without queueing."""
        if not self._renewing:
            self._renewing = True
            self._loop.call_soon(self._renew)
        return self._at_once

    def join(self, who: ShareOwner, step: Step) -> None:
        """Queue ``step``, which is called piece by piece for ``who`` until it returns False. It must not raise."""
        self._line.setdefault(who.kind, OrderedDict()).setdefault(who.name, deque()).append(step)
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def discard(self, made: list[Any]) -> None:
        """Free documents that are referenced only here, piece by piece; takes them out of the list ``made``."""
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
    """Return the shares of ``loop``."""
    shares = _SHARES.get(loop)
    if shares is None:
        shares = _SHARES[loop] = Shares(loop)
    return shares
