"""What happens after a worker ended: restart policies, strategies, back-off. Tables and arithmetic, no state.

A node's rule says which endings are followed by a restart, how many restarts a window may hold, and how long each is
put off; the flow's strategy says who is restarted along with it. Time and chance are passed in. ``temporary`` is the
default: a restarted plugin has lost what it kept in memory, so that restarting is its author's choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from chronetixd.core.levels import successors


class Policy(StrEnum):
    """When a node is restarted: after every end that is not its stream's, after failures only, never."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class Strategy(StrEnum):
    """Who is restarted with a node: nobody, everyone downstream of it by data routes, every node of the flow."""

    ONE_FOR_ONE = "one_for_one"
    REST_FOR_ONE = "rest_for_one"
    ONE_FOR_ALL = "one_for_all"


class Ending(StrEnum):
    """How a worker ended."""

    STREAM_ENDED = "stream-ended"
    """It finished, and its data routes with it: there is nothing left to do for a successor."""
    FINISHED = "finished"
    """It finished without ever having had a data route."""
    FAILED = "failed"
    """Every end of its own that is not in good order: killed, raised, left too early, hung, never ready."""
    KIN = "kin"
    """We ended it, because a node that it is restarted with had failed."""


_P, _E = Policy, Ending
# fmt: off
RESTARTED: dict[Policy, dict[Ending, bool]] = {
    _P.PERMANENT: {_E.STREAM_ENDED: False, _E.FINISHED: True,  _E.FAILED: True,  _E.KIN: True},
    _P.TRANSIENT: {_E.STREAM_ENDED: False, _E.FINISHED: False, _E.FAILED: True,  _E.KIN: True},
    _P.TEMPORARY: {_E.STREAM_ENDED: False, _E.FINISHED: False, _E.FAILED: False, _E.KIN: False},
}
# fmt: on
"""Whether a restart follows. Total."""


class Rule(Struct, frozen=True):
    """A node's part: at most ``max`` restarts within ``window_ns``. The first restart in a window comes at once, the
    next after ``backoff_ns``, which doubles up to ``backoff_max_ns``; ``jitter_pct`` of it, by chance, is left out."""

    policy: Policy = Policy.TEMPORARY
    max: int = 5
    window_ns: int = 60_000_000_000
    backoff_ns: int = 100_000_000
    backoff_max_ns: int = 10_000_000_000
    jitter_pct: int = 20


class Death(NamedTuple):
    """An end that counts: when, by the monotonic clock, and in words."""

    at_ns: int
    what: str


class Again(Struct, frozen=True):
    """Restart it ``after_ns`` from now; the ``attempt``-th within its window."""

    after_ns: int
    attempt: int


class GiveUp(Struct, frozen=True):
    """No restart. ``exhausted``: the policy wants one, but the window is full."""

    exhausted: bool = False


Verdict = Again | GiveUp


def decide(rule: Rule, ending: Ending, earlier: Sequence[Death], now_ns: int, chance: float) -> Verdict:
    """What follows an ending at ``now_ns``. ``earlier`` are the node's deaths before this one, ``chance`` is uniform
    in 0 … 1."""
    if not RESTARTED[rule.policy][ending]:
        return GiveUp()
    attempt = 1 + len(within(earlier, rule.window_ns, now_ns))
    if attempt > rule.max:
        return GiveUp(exhausted=True)
    return Again(delay(rule, attempt, chance), attempt)


def within(deaths: Iterable[Death], window_ns: int, now_ns: int) -> list[Death]:
    """Those that are less than ``window_ns`` old."""
    return [death for death in deaths if now_ns - death.at_ns < window_ns]


def delay(rule: Rule, attempt: int, chance: float) -> int:
    """How long the ``attempt``-th restart of a window is put off, in ns."""
    if attempt < 2:
        return 0
    whole = min(rule.backoff_ns << min(attempt - 2, 62), rule.backoff_max_ns)
    return round(whole * (1 - rule.jitter_pct / 100 * chance))


def kin(strategy: Strategy, node: str, nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> frozenset[str]:
    """``node`` and who is restarted with it."""
    everyone = frozenset(nodes)
    if strategy is Strategy.ONE_FOR_ALL:
        return everyone
    if strategy is Strategy.ONE_FOR_ONE:
        return frozenset((node,))
    return _downstream(node, successors(everyone, edges))


def _downstream(node: str, consumers: Mapping[str, set[str]]) -> frozenset[str]:
    found, ahead = {node}, [node]
    while ahead:
        for consumer in consumers[ahead.pop()] - found:
            found.add(consumer)
            ahead.append(consumer)
    return frozenset(found)


def exhausted(rule: Rule, last: str, earlier: Sequence[Death]) -> str:
    """Why a node is not restarted any more, for people: how often it was, how it ended now and before."""
    before = list(dict.fromkeys(death.what for death in reversed(earlier)))
    times = "once" if rule.max == 1 else f"{rule.max} times"
    text = f"was restarted {times} within {rule.window_ns / 1e9:g} s and failed again: {last}"
    others = [what for what in before if what != last]
    if others:
        return f"{text}; before that it {', it '.join(others[:3])}"
    return f"{text}; so it ended each time"
