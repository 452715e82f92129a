"""The revisions of one flow. The journal records each before anything is done about it.

Number 1 is the flow as it was submitted; it is recorded when the flow is first to be changed. Each roll-out is the next
number, whatever its outcome. The last MAX_REVISIONS are kept, and in any case the one that runs and the one before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from chronetix.protocol import cbor
from chronetix.protocol.errors import ChronetixError
from chronetixd.flows.code import Code
from chronetixd.store.journal import Journal
from chronetixd.store.journal_file import Outcome, StoredFlow, StoredRevision

MAX_REVISIONS = 10
"""Revisions kept for a flow."""


class Revisions:
    """The revisions of one flow, oldest first."""

    def __init__(self, journal: Journal, stored: Iterable[StoredRevision] = ()) -> None:
        self._journal = journal
        self._all = list(stored)
        self.planning = False
        """Whether the next revision was given to the journal and is not recorded yet."""

    def __iter__(self) -> Any:
        return iter(tuple(self._all))

    @property
    def last(self) -> StoredRevision | None:
        """The latest revision, whatever its outcome."""
        return self._all[-1] if self._all else None

    @property
    def current(self) -> int:
        """The number of the revision that the flow has now."""
        return max((each.number for each in self._all if each.current), default=1)

    def before(self, number: int | None = None) -> StoredRevision | None:
        """Return the revision of this number, by default the one that the flow had before the present one; None when
        there is none."""
        was = [each for each in self._all if each.current and each.number != self.current]
        if number is not None:
            was = [each for each in was if each.number == number]
        return was[-1] if was else None

    def plan(
        self,
        flow: StoredFlow,
        raw: Mapping[str, Any],
        bindings: Mapping[str, str],
        base_dir: str,
        code: Code,
        change: Any,
        then: Callable[[StoredRevision | None, ChronetixError | None], None],
    ) -> None:
        """Record that ``flow`` is to become ``raw`` with ``code``; one plan at a time. ``then`` is called with the
        revision once the journal has recorded it, or with ``journal-unusable``, and then nothing is kept."""
        first = [] if self._all else [_first(flow)]
        made = StoredRevision(
            flow=flow.name,
            number=(first or self._all)[-1].number + 1,
            unix_ns=time.time_ns(),
            contract=cbor.dumps(raw),
            bindings=dict(bindings),
            base_dir=base_dir,
            outcome="preparing",
            current=False,
            change=change,
            code=code,
        )
        forgotten = self._forgettable()

        def planned(refusal: ChronetixError | None) -> None:
            self.planning = False
            if refusal is None:
                self._all = [*(each for each in self._all if each not in forgotten), *first, made]
            then(made if refusal is None else None, refusal)

        self.planning = True
        self._journal.planned([*first, made], [each.number for each in forgotten], planned)

    def _forgettable(self) -> list[StoredRevision]:
        back = self.before()
        needed = {self.current, back.number if back is not None else 0}
        left = [each for each in self._all if each.number not in needed]
        return left[: max(0, len(self._all) + 1 - MAX_REVISIONS)]

    def committed(self, number: int, flow: StoredFlow) -> StoredFlow:
        """Record that the flow has this revision from now on. Returns the record of ``flow`` that follows from it."""
        revision = self._change(number, "committed", current=True)
        after = msgspec.structs.replace(
            flow,
            contract=revision.contract,
            bindings=revision.bindings,
            base_dir=revision.base_dir,
            code=revision.code,
        )
        self._journal.revised(revision, after)
        return after

    def revoked(self, number: int, flow: StoredFlow) -> StoredFlow:
        """Record that the flow does not have this revision after all, and is ``flow`` again."""
        self._journal.revised(self._change(number, "preparing", current=False), flow)
        return flow

    def ended(self, number: int, outcome: Outcome, why: str = "") -> None:
        """Record the outcome of this revision, and why."""
        self._journal.revised(self._change(number, outcome, why=why, ended_unix_ns=time.time_ns()))

    def _change(self, number: int, outcome: Outcome, **fields: Any) -> StoredRevision:
        at = next(index for index, each in enumerate(self._all) if each.number == number)
        self._all[at] = changed = msgspec.structs.replace(self._all[at], outcome=outcome, **fields)
        return changed

    def interrupted(self) -> bool:
        """Record that the daemon died in the middle of a roll-out, if it did. Returns True if that was after the
        commit."""
        last = self.last
        if last is None or last.outcome not in ("preparing", "committed"):
            return False
        committed = last.outcome == "committed"
        done = "and the flow began anew as the new one" if committed else "before anything was changed"
        self.ended(last.number, "interrupted", f"the daemon has died meanwhile, {done}")
        return committed

    def described(self) -> list[dict[str, Any]]:
        """Return the revisions as they are sent to a client, without the contracts."""
        return [
            {
                "number": each.number,
                "unix_ns": each.unix_ns,
                "ended_unix_ns": each.ended_unix_ns,
                "outcome": each.outcome,
                "current": each.number == self.current,
                "why": each.why,
                "change": each.change,
            }
            for each in self._all
        ]


def _first(flow: StoredFlow) -> StoredRevision:
    return StoredRevision(
        flow=flow.name,
        number=1,
        unix_ns=flow.submitted_unix_ns,
        contract=flow.contract,
        bindings=flow.bindings,
        base_dir=flow.base_dir,
        outcome="submitted",
        current=True,
        ended_unix_ns=flow.submitted_unix_ns,
        code=flow.code,
    )
