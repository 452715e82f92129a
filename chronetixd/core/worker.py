"""The state machine of a worker, from the request to spawn it to its reaped exit.

The table is total: every state has a cell for every event, and an empty cell is illegal. Events are messages of the
worker, messages that the daemon has sent to it, and reports of the kernel. A worker that the daemon has signalled is
``terminating``, and further messages of it are ignored. ``exited`` is an end in order, ``failed`` is every other end;
from both a worker may be started again, as the next incarnation, by way of ``restarting``. The machine of a worker that
an earlier daemon has started begins in the state that this worker is in.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple

from msgspec import Struct

from chronetixd.core.machine import History, IllegalEvent


class WorkerState(StrEnum):
    """The state of a worker."""

    SPAWNING = "spawning"
    """The launcher was asked to start it."""
    WAITING = "waiting"
    """Its program starts by itself: it is awaited on the control socket (waiting for attach)."""
    GREETING = "greeting"
    """Its process lives; its hello is awaited."""
    OFFERING = "offering"
    """It was configured; it loads the plugin and makes its shared memory."""
    OFFERED = "offered"
    """It has offered its shared memory; that of its peers is awaited."""
    LINKED = "linked"
    """It was sent the shared memory of its peers; it constructs the plugin."""
    READY = "ready"
    STARTING = "starting"
    STARTED = "started"
    DRAINING = "draining"
    FINISHED = "finished"
    """It has reported that it has finished; its exit is awaited."""
    FAULTED = "faulted"
    """It has reported a fault, or has broken the protocol; its exit is awaited."""
    TERMINATING = "terminating"
    """The daemon has signalled it; its exit is awaited."""
    EXITED = "exited"
    FAILED = "failed"
    RESTARTING = "restarting"
    """It has no process, and its next incarnation is due."""


GONE = frozenset({WorkerState.EXITED, WorkerState.FAILED})
"""States of a worker that has no process and will get none."""


CLAIM = "claim"
"""The phase of a fault of a worker that had not finished as it said."""


class Exit(NamedTuple):
    """How a process ended: an exit code or the name of a signal, never both; neither when the exit could not be
    observed.

    ``attached``: the process was not started by the daemon. Its end as a worker is the end of its connection; without
    code and signal it lives on, or nobody could observe its exit.
    """

    code: int | None = None
    signal: str | None = None
    attached: bool = False

    @property
    def well(self) -> bool:
        """Whether this is the exit of a worker that had finished and did nothing wrong afterwards. What an attached
        process does after it has finished is its own affair."""
        return self.attached or (self.code, self.signal) == (0, None)

    def __str__(self) -> str:
        if self.signal:
            return f"was killed by {self.signal}"
        if self.code is not None:
            return f"exited with code {self.code}"
        return "closed its connection" if self.attached else "ended, but its exit could not be observed"


class AddedWhileRunning(Struct, frozen=True):
    """The node was added to a running flow: its first process is due."""


class StartedEarlier(Struct, frozen=True):
    """An earlier daemon has started this incarnation of the worker. It is to reattach, or it has died since."""

    incarnation: int


class FinishedEarlier(Struct, frozen=True):
    """This incarnation of the worker finished under an earlier daemon."""

    incarnation: int


class HasReattached(Struct, frozen=True):
    """The worker, which an earlier daemon has started, has reattached and reports that it is in ``state``."""

    state: WorkerState


class FlowCollapsed(Struct, frozen=True):
    """The executor of its flow has failed. ``state`` is terminating if the worker lives and is killed, failed if it
    does not live."""

    state: WorkerState


class ProcessSpawned(Struct, frozen=True):
    """The launcher has started its process as ``pid``."""

    pid: int


class ProcessNotSpawned(Struct, frozen=True):
    """The launcher could not start its process."""

    message: str


class AttachAwaited(Struct, frozen=True):
    """Its program, which starts by itself, may attach from now on."""


class Attached(Struct, frozen=True):
    """Its program has attached as process ``pid``."""

    pid: int


class Greeted(Struct, frozen=True):
    """Its hello was received and accepted."""


class Offered(Struct, frozen=True):
    """It has offered its shared memory, and every descriptor has passed the checks of the ABI."""


class LinkSent(Struct, frozen=True):
    """The daemon has sent it the shared memory of its peers."""


class BecameReady(Struct, frozen=True):
    """It has reported ready."""


class Relinked(Struct, frozen=True):
    """Every producer that was linked to its predecessor is linked to it."""


class StartSent(Struct, frozen=True):
    """The daemon has told it to start."""


class HasStarted(Struct, frozen=True):
    """It has reported started."""


class DrainSent(Struct, frozen=True):
    """The daemon has told it to drain."""


class HasFinished(Struct, frozen=True):
    """It has reported finished; ``result`` is what its ``on_stop`` returned."""

    result: Any = None


class Faulted(Struct, frozen=True):
    """It cannot go on. ``phase`` is one of messages.Fault's, or ``protocol`` when it broke the rules of the wire,
    ``liveness`` when it failed its probe, ``daemon`` when the daemon could not serve it, ``claim`` when its memory
    shows that it had not finished as it said.

    ``consequence``: it only reports that a peer was gone, so the cause is another worker. ``final``: frames of a route
    were given up, so that its flow fails whatever the rule of its node says.
    """

    phase: str
    message: str
    consequence: bool = False
    final: bool = False


class SignalSent(Struct, frozen=True):
    """The daemon has sent it SIGTERM or SIGKILL."""


class ProcessExited(Struct, frozen=True):
    """The kernel has reported the exit of its process, and everything that the process had written was read."""

    exit: Exit


class RestartPlanned(Struct, frozen=True):
    """It will be started again."""


class RespawnSent(Struct, frozen=True):
    """The launcher was asked for the process of its next incarnation."""


class GivenUp(Struct, frozen=True):
    """Its planned restart was cancelled."""


WorkerEvent = (
    ProcessSpawned
    | ProcessNotSpawned
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
    | ProcessExited
    | RestartPlanned
    | RespawnSent
    | GivenUp
    | AddedWhileRunning
    | StartedEarlier
    | FinishedEarlier
    | HasReattached
    | FlowCollapsed
    | AttachAwaited
    | Attached
)

EVENTS: tuple[type, ...] = (
    ProcessSpawned,
    ProcessNotSpawned,
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
    ProcessExited,
    RestartPlanned,
    RespawnSent,
    GivenUp,
    AddedWhileRunning,
    StartedEarlier,
    FinishedEarlier,
    HasReattached,
    FlowCollapsed,
    AttachAwaited,
    Attached,
)
"""The table's columns."""

