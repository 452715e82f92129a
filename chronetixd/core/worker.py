"""A worker's life, from the request to spawn it to its reaped exit.

The table is total: every state has a cell for every event, an empty one is illegal. Events are what the worker said,
what we sent it, and what the kernel told. A worker that we have sent a signal is ``terminating``: whatever it still
says is old news and is ignored. ``exited`` is a clean end, ``failed`` is every other end; from both it may be born
again, as the next incarnation, by way of ``restarting``. One that an earlier daemon has started begins where it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple

from msgspec import Struct

from chronetixd.core.machine import History, IllegalEvent


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    SPAWNING = "spawning"
    """The launcher was asked for it."""
    GREETING = "greeting"
    """Its process lives; its hello is awaited."""
    OFFERING = "offering"
    """It was told which node it is; it loads the plugin and makes its memory."""
    OFFERED = "offered"
    """Its memory is known; its peers' is awaited."""
    LINKED = "linked"
    """It got its peers' memory; it constructs the plugin."""
    READY = "ready"
    STARTING = "starting"
    STARTED = "started"
    DRAINING = "draining"
    FINISHED = "finished"
    """It has said that all is done; its exit is awaited."""
    FAULTED = "faulted"
    """It has said why it cannot go on, or broke the protocol; its exit is awaited."""
    TERMINATING = "terminating"
    """We signalled it; its exit is awaited."""
    EXITED = "exited"
    FAILED = "failed"
    RESTARTING = "restarting"
    """It has no process; its next one is due."""


GONE = frozenset({WorkerState.EXITED, WorkerState.FAILED})
"""States without a process, present or future."""


class Exit(NamedTuple):
    """How a process ended: an exit code or a signal's name, never both; neither when nobody knows."""

    code: int | None = None
    signal: str | None = None

    def __str__(self) -> str:
        if self.signal:
            return f"was killed by {self.signal}"
        return "ended, nobody knows how" if self.code is None else f"exited with code {self.code}"


class Awaited(Struct, frozen=True):
    """Its node was added to a flow that runs: its first process is due."""


class WasStarted(Struct, frozen=True):
    """An earlier daemon has started it, in this incarnation; it is to come back, or has died since."""

    incarnation: int


class HadFinished(Struct, frozen=True):
    """It came to its end under an earlier daemon, in this incarnation."""

    incarnation: int


class CameBack(Struct, frozen=True):
    """It has come back from an earlier daemon and is in ``state``, as it says itself."""

    state: WorkerState


class Lost(Struct, frozen=True):
    """Its flow has collapsed. ``state`` is all that is known: it lives and is ended, or it does not live."""

    state: WorkerState


class Spawned(Struct, frozen=True):
    """The launcher started it as ``pid``."""

    pid: int


class SpawnFailed(Struct, frozen=True):
    """The launcher could not start it; there is no process."""

    message: str


class Greeted(Struct, frozen=True):
    """It said hello and was accepted."""


class Offered(Struct, frozen=True):
    """It offered its memory, and every descriptor held what the ABI demands."""


class LinkSent(Struct, frozen=True):
    """We sent it its peers' memory."""


class BecameReady(Struct, frozen=True):
    """It said ready."""


class Relinked(Struct, frozen=True):
    """Every producer that had been linked to its predecessor is linked to it."""


class StartSent(Struct, frozen=True):
    """We told it to start."""


class HasStarted(Struct, frozen=True):
    """It said started."""


class DrainSent(Struct, frozen=True):
    """We told it to drain."""


class HasFinished(Struct, frozen=True):
    """It said finished; ``result`` is what its ``on_stop`` returned."""

    result: Any = None


class Faulted(Struct, frozen=True):
    """It cannot go on. ``phase`` is one of messages.Fault's, or ``protocol`` when it broke the rules of the wire.

    ``consequence``: it only reports that a peer went away, so the cause is another worker.
    """

    phase: str
    message: str
    consequence: bool = False


class SignalSent(Struct, frozen=True):
    """We sent it SIGTERM or SIGKILL."""


class Exited(Struct, frozen=True):
    """The kernel reported its exit, and everything it wrote before was read."""

    exit: Exit


class RestartPlanned(Struct, frozen=True):
    """It will be started again."""


