"""The counters of a route over all of its stages: they only grow, whoever dies.

Each stage counts for itself, the producing end in its RING and the consuming end in its CREDIT. When an end is
replaced, what it had counted is kept here and added to what its successor counts. What is no sum and no greatest is the
present stage's, but for ``outstanding``, the sum over stages that are not drained, and ``returned``, which follows.
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
DROPS_OF_CONSUMER = ("overwritten",)
"""Frames dropped, by reason: also sums."""

OF_ONE_STAGE = frozenset(("next", "unseen", "returned_before"))
"""What says something about one stage only: no figure of the route."""

GREATEST = ("max_outstanding", "max_ns", "gave_up_after_ns")
"""What is the greatest of all stages."""


class Counters:
    """What the past stages and ends of one route have counted."""

    __slots__ = ("_drops", "_fresh", "_greatest", "_last", "_past", "_returned")

    def __init__(self) -> None:
        self._past: dict[str, int] = dict.fromkeys((*OF_PRODUCER, *OF_CONSUMER), 0)
        self._drops: dict[str, int] = dict.fromkeys((*DROPS_OF_PRODUCER, *DROPS_OF_CONSUMER), 0)
        self._greatest: dict[str, int] = dict.fromkeys(GREATEST, 0)
        self._returned = 0
        self._fresh = True
        """Nothing was kept yet."""
        self._last: Mapping[str, Any] | None = None

    def packed(self) -> PackedCounters:
        """All of it."""
        return PackedCounters(
            past=dict(self._past),
            drops=dict(self._drops),
            greatest=dict(self._greatest),
            returned=self._returned,
            last=None if self._last is None else dict(self._last),
        )

    def unpack(self, packed: PackedCounters) -> None:
        """The inverse. A figure that the other image did not have begins at 0."""
        self._fresh = False
        self._past |= packed.past
        self._drops |= packed.drops
        self._greatest |= packed.greatest
        self._returned = packed.returned
        self._last = packed.last

    def _of_one(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Of a route that has had one stage with its first ends, as most have: nothing is added up."""
        self._returned = max(self._returned, figures["committed"] - figures["outstanding"])
        figures["returned"] = self._returned
        return figures

    def keep(self, stage: Mapping[str, Any] | None) -> None:
        """This stage is over."""
        self._add(stage, self._past, self._drops)

    def keep_consumer(self, stage: Mapping[str, Any] | None) -> None:
        """This stage's consuming end is replaced. What it had not seen yet is its successor's to count."""
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
        """The route's figures, with those of the stages that are not over, oldest first; None before the first."""
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
