"""A roll-out: nodes of a running flow get other workers. Its steps as a pure machine, beside that of the flow.

 preparing ─ all stand by ─▶ settling ─ nobody is on its way ─▶ committing ─ written, still nobody ─▶ switching
     └── not ready in time, or failed ──────┴─────────────────────────┴──▶ rolled-back: nothing was touched │
                              done ◀─ taking-over ◀─ the last has left ─ leaving ◀─ routes are others ──────┘

Rules: until ``Revise`` nothing that runs is touched, and what was written is written back should that never come. After
it there is no way back, only on: what dies from then on is born again as what the new flow says. First nodes that were
added begin, and those that stay send by other routes. Then nodes leave, or end if they were removed, each after those
that sent to it, so that what an old worker has sent to an old one is worked on by that; then all successors take over
at once, sinks first. Who died meanwhile and was born again has left already: nobody behind it waits for those before
it, for they may wait for it. It looks at what is and not at what has happened: whoever feeds it says ``Looked`` after
every change. The table is total. Words, steps and table are one file, for every rule above goes across all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum

from msgspec import Struct

from chronetixd.core.machine import History, IllegalEvent
from chronetixd.core.worker import GONE, WorkerState


class Step(StrEnum):
    """How far it is."""

    PLANNED = "planned"
    PREPARING = "preparing"
    SETTLING = "settling"
    COMMITTING = "committing"
    SWITCHING = "switching"
    LEAVING = "leaving"
    TAKING_OVER = "taking-over"
    DONE = "done"
    ROLLED_BACK = "rolled-back"
    ENDED = "ended"
    """The flow has ended before it was done."""


OVER = frozenset({Step.DONE, Step.ROLLED_BACK, Step.ENDED})

COMMITTED = frozenset({Step.SWITCHING, Step.LEAVING, Step.TAKING_OVER})
"""Steps in which there is no way back, and it is not done yet."""

RUNNING_OR_DONE = frozenset({WorkerState.STARTED, WorkerState.FINISHED}) | GONE
"""States of a node that nobody has to wait for."""

ENDED_WELL = GONE | {WorkerState.FINISHED}


class Seen(Struct, frozen=True):
    """A node as it is now: ``grouped`` if it waits to be restarted with others."""

    state: WorkerState
    incarnation: int
    grouped: bool = False


class View(Struct, frozen=True):
    """The flow as it is now: every node that has a worker or will have one; whether it runs; why it cannot become the
    other one; who has not changed its outputs yet; whether routes that were removed are drained."""

    nodes: Mapping[str, Seen]
    runs: bool = True
    obstacle: str = ""
    rerouting: tuple[str, ...] = ()
    clean: bool = True


# -- events ------------------------------------------------------------------------------------------------


class Begun(Struct, frozen=True):
    """Begin."""


class StoodBy(Struct, frozen=True):
    """The successor of ``node`` is ready."""

    node: str


class Fell(Struct, frozen=True):
    """The successor of ``node`` is gone; ``why`` is the rest of a sentence about it."""

    node: str
    why: str


class Written(Struct, frozen=True):
    """The commit is in the journal."""


class Looked(Struct, frozen=True):
    """Something may have changed."""

    view: View


class Late(Struct, frozen=True):
    """The deadline has passed."""


class Called(Struct, frozen=True):
    """Somebody wants it back; ``why`` says who."""

    why: str


Event = Begun | StoodBy | Fell | Looked | Late | Called | Written
EVENTS: tuple[type, ...] = (Begun, StoodBy, Fell, Looked, Late, Called, Written)

# -- instructions ------------------------------------------------------------------------------------------


class StandBy(Struct, frozen=True):
    """Start successors of these nodes, and let them stand by."""

    nodes: tuple[str, ...]


class Arm(Struct, frozen=True):
    """Say Late after this time."""

    after_ns: int


class Disarm(Struct, frozen=True):
    """There is no deadline any more."""


class Commit(Struct, frozen=True):
    """Write down that the flow is the new one, and say Written."""


class Revoke(Struct, frozen=True):
    """Write down that it is the old one after all."""


class Revise(Struct, frozen=True):
    """From now on the flow is the new one."""


class Leave(Struct, frozen=True):
    """This node's worker is to leave."""

    node: str


