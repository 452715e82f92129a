"""What follows the end of a worker: restart policies, strategies, back-off. Tables and arithmetic, no state.

A node's rule determines which endings are followed by a restart, how many restarts a window may hold, and how long each
is delayed. The flow's strategy determines which nodes are restarted along with it. Time and chance are passed in. The
default is ``temporary``: a restarted plugin has lost what it kept in memory, so restarting has to be its author's
choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from chronetixd.core.levels import successors


class Policy(StrEnum):
    """When a node is restarted: after every end except the end of its stream, after failures only, or never."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class Strategy(StrEnum):
    """Which nodes are restarted with a node: no other one, all nodes downstream of it by data routes, or all nodes of
    the flow."""

    ONE_FOR_ONE = "one_for_one"
    REST_FOR_ONE = "rest_for_one"
    ONE_FOR_ALL = "one_for_all"


class Ending(StrEnum):
    """How a worker ended."""

    STREAM_ENDED = "stream-ended"
    """It finished, and its data routes with it: a successor would have nothing to do."""
    FINISHED = "finished"
    """It finished and never had a data route."""
    FAILED = "failed"
    """Any end of its own that was not in order: killed, raised, left too early, hung, never ready."""
    WITH_GROUP = "with-group"
    """The daemon ended it, because another node of its restart group had failed."""


_P, _E = Policy, Ending
# fmt: off
RESTARTED: dict[Policy, dict[Ending, bool]] = {
    _P.PERMANENT: {_E.STREAM_ENDED: False, _E.FINISHED: True,  _E.FAILED: True,  _E.WITH_GROUP: True},
    _P.TRANSIENT: {_E.STREAM_ENDED: False, _E.FINISHED: False, _E.FAILED: True,  _E.WITH_GROUP: True},
    _P.TEMPORARY: {_E.STREAM_ENDED: False, _E.FINISHED: False, _E.FAILED: False, _E.WITH_GROUP: False},
}
# fmt: on
"""Whether a restart follows. Total."""


class Rule(Struct, frozen=True):
    """The restart rule of a node: at most ``max`` restarts within ``window_ns``. The first restart in a window comes at
    once, the next after ``backoff_ns``, which doubles up to ``backoff_max_ns``. A random part of the delay, at most
    ``jitter_pct`` percent, is left out."""

    policy: Policy = Policy.TEMPORARY
    max: int = 5
    window_ns: int = 60_000_000_000
    backoff_ns: int = 100_000_000
    backoff_max_ns: int = 10_000_000_000
    jitter_pct: int = 20


class CountedExit(NamedTuple):
    """An exit that counts for a node's restarts: when it was (CLOCK_MONOTONIC), and in words."""

    at_ns: int
    what: str


class RestartAfter(Struct, frozen=True):
    """Restart the node ``after_ns`` from now; it is the ``attempt``-th restart within its window."""

    after_ns: int
    attempt: int


class GiveUp(Struct, frozen=True):
    """Do not restart the node. ``exhausted``: the policy demands a restart, but the window is full."""

    exhausted: bool = False


Verdict = RestartAfter | GiveUp


def decide(rule: Rule, ending: Ending, earlier: Sequence[CountedExit], now_ns: int, chance: float) -> Verdict:
    """Return what follows an ``ending`` at ``now_ns``. ``earlier`` are the node's counted exits before this one;
    ``chance`` is uniform in 0 … 1."""
    if not RESTARTED[rule.policy][ending]:
        return GiveUp()
    attempt = 1 + len(within(earlier, rule.window_ns, now_ns))
    if attempt > rule.max:
        return GiveUp(exhausted=True)
    return RestartAfter(delay(rule, attempt, chance), attempt)


def within(deaths: Iterable[CountedExit], window_ns: int, now_ns: int) -> list[CountedExit]:
    """Return those of ``deaths`` that are less than ``window_ns`` old."""
    return [death for death in deaths if now_ns - death.at_ns < window_ns]


def delay(rule: Rule, attempt: int, chance: float) -> int:
    """Return the delay of the ``attempt``-th restart of a window, in ns."""
    if attempt < 2:
        return 0
    whole = min(rule.backoff_ns << min(attempt - 2, 62), rule.backoff_max_ns)
    return round(whole * (1 - rule.jitter_pct / 100 * chance))


def restart_group(
    strategy: Strategy, node: str, nodes: Iterable[str], edges: Iterable[tuple[str, str]]
) -> frozenset[str]:
    """Return ``node`` and the nodes that are restarted with it."""
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


def exhausted(rule: Rule, last: str, earlier: Sequence[CountedExit]) -> str:
    """Return why a node is not restarted any more, for people: how often it was restarted, how it ended now, and how
    before."""
    before = list(dict.fromkeys(death.what for death in reversed(earlier)))
    times = "once" if rule.max == 1 else f"{rule.max} times"
    text = f"was restarted {times} within {rule.window_ns / 1e9:g} s and failed again: {last}"
    others = [what for what in before if what != last]
    if others:
        return f"{text}; before that it {', it '.join(others[:3])}"
    return f"{text}; so it ended each time"