class RespawnSent(Struct, frozen=True):
    """The launcher was asked for its next process."""


class GivenUp(Struct, frozen=True):
    """It will not be started again after all."""


WorkerEvent = (
    Spawned
    | SpawnFailed
    | Greeted
    | Offered
    | LinkSent
    | BecameReady
    | Relinked
    | StartSent
    | HasStarted
    | DrainSent
    | HasFinished
    | Faulted
    | SignalSent
    | Exited
    | RestartPlanned
    | RespawnSent
    | GivenUp
    | Awaited
    | WasStarted
    | HadFinished
    | CameBack
    | Lost
)

EVENTS: tuple[type, ...] = (
    Spawned,
    SpawnFailed,
    Greeted,
    Offered,
    LinkSent,
    BecameReady,
    Relinked,
    StartSent,
    HasStarted,
    DrainSent,
    HasFinished,
    Faulted,
    SignalSent,
    Exited,
    RestartPlanned,
    RespawnSent,
    GivenUp,
    Awaited,
    WasStarted,
    HadFinished,
    CameBack,
    Lost,
)
"""The table's columns."""

_S = WorkerState
_: None = None
GRT, OFR, OFD, LNK, RDY = _S.GREETING, _S.OFFERING, _S.OFFERED, _S.LINKED, _S.READY
STG, RUN, DRN, FIN, FLT = _S.STARTING, _S.STARTED, _S.DRAINING, _S.FINISHED, _S.FAULTED
TRM, EXT, BAD, AGN, SPN = _S.TERMINATING, _S.EXITED, _S.FAILED, _S.RESTARTING, _S.SPAWNING
BCK, END = (STG, RUN, DRN), (TRM, BAD)

# fmt: off
TABLE: dict[WorkerState, tuple[WorkerState | tuple[WorkerState, ...] | None, ...]] = {
    #     Spawned        Offered        Relinked       DrainSent      SignalSent     RespawnSent    WasStarted     Lost
    #          SpawnFailed    LinkSent       StartSent      HasFinished    Exited         GivenUp        HadFinished
    #               Greeted        BecameReady    HasStarted     Faulted        RestartPlanned Awaited        CameBack
    SPN: (GRT, BAD, _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   TRM, _,   _,   _,   _,   AGN, RUN, EXT, _,   END),
    GRT: (_,   _,   OFR, _,   _,   _,   _,   _,   _,   _,   _,   FLT, TRM, BAD, _,   _,   _,   _,   _,   _,   _,   END),
    OFR: (_,   _,   _,   OFD, _,   _,   _,   _,   _,   _,   _,   FLT, TRM, BAD, _,   _,   _,   _,   _,   _,   _,   END),
    OFD: (_,   _,   _,   _,   LNK, _,   _,   _,   _,   _,   _,   FLT, TRM, BAD, _,   _,   _,   _,   _,   _,   _,   END),
    LNK: (_,   _,   _,   _,   _,   RDY, _,   _,   _,   _,   _,   FLT, TRM, BAD, _,   _,   _,   _,   _,   _,   _,   END),
    RDY: (_,   _,   _,   _,   _,   _,   RDY, STG, _,   _,   _,   FLT, TRM, BAD, _,   _,   _,   _,   _,   _,   _,   END),
    STG: (_,   _,   _,   _,   _,   _,   _,   _,   RUN, DRN, _,   FLT, TRM, BAD, _,   _,   _,   _,   _,   _,   _,   END),
    RUN: (_,   _,   _,   _,   _,   _,   _,   _,   _,   DRN, FIN, FLT, TRM, BAD, _,   _,   _,   _,   _,   _,   BCK, END),
    DRN: (_,   _,   _,   _,   _,   _,   _,   _,   DRN, DRN, FIN, FLT, TRM, BAD, _,   _,   _,   _,   _,   _,   _,   END),
    FIN: (_,   _,   _,   _,   _,   _,   _,   _,   _,   FIN, _,   FLT, TRM, EXT, _,   _,   _,   _,   _,   _,   _,   END),
    FLT: (_,   _,   _,   _,   _,   _,   _,   _,   _,   FLT, _,   FLT, FLT, BAD, _,   _,   _,   _,   _,   _,   _,   END),
    TRM: (TRM, EXT, TRM, TRM, TRM, TRM, TRM, TRM, TRM, TRM, TRM, TRM, TRM, EXT, _,   _,   _,   _,   _,   _,   TRM, END),
    EXT: (_,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   AGN, _,   _,   _,   _,   _,   _,   END),
    BAD: (_,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   AGN, _,   _,   _,   _,   _,   _,   END),
    AGN: (_,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   _,   SPN, BAD, _,   _,   _,   _,   END),
}
# fmt: on
"""Where an event leads. Several states: the event says to which of them."""