class Retire(Struct, frozen=True):
    """This node was removed, and is to end."""

    node: str


class TakeOver(Struct, frozen=True):
    """This node has no worker: its successor takes over, or, with ``fresh``, one that has to be made."""

    node: str
    fresh: bool = False


class Dismiss(Struct, frozen=True):
    """The successor of this node is not needed."""

    node: str


class Finish(Struct, frozen=True):
    """It is over, as its step says; ``why`` it is not done."""

    why: str = ""


Instruction = StandBy | Arm | Disarm | Commit | Revoke | Revise | Leave | Retire | TakeOver | Dismiss | Finish


class Rollout:
    """Replace ``nodes``, or end those of them that are ``removed``; they come in an order in which each stands behind
    those that send to it, its ``senders``. ``added`` nodes begin. ``told`` is who was told to leave, ``skipped`` who
    need not be replaced any more: it has ended, or was born again meanwhile."""

    __slots__ = (
        "added",
        "began",
        "history",
        "leaving",
        "nodes",
        "ready_ns",
        "removed",
        "rerouting",
        "senders",
        "skipped",
        "standing",
        "step",
        "told",
        "took",
        "waiting",
        "why",
        "written",
    )

    def __init__(
        self,
        nodes: tuple[str, ...],
        ready_ns: int,
        senders: Mapping[str, Collection[str]],
        added: tuple[str, ...] = (),
        removed: frozenset[str] = frozenset(),
    ) -> None:
        self.nodes = nodes
        self.senders = senders
        self.added = added
        self.removed = removed
        self.ready_ns = ready_ns
        self.step = Step.PLANNED
        self.waiting = {*nodes, *added} - removed
        self.rerouting: list[str] = []
        self.standing: set[str] = set()
        self.began: dict[str, int] = {}
        """Incarnations when it was committed."""
        self.told: list[str] = []
        self.leaving: list[str] = []
        """Who was told to leave, and has not."""
        self.skipped: set[str] = set()
        self.took: set[str] = set()
        self.written = False
        """The commit is in the journal."""
        self.why = ""
        self.history = History()

    @property
    def over(self) -> bool:
        """Nothing more comes of it."""
        return self.step in OVER

    @property
    def waits_for(self) -> list[str]:
        """The nodes that hold it up."""
        if self.step is Step.PREPARING:
            return [node for node in (*self.nodes, *self.added) if node in self.waiting]
        if self.step is Step.SWITCHING:
            return self.rerouting
        if self.step is Step.LEAVING:
            return self.leaving
        return (
            [node for node in (*self.nodes, *self.added) if node in self.took] if self.step is Step.TAKING_OVER else []
        )

    def handle(self, event: Event) -> list[Instruction]:
        """What to do about ``event``. Raises IllegalEvent, and then nothing has changed."""
        handler = TABLE[self.step][EVENTS.index(type(event))]
        if handler is None:
            raise IllegalEvent("roll-out", self.step, type(event).__name__, self.history.entries())
        before = self.step
        done = handler(self, event)
        if self.step is not before:
            self.history.add(type(event).__name__, self.step)
        return done

    # -- before anything is touched ------------------------------------------------------------------------

    def _begin(self, _event: Event) -> list[Instruction]:
        new = tuple(node for node in (*self.nodes, *self.added) if node not in self.removed)
        self.step = Step.PREPARING if new else Step.SETTLING
        return [StandBy(new), Arm(self.ready_ns)] if new else [Arm(self.ready_ns)]

    def _stood_by(self, event: Event) -> list[Instruction]:
        assert isinstance(event, StoodBy)
        self.waiting.discard(event.node)
        self.standing.add(event.node)
        if not self.waiting:
            self.step = Step.SETTLING
        return []

    def _fell_early(self, event: Event) -> list[Instruction]:
        assert isinstance(event, Fell)
        self.waiting.discard(event.node)
        self.standing.discard(event.node)
        return self._roll_back(f"the new worker of node {event.node!r} {event.why}")

    def _late(self, _event: Event) -> list[Instruction]:
        if self.step is Step.COMMITTING and not self.written:
            return self._roll_back(f"it was not written down within {self.ready_ns / 1e9:g} s")
        if self.step is not Step.PREPARING:
            return self._roll_back(f"nodes were restarted all the time for {self.ready_ns / 1e9:g} s")
        late = ", ".join(repr(node) for node in self.waits_for)
        return self._roll_back(f"the new worker of node {late} was not ready within {self.ready_ns / 1e9:g} s")

    def _called(self, event: Event) -> list[Instruction]:
        assert isinstance(event, Called)
        return self._roll_back(event.why)

    def _roll_back(self, why: str) -> list[Instruction]:
        revoked = [Revoke()] if self.step is Step.COMMITTING else []
        self.step, self.why = Step.ROLLED_BACK, why
        return [Disarm(), *revoked, *self._dismiss_all(), Finish(why)]

    def _look_early(self, event: Event) -> list[Instruction]:
        assert isinstance(event, Looked)
        return [] if event.view.runs else self._end()

    def _settle(self, event: Event) -> list[Instruction]:
        assert isinstance(event, Looked)
        if not event.view.runs:
            return self._end()
        if not self._at_rest(event.view):
            return []
        if event.view.obstacle:
            return self._roll_back(event.view.obstacle)
        self.step = Step.COMMITTING
        return [Commit()]

    @staticmethod
    def _at_rest(view: View) -> bool:
        """Nobody is just being restarted."""
        return all(seen.state in RUNNING_OR_DONE for seen in view.nodes.values())

    def _wrote(self, _event: Event) -> list[Instruction]:
        self.written = True
        return []

    def _commit(self, event: Event) -> list[Instruction]:
        """Who has died while it was written is waited for as before."""
        assert isinstance(event, Looked)
        if not event.view.runs:
            return self._end()
        if not self.written or not self._at_rest(event.view):
            return []
        if event.view.obstacle:
            return self._roll_back(event.view.obstacle)
        self.step = Step.SWITCHING
        self.began = {node: event.view.nodes[node].incarnation for node in self.nodes if node in event.view.nodes}
        self.began |= dict.fromkeys(self.added, -1)
        self.took = set(self.added)
        return [Disarm(), Revise(), *self._hand_over(self.added)]

    # -- no way back ---------------------------------------------------------------------------------------

    def _fell(self, event: Event) -> list[Instruction]:
        """Another one is made when it is its turn."""
        assert isinstance(event, Fell)
        self.standing.discard(event.node)
        return []

    def _switch(self, event: Event) -> list[Instruction]:
        """Whoever stays sends by the new routes, so that nothing more comes by the old ones."""
        assert isinstance(event, Looked)
        self.rerouting = list(event.view.rerouting)
        if not event.view.runs:
            return self._end()
        if self.rerouting:
            return self._let_go(event.view, all_switched=False)
        self.step = Step.LEAVING
        return self._go_on(event)

    def _go_on(self, event: Event) -> list[Instruction]:
        """Who is told to leave now; when the last one has left all successors take over."""
        assert isinstance(event, Looked)
        if not event.view.runs:
            return self._end()
        done = self._let_go(event.view, all_switched=True)
        left = all(self._has_left(node, event.view) for node in self.nodes)
        return done + self._take_over() if left else done

    def _let_go(self, view: View, *, all_switched: bool) -> list[Instruction]:
        """Tell those to leave whose senders have left. As long as not all have switched to their other routes, only
        those whose senders are all among ``nodes``: nobody else may send to them still."""
        done: list[Instruction] = []
        for node in self.nodes:
            seen = view.nodes.get(node)
            if seen is not None and node not in self.skipped | self.removed and self._need_not(node, seen):
                self.skipped.add(node)
                done += self._dismiss(node)
        for node in self.nodes:
            if self._has_left(node, view) or node in self.told or view.nodes[node].state is not WorkerState.STARTED:
                continue
            senders = self.senders.get(node, ())
            known = all_switched or (bool(senders) and all(each in self.nodes for each in senders))
            if known and all(self._has_left(each, view) for each in senders if each in self.nodes):
                self.told.append(node)
                done.append(Retire(node) if node in self.removed else Leave(node))
        self.leaving = [node for node in self.told if not self._has_left(node, view)]
        return done

    def _need_not(self, node: str, seen: Seen) -> bool:
        """It is no worker of before any more, or will never be one again."""
        return seen.incarnation > self.began[node] or seen.grouped or seen.state in ENDED_WELL - self._to_come(node)

    def _has_left(self, node: str, view: View) -> bool:
        """Nothing more comes from the worker that it had."""
        seen = view.nodes.get(node)
        if seen is None or node in self.skipped:
            return True
        return node in self.told and node not in self.removed and seen.state is WorkerState.RESTARTING

    def _to_come(self, node: str) -> frozenset[WorkerState]:
        """States that one which was told to leave passes through."""
        return ENDED_WELL if node in self.told else frozenset()

    def _take_over(self) -> list[Instruction]:
        self.step = Step.TAKING_OVER
        left = {node for node in self.told if node not in self.skipped | self.removed}
        self.took |= left
        return self._hand_over(node for node in reversed(self.nodes) if node in left)

    def _hand_over(self, nodes: Iterable[str]) -> list[Instruction]:
        """Whoever stood by for one of these does not any more."""
        done: list[Instruction] = []
        for node in nodes:
            done.append(TakeOver(node, node not in self.standing))
            self.standing.discard(node)
        return done

    def _arrive(self, event: Event) -> list[Instruction]:
        assert isinstance(event, Looked)
        if not event.view.runs:
            return self._end()
        nodes = event.view.nodes
        self.took -= {
            node
            for node in self.took
            if nodes[node].state in RUNNING_OR_DONE and nodes[node].incarnation > self.began[node]
        }
        if self.took or not event.view.clean:
            return []
        self.step = Step.DONE
        return [Finish()]

    def _end(self) -> list[Instruction]:
        committed = self.step in COMMITTED
        self.step, self.why = Step.ENDED, "the flow has ended before"
        return [*([] if committed else [Disarm()]), *self._dismiss_all(), Finish(self.why)]

    def _dismiss(self, node: str) -> list[Instruction]:
        known = node in self.standing or node in self.waiting
        self.standing.discard(node)
        self.waiting.discard(node)
        return [Dismiss(node)] if known else []

    def _dismiss_all(self) -> list[Instruction]:
        return [each for node in (*self.nodes, *self.added) for each in self._dismiss(node)]

    def _ignore(self, _event: Event) -> list[Instruction]:
        return []


