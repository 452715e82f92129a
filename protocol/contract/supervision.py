"""Reads what a flow declares about nodes that fail: restart, liveness, and which nodes are restarted together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from chronetix.protocol.contract.reading import Fields, ProblemCollector, one_of, quote
from chronetix.protocol.contract.types import RESTARTS, STRATEGIES, Liveness, Manifest, Restart, Route

MAX_RESTARTS: Final = 10_000
MAX_MS: Final = 7 * 24 * 3600 * 1000
"""The longest back-off, window or probe in ms: a week, because a longer one is probably a mistake."""

MIN_PERIOD_MS: Final = 10
DEFAULT: Final = Restart()


def read_restart(parent: Fields) -> Restart:
    """Return the restart rule, given as a policy's name or as a map with ``policy`` and numbers."""
    value = parent.get("restart")
    if value is None:
        return DEFAULT
    if not isinstance(value, Mapping):
        return Restart(policy=parent.choice("restart", RESTARTS, "temporary"))
    fields = parent.child("restart")
    backoff = _figure(fields, "backoff_ms", 0, MAX_MS, DEFAULT.backoff_ms)
    restart = Restart(
        policy=fields.choice("policy", RESTARTS, None if fields.raw else "temporary"),
        max=_figure(fields, "max", 1, MAX_RESTARTS, DEFAULT.max),
        window_ms=_figure(fields, "window_ms", 1, MAX_MS, DEFAULT.window_ms),
        backoff_ms=backoff,
        backoff_max_ms=_figure(fields, "backoff_max_ms", 0, MAX_MS, max(backoff, DEFAULT.backoff_max_ms)),
        jitter_pct=_figure(fields, "jitter_pct", 0, 100, DEFAULT.jitter_pct),
    )
    if backoff > restart.backoff_max_ms:
        message = f"{backoff} is above backoff_max_ms, {restart.backoff_max_ms}"
        fields.notes.problem(fields.at("backoff_ms"), message, "it must not be")
    fields.done()
    return restart


def read_liveness(parent: Fields) -> Liveness | None:
    """Return the liveness rule; None if the node is not probed. The period is half the limit unless it is given."""
    if parent.get("liveness") is None:
        return None
    fields = parent.child("liveness")
    limit = fields.integer("limit_ms", MIN_PERIOD_MS, MAX_MS)
    if limit is None:
        if fields.get("limit_ms") is None:
            hint = "how long one callback may take, in ms"
            fields.notes.problem(fields.at("limit_ms"), "is required and missing", hint)
        limit = MAX_MS
    liveness = Liveness(
        limit_ms=limit,
        period_ms=_figure(fields, "period_ms", MIN_PERIOD_MS, MAX_MS, max(MIN_PERIOD_MS, limit // 2)),
        delay_ms=_figure(fields, "delay_ms", 0, MAX_MS, 0),
        failures=_figure(fields, "failures", 1, MAX_RESTARTS, 1),
    )
    fields.done()
    return liveness


def _figure(fields: Fields, name: str, low: int, high: int, default: int) -> int:
    value = fields.integer(name, low, high)
    return default if value is None else value


def check_strategy(
    strategy: str, manifests: Sequence[Manifest], routes: Sequence[Route], notes: ProblemCollector
) -> None:
    """Check that no node with the policy temporary is among the nodes that the strategy restarts together."""
    if strategy == STRATEGIES[0]:
        return
    never = {manifest.node: at for at, manifest in enumerate(manifests) if manifest.restart.policy == "temporary"}
    restarted = [manifest.node for manifest in manifests if manifest.node not in never]
    if not restarted:
        hint = f"give a node restart, {one_of(RESTARTS[:2])}"
        notes.warn("strategy", f"{strategy} has no effect: no node is ever restarted", hint)
        return
    causes = _downstream(restarted, routes) if strategy == "rest_for_one" else dict.fromkeys(never, restarted[0])
    for node, at in never.items():
        if node in causes:
            message = f"node {quote(node)} is temporary, but strategy {strategy} restarts it with {quote(causes[node])}"
            hint = f"give it one of: {', '.join(RESTARTS[:2])}; or use strategy {STRATEGIES[0]}"
            notes.problem(f"manifests[{at}].restart", message, hint)


def _downstream(starts: Sequence[str], routes: Sequence[Route]) -> dict[str, str]:
    """Return every node that data routes lead to from one of ``starts``, with the start that it was reached from."""
    consumers: dict[str, list[str]] = {}
    for route in routes:
        if route.plane == "data":
            consumers.setdefault(route.source, []).append(route.target)
    causes = dict(zip(starts, starts, strict=True))
    ahead = list(starts)
    while ahead:
        source = ahead.pop()
        for target in consumers.get(source, ()):
            if target not in causes:
                causes[target] = causes[source]
                ahead.append(target)
    return causes
