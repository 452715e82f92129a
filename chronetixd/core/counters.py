"""The counters of a route over all of its stages: totals only grow, whichever worker dies.

Each stage counts for itself: the producing end in its RING, the consuming end in its CREDIT. When an end is replaced,
its counts are kept here and added to the counts of its successor. A figure that is neither a sum nor a maximum is the
present stage's, with two exceptions: ``outstanding`` is the sum over all stages that are not drained, and ``returned``
is derived from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from chronetixd.core.packed import PackedCounters

OF_PRODUCER = (
    "committed",
    "bytes",
    "would_block",
    "blocked_ns",
    "producer_sleeps",
    "producer_wakes",
    "skipped",
)
"""Sums that the producing end counts."""

OF_CONSUMER = ("taken", "again", "consumer_sleeps", "consumer_wakes")
"""Sums that the consuming end counts."""

DROPS_OF_PRODUCER = ("no_credit", "no_room", "given_up")
DROPS_OF_CONSUMER = ("overwritten", "unread")
"""Frames dropped, by reason: also sums."""

OF_ONE_STAGE = frozenset(("next", "unseen", "returned_before"))
"""Figures that describe one stage only, and are no figure of the route."""

GREATEST = ("max_outstanding", "max_ns", "gave_up_after_ns")
"""Figures of which a route reports the maximum over all of its stages."""


class Counters:
    """What the past stages and past ends of one route have counted."""

    __slots__ = ("_drops", "_fresh", "_greatest", "_last", "_past", "_returned")

    def __init__(self) -> None:
        self._past: dict[str, int] = dict.fromkeys((*OF_PRODUCER, *OF_CONSUMER), 0)
        self._drops: dict[str, int] = dict.fromkeys((*DROPS_OF_PRODUCER, *DROPS_OF_CONSUMER), 0)
        self._greatest: dict[str, int] = dict.fromkeys(GREATEST, 0)
        self._returned = 0
        self._fresh = True
        """True until the counts of a first stage or end are kept."""
        self._last: Mapping[str, Any] | None = None

    def packed(self) -> PackedCounters:
        """Return the whole state for the next image of the daemon."""
        return PackedCounters(
            past=dict(self._past),
            drops=dict(self._drops),
            greatest=dict(self._greatest),
            returned=self._returned,
            last=None if self._last is None else dict(self._last),
        )

    def unpack(self, packed: PackedCounters) -> None:
        """Restore the state from ``packed``. A figure that the other image did not have begins at 0."""
        self._fresh = False
        self._past |= packed.past
        self._drops |= packed.drops
        self._greatest |= packed.greatest
        self._returned = packed.returned
        self._last = packed.last

    def _of_one(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Return the figures of a route that has only had one stage with its first ends, which is the usual case.
        Nothing has to be added up."""
        self._returned = max(self._returned, figures["committed"] - figures["outstanding"])
        figures["returned"] = self._returned
        return figures

    def keep(self, stage: Mapping[str, Any] | None) -> None:
        """Add the counts of a stage that is over; None when its counters could not be read."""
        self._add(stage, self._past, self._drops)

    def keep_consumer(self, stage: Mapping[str, Any] | None) -> None:
        """Add what the consuming end of a stage has counted, because that end is replaced. Frames that this end had not
        seen yet are left for its successor to count."""
        self._add(stage, OF_CONSUMER, DROPS_OF_CONSUMER)
        self._drops["overwritten"] -= stage["unseen"] if stage is not None else 0

    def _add(self, stage: Mapping[str, Any] | None, names: Iterable[str], drops: Iterable[str]) -> None:
        if stage is None:
            return
        self._fresh = False
        for name in names:
            self._past[name] += stage[name]
        for name in drops:
            self._drops[name] += stage["drops"][name]
        for name in GREATEST:
            self._greatest[name] = max(self._greatest[name], stage[name])
        self._last = stage

    def total(self, stages: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
        """Return the figures of the route, including ``stages``, which are those that are not over, oldest first. None
        before the first stage could be read."""
        known: list[Mapping[str, Any]] = [stage for stage in stages if stage is not None]
        latest: Mapping[str, Any] | None = known[-1] if known else self._last
        if latest is None:
            return None
        figures = {name: figure for name, figure in latest.items() if name not in OF_ONE_STAGE}
        if self._fresh and len(known) == 1:
            return self._of_one(figures)
        for name, past in self._past.items():
            figures[name] = past + sum(stage[name] for stage in known)
        figures["drops"] = {
            name: past + sum(stage["drops"][name] for stage in known) for name, past in self._drops.items()
        }
        figures["dropped"] = sum(figures["drops"].values())
        for name, past in self._greatest.items():
            figures[name] = max(past, *(stage[name] for stage in known), 0)
        figures["outstanding"] = sum(stage["outstanding"] for stage in known)
        # Between a consumer's death and its successor's link the present CREDIT has counted nothing yet.
        self._returned = max(self._returned, figures["committed"] - figures["outstanding"])
        figures["returned"] = self._returned
        return figures


def shown(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a route as they are shown: frames that their consumer has left are lost, and not under way
    any more."""
    return {**figures, "outstanding": max(0, figures["outstanding"] - figures["drops"]["unread"])}


def final(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shown figures of a route whose flow has ended: what was under way, and was not taken, is lost."""
    drops = figures["drops"]
    untaken = figures["committed"] - (figures["taken"] - figures["again"]) - drops["overwritten"] - drops["unread"]
    lost = max(0, min(untaken, figures["outstanding"]))
    return {
        **figures,
        "outstanding": figures["outstanding"] - lost,
        "drops": {**drops, "unread": drops["unread"] + lost},
        "dropped": figures["dropped"] + lost,
    }