Handler = Callable[[Rollout, Event], list[Instruction]]
_R = Rollout
_: None = None
# fmt: off
TABLE: dict[Step, tuple[Handler | None, ...]] = {
    #                   Begun      StoodBy       Fell            Looked          Late       Called      Written
    Step.PLANNED:      (_R._begin, _,            _,              _R._ignore,     _,         _,          _),
    Step.PREPARING:    (_,         _R._stood_by, _R._fell_early, _R._look_early, _R._late,  _R._called, _),
    Step.SETTLING:     (_,         _,            _R._fell_early, _R._settle,     _R._late,  _R._called, _),
    Step.COMMITTING:   (_,         _,            _R._fell_early, _R._commit,     _R._late,  _R._called, _R._wrote),
    Step.SWITCHING:    (_,         _,            _R._fell,       _R._switch,     _,         _,          _),
    Step.LEAVING:      (_,         _,            _R._fell,       _R._go_on,      _,         _,          _),
    Step.TAKING_OVER:  (_,         _,            _R._fell,       _R._arrive,     _,         _,          _),
    Step.DONE:         (_,         _,            _R._ignore,     _R._ignore,     _,         _,          _),
    Step.ROLLED_BACK:  (_,         _,            _R._ignore,     _R._ignore,     _,         _,          _R._ignore),
    Step.ENDED:        (_,         _,            _R._ignore,     _R._ignore,     _,         _,          _R._ignore),
}
# fmt: on
