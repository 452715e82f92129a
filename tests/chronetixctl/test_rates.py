"""Which route is the bottleneck, and how fast each is, from two snapshots."""

from __future__ import annotations

from typing import Any

from chronetixctl.rates import bottlenecks, node_rates, route_rates


def snapshot(seconds: float, **routes: dict[str, Any]) -> dict[str, Any]:
    zeros = dict.fromkeys(
        ("committed", "bytes", "outstanding", "would_block", "blocked_ns", "dropped", "p50_ns", "p99_ns"), 0
    )
    entries = [
        {"id": name, "from": name[0], "to": name[1], "credits": 8, "watermark": 6, **zeros, **counts}
        for name, counts in routes.items()
    ]
    return {
        "monotonic_ns": int(seconds * 1e9),
        "flows": [{"flow": "f", "state": "running", "nodes": [], "routes": entries}],
    }


def slowest(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [rate.route for rate in bottlenecks(route_rates(before, after))]


def test_in_a_full_chain_only_the_last_route_is_the_bottleneck() -> None:
    full = {"outstanding": 8}

    assert slowest(snapshot(0, ab={}, bc={}, cd={}), snapshot(1, ab=full, bc=full, cd={"outstanding": 1})) == ["bc"]


def test_of_a_fan_out_each_full_branch_counts() -> None:
    after = snapshot(1, ab={"outstanding": 6}, ac={"outstanding": 7}, ad={"outstanding": 5})

    assert slowest(snapshot(0, ab={}, ac={}, ad={}), after) == ["ab", "ac"]


def test_a_producer_that_met_would_block_is_under_pressure_even_below_the_mark() -> None:
    before, after = snapshot(0, ab={"would_block": 3}), snapshot(1, ab={"would_block": 9, "outstanding": 4})

    assert slowest(before, after) == ["ab"]


def test_an_empty_or_detached_route_is_none() -> None:
    after = snapshot(1, ab={"would_block": 9, "outstanding": 0}, bc={"outstanding": 8, "detached": True})

    assert slowest(snapshot(0, ab={}, bc={}), after) == []


def test_rates_are_per_second() -> None:
    (rate,) = route_rates(
        snapshot(1, ab={"committed": 10, "bytes": 100, "blocked_ns": 0}),
        snapshot(3, ab={"committed": 30, "bytes": 500, "blocked_ns": 1_000_000_000}),
    )

    assert (rate.frames_per_s, rate.bytes_per_s, rate.blocked_share) == (10, 200, 0.5)


def test_a_route_that_was_not_there_before_has_no_rate_yet() -> None:
    (rate,) = route_rates(snapshot(0), snapshot(1, ab={"committed": 10}))

    assert (rate.frames_per_s, rate.frames) == (0, 10)


def test_a_flow_started_anew_counts_from_nothing() -> None:
    (rate,) = route_rates(snapshot(0, ab={"committed": 1000}), snapshot(1, ab={"committed": 10}))

    assert rate.frames_per_s == 10


def test_a_nodes_cpu_is_its_share_of_one_cpu() -> None:
    def at(seconds: int, cpu: float, pid: int) -> dict[str, Any]:
        node = {"node": "a", "pid": pid, "state": "running", "cpu_s": cpu, "rss_bytes": None, "unique_bytes": 5}
        return {"monotonic_ns": seconds * 10**9, "flows": [{"flow": "f", "nodes": [node], "routes": []}]}

    assert node_rates(at(0, 1, 7), at(2, 2, 7))[0].cpu == 0.5
    assert node_rates(at(0, 1, 7), at(2, 2, 8))[0].cpu == 0