_S = WorkerState
_: None = None
GRT, OFR, OFD, LNK, RDY = _S.GREETING, _S.OFFERING, _S.OFFERED, _S.LINKED, _S.READY
STG, RUN, DRN, FIN, FLT = _S.STARTING, _S.STARTED, _S.DRAINING, _S.FINISHED, _S.FAULTED
TRM, EXT, BAD, AGN, SPN = _S.TERMINATING, _S.EXITED, _S.FAILED, _S.RESTARTING, _S.SPAWNING
WTG = _S.WAITING
BCK, END = (STG, RUN, DRN), (TRM, BAD)

# fmt: off
TABLE: dict[WorkerState, tuple[WorkerState | tuple[WorkerState, ...] | None, ...]] = {
    #     Spawned     Offered     Relinked    DrainSent   SignalSent  RespawnSent StartedEarl Collapsed
    #         NotSpawned  LinkSent    StartSent   HasFinished Exited      GivenUp     FinishedEar Awaited
    #             Greeted     Ready       HasStarted  Faulted     RestartDue  Added       HasReattach Attached
    SPN: (GRT,BAD,_,  _,  _,  _,  _,  _,  _,  _,  _,  _,  TRM,_,  _,  _,  _,  AGN,RUN,EXT,_,  END,WTG,_),
    WTG: (_,  BAD,_,  _,  _,  _,  _,  _,  _,  _,  _,  _,  TRM,_,  _,  _,  _,  _,  _,  _,  _,  END,_,  GRT),
    GRT: (_,  _,  OFR,_,  _,  _,  _,  _,  _,  _,  _,  FLT,TRM,BAD,_,  _,  _,  _,  _,  _,  _,  END,_,  _),
    OFR: (_,  _,  _,  OFD,_,  _,  _,  _,  _,  _,  _,  FLT,TRM,BAD,_,  _,  _,  _,  _,  _,  _,  END,_,  _),
    OFD: (_,  _,  _,  _,  LNK,_,  _,  _,  _,  _,  _,  FLT,TRM,BAD,_,  _,  _,  _,  _,  _,  _,  END,_,  _),
    LNK: (_,  _,  _,  _,  _,  RDY,_,  _,  _,  _,  _,  FLT,TRM,BAD,_,  _,  _,  _,  _,  _,  _,  END,_,  _),
    RDY: (_,  _,  _,  _,  _,  _,  RDY,STG,_,  _,  _,  FLT,TRM,BAD,_,  _,  _,  _,  _,  _,  _,  END,_,  _),
    STG: (_,  _,  _,  _,  _,  _,  _,  _,  RUN,DRN,_,  FLT,TRM,BAD,_,  _,  _,  _,  _,  _,  _,  END,_,  _),
    RUN: (_,  _,  _,  _,  _,  _,  _,  _,  _,  DRN,FIN,FLT,TRM,BAD,_,  _,  _,  _,  _,  _,  BCK,END,_,  _),
    DRN: (_,  _,  _,  _,  _,  _,  _,  _,  DRN,DRN,FIN,FLT,TRM,BAD,_,  _,  _,  _,  _,  _,  _,  END,_,  _),
    FIN: (_,  _,  _,  _,  _,  _,  _,  _,  _,  FIN,_,  FLT,TRM,EXT,_,  _,  _,  _,  _,  _,  _,  END,_,  _),
    FLT: (_,  _,  _,  _,  _,  _,  _,  _,  _,  FLT,_,  FLT,FLT,BAD,_,  _,  _,  _,  _,  _,  _,  END,_,  _),
    TRM: (TRM,EXT,TRM,TRM,TRM,TRM,TRM,TRM,TRM,TRM,TRM,TRM,TRM,EXT,_,  _,  _,  _,  _,  _,  TRM,END,TRM,_),
    EXT: (_,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  AGN,_,  _,  _,  _,  _,  _,  END,_,  _),
    BAD: (_,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  AGN,_,  _,  _,  _,  _,  _,  END,_,  _),
    AGN: (_,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  _,  SPN,BAD,_,  _,  _,  _,  END,_,  _),
}
# fmt: on
"""The state that an event leads to. Where a cell names several states, the event says which of them."""

