"""What an observer sees of a route, while it runs and after both ends are gone."""

from __future__ import annotations

import os

import pytest

from chronetix import shm


def test_the_counters_tell_what_happened(make_route):
    route = make_route(credits=4)
    frames = []
    for size in (10, 20, 30):
        route.outlet.send(bytes(size))
        frames.append(route.take())
    frames[1].release()
    seen = route.view()
    assert {
        name: seen[name]
        for name in (
            "committed",
            "bytes",
            "taken",
            "returned",
            "outstanding",
            "max_outstanding",
            "credits",
            "watermark",
        )
    } == {
        "committed": 3,
        "bytes": 60,
        "taken": 3,
        "returned": 1,
        "outstanding": 2,
        "max_outstanding": 3,
        "credits": 4,
        "watermark": 3,
    }
    assert not seen["closed"]
    assert not seen["detached"]


def test_latencies_are_of_the_frames_taken(route):
    assert route.view()["p50_ns"] == route.view()["max_ns"] == 0
    for _ in range(100):
        route.outlet.send(b"")
        route.take()
    seen = route.view()
    assert 0 < seen["p50_ns"] <= seen["p99_ns"] <= seen["max_ns"] * 1.07


def test_the_most_outstanding_is_exact_though_seldom_looked_at(make_route):
    route = make_route(credits=16)
    frames = []
    for _ in range(5):
        route.outlet.send(b"")
        frames.append(route.take())
    frames.clear()
    for _ in range(200):
        route.outlet.send(b"")
        route.outlet.send(b"")
        route.drain()
    assert route.view()["max_outstanding"] == 5


@pytest.mark.parametrize(
    ("latencies", "p50", "p99"),
    [
        ({0: 1}, 0, 0),
        ({7: 1000}, 7, 7),
        ({100: 980, 5000: 20}, 102, 4992),
        ({1: 1, 1 << 50: 1}, 1, None),
        ({1_000_000: 500, 2_000_000: 500}, 999_424, 1_998_848),
    ],
)
def test_quantiles_are_within_a_bucket_of_the_truth(forge, latencies, p50, p99):
    def bucket(ns: int) -> int:
        if ns < 16:
            return ns
        octave = ns.bit_length() - 1
        return 607 if octave > 40 else (octave - 4) * 16 + (ns >> (octave - 4))

    ring, credit = forge.ring(4), forge.credit(4)
    for ns, count in latencies.items():
        credit.put(512 + 8 * bucket(ns), count)
    view = shm.RouteView(ring.fd, credit.fd)
    seen = view.snapshot()
    view.close()
    assert abs(seen["p50_ns"] - p50) <= p50 * 0.0625
    if p99 is not None:
        assert abs(seen["p99_ns"] - p99) <= p99 * 0.0625


def test_the_view_outlives_both_ends(spawn):
    def child(end):
        end.next()
        end.say()
        end.sock.recv(1)
        os._exit(0)

    process = spawn(child)
    process.end.outlet.send(b"abc")
    process.end.hear()
    ring = process.end.producer.fd
    with pytest.raises(shm.PeerFault, match="not a ring"):
        shm.RouteView(process.end.consumer.fd, ring)
    with pytest.raises(shm.PeerFault, match="not a credit"):
        shm.RouteView(ring, ring)
    process.end.say()
    process.join()


def test_a_view_of_a_dead_route_still_tells(make_route):
    route = make_route()
    route.outlet.send(b"abc")
    view = shm.RouteView(route.producer.fd, route.consumer.fd)
    route.take()
    route.producer.close()
    route.consumer.close()
    del route
    seen = view.snapshot()
    assert (seen["committed"], seen["taken"], seen["closed"], seen["detached"]) == (1, 1, True, True)
    view.close()
    view.close()
    with pytest.raises(ValueError, match="closed"):
        view.snapshot()


def test_ends_of_different_routes_are_no_route(make_route):
    one, other = make_route(credits=4), make_route(credits=5)
    with pytest.raises(shm.PeerFault, match="made for 4 credits, the other for 5"):
        shm.RouteView(one.producer.fd, other.consumer.fd)


def held_by(route):
    view = shm.RouteView(route.producer.fd, route.consumer.fd)
    try:
        count, frames = view.held()
        return count, sorted(frames)
    finally:
        view.close()


def test_frames_that_were_taken_and_not_returned_are_told(make_route):
    route = make_route(credits=4)
    assert held_by(route) == (0, [])
    frames = []
    for size in (10, 20, 30):
        route.outlet.send(bytes(size), trace=size * 2)
        frames.append(route.take())
    route.outlet.send(b"not taken")
    frames[1].release()
    assert held_by(route) == (2, [(0, 10, 20), (2, 30, 60)])


def test_a_frame_that_is_held_for_many_rounds_is_still_told(make_route):
    route = make_route(credits=2)
    route.outlet.send(b"kept")
    kept = route.take()
    for _ in range(50):
        route.outlet.send(b"")
        route.take().release()
    assert held_by(route) == (1, [(kept.seq, 4, 0)])


def test_of_many_frames_that_are_held_some_are_told_and_all_counted(make_route):
    route = make_route(credits=200)
    frames = []
    for _ in range(150):
        route.outlet.send(b"")
        frames.append(route.take())
    count, some = held_by(route)
    assert (count, len(some)) == (150, 64)
    assert {seq for seq, _, _ in some} <= set(range(150))