PHASES: dict[WorkerState, str] = {
    _S.SPAWNING: "spawn",
    _S.GREETING: "hello",
    _S.OFFERING: "load",
    _S.OFFERED: "wiring",
    _S.LINKED: "init",
    _S.STARTING: "start",
    _S.READY: "ready",
}
"""What a worker is busy with before it has started, in the words of messages.Fault where they exist; whoever holds
the others up comes first (a ready worker waits for those that are starting)."""


class Tally(dict[WorkerState, int]):
    """How many workers of a flow are in each state: known at any time without looking at all of them."""

    def count(self, states: Iterable[WorkerState]) -> int:
        """How many are in one of ``states``, which are different ones."""
        return sum(self.get(state, 0) for state in states)


class Worker:
    """One worker of a flow, by its node id, counted in its flow's ``tally`` until it is forgotten. ``exit`` is set once
    it is gone, ``fault`` when it said why; both are of the present incarnation, which counts from 0."""

    __slots__ = ("_state", "exit", "fault", "finished", "history", "incarnation", "node", "pid", "result", "tally")

    def __init__(self, node: str, tally: Tally | None = None) -> None:
        self.node = node
        self.tally = Tally() if tally is None else tally
        self._state = WorkerState.SPAWNING
        self._count(1)
        self.history = History()
        self.incarnation = 0
        self.pid = 0
        self.exit: Exit | None = None
        self.fault: Faulted | None = None
        self.finished = False
        self.result: Any = None

    @property
    def state(self) -> WorkerState:
        """Where it is in its life."""
        return self._state

    def _enter(self, state: WorkerState) -> None:
        self._count(-1)
        self._state = state
        self._count(1)

    def unpack(self, state: WorkerState, history: Iterable[str]) -> None:
        """It was handed over in ``state``."""
        self._enter(state)
        self.history = History(history)

    def forget(self) -> None:
        """Its node is the flow's no more: it is not counted any longer."""
        self._count(-1)
        self.tally = Tally()

    def _count(self, by: int) -> None:
        self.tally[self._state] = self.tally.get(self._state, 0) + by

    @property
    def gone(self) -> bool:
        """It has no process (any more)."""
        return self.state in GONE

    def handle(self, event: WorkerEvent) -> WorkerState:
        """The state after ``event``. Raises IllegalEvent, and then nothing has changed."""
        target = TABLE[self.state][EVENTS.index(type(event))]
        name = type(event).__name__
        if isinstance(target, tuple):
            assert isinstance(event, CameBack | Lost)
            target = event.state if event.state in target else None
        if target is None:
            raise IllegalEvent(f"worker {self.node!r}", self.state, name, self.history.entries())
        self._note(event)
        if target is WorkerState.EXITED and self.state is WorkerState.FINISHED and self.exit != Exit(code=0):
            target = WorkerState.FAILED
        self._enter(target)
        self.history.add(name, target)
        return target

    def _note(self, event: WorkerEvent) -> None:
        """Keep what the event tells beyond the state."""
        match event:
            case Spawned(pid):
                self.pid = pid
            case HasFinished(result):
                self.finished, self.result = True, result
            case Faulted():
                if self.fault is None:
                    self.fault = event
            case Exited(exit):
                self.exit = exit
            case RespawnSent():
                self.incarnation += 1
                self.pid, self.exit, self.fault = 0, None, None
                self.finished, self.result = False, None
            case Awaited():
                self.incarnation = -1
            case WasStarted(incarnation):
                self.incarnation = incarnation
            case HadFinished(incarnation):
                self.incarnation, self.finished = incarnation, True
            case Lost():
                self.finished = False
            case _:
                pass