PHASES: dict[WorkerState, str] = {
    _S.WAITING: "attach",
    _S.SPAWNING: "spawn",
    _S.GREETING: "hello",
    _S.OFFERING: "load",
    _S.OFFERED: "wiring",
    _S.LINKED: "init",
    _S.STARTING: "start",
    _S.READY: "ready",
}
"""What a worker does before it has started, in the words of messages.Fault where they exist. Phases that hold other
workers up come first: a ready worker waits for those that are starting.
"""


class Tally(dict[WorkerState, int]):
    """The number of workers of a flow in each state, kept up to date so that no count has to visit all workers."""

    def count(self, states: Iterable[WorkerState]) -> int:
        """Return how many workers are in one of ``states``, which must be distinct."""
        return sum(self.get(state, 0) for state in states)


class WorkerMachine:
    """The state machine of one worker, named by its node, counted in the ``tally`` of its flow until it is forgotten.
    ``exit`` is set once its process is gone, ``fault`` once it has reported one; both describe the present incarnation.
    Incarnations count from 0."""

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
        """The present state of the worker."""
        return self._state

    def _enter(self, state: WorkerState) -> None:
        self._count(-1)
        self._state = state
        self._count(1)

    def unpack(self, state: WorkerState, history: Iterable[str]) -> None:
        """Restore the state and history that an earlier image of the daemon handed over."""
        self._enter(state)
        self.history = History(history)

    def forget(self) -> None:
        """Stop counting the worker, because its node was removed from the flow."""
        self._count(-1)
        self.tally = Tally()

    def _count(self, by: int) -> None:
        self.tally[self._state] = self.tally.get(self._state, 0) + by

    @property
    def gone(self) -> bool:
        """Whether the worker has no process and will get none."""
        return self.state in GONE

    def handle(self, event: WorkerEvent) -> WorkerState:
        """Return the state after ``event``. Raises IllegalEvent, and then nothing has changed."""
        target = TABLE[self.state][EVENTS.index(type(event))]
        name = type(event).__name__
        if isinstance(target, tuple):
            assert isinstance(event, HasReattached | FlowCollapsed)
            target = event.state if event.state in target else None
        if target is None:
            raise IllegalEvent(f"worker {self.node!r}", self.state, name, self.history.entries())
        self._note(event)
        badly = self.exit is not None and not self.exit.well
        if target is WorkerState.EXITED and self.state is WorkerState.FINISHED and badly:
            target = WorkerState.FAILED
        self._enter(target)
        self.history.add(name, target)
        return target

    def _note(self, event: WorkerEvent) -> None:
        """Keep what the event reports besides the state."""
        match event:
            case ProcessSpawned(pid) | Attached(pid):
                self.pid = pid
            case HasFinished(result):
                self.finished, self.result = True, result
            case Faulted():
                if self.fault is None:
                    self.fault = event
                if event.phase == CLAIM:
                    self.finished, self.result = False, None
            case ProcessExited(exit):
                self.exit = exit
            case RespawnSent():
                self.incarnation += 1
                self.pid, self.exit, self.fault = 0, None, None
                self.finished, self.result = False, None
            case AddedWhileRunning():
                self.incarnation = -1
            case StartedEarlier(incarnation):
                self.incarnation = incarnation
            case FinishedEarlier(incarnation):
                self.incarnation, self.finished = incarnation, True
            case FlowCollapsed():
                self.finished = False
            case _:
                pass
