"""Several routes: one payload to many, many into one, and routes that end or drop on their own."""

from __future__ import annotations

import pytest

from chronetix import shm


def test_fan_out_writes_the_payload_once(make_route):
    route = make_route(policies=("block",) * 5)
    route.outlet.send(b"x" * 5000)
    assert route.arena.used == 8192
    frames = [route.take() for _ in range(5)]
    assert {bytes(frame) for frame in frames} == {b"x" * 5000}
    assert sorted(frame.port for frame in frames) == [0, 1, 2, 3, 4]
    for frame in frames[:4]:
        frame.release()
    assert route.arena.used == 8192
    frames[4].release()
    assert route.arena.used == 0


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_fan_out_reaches_more_routes_than_a_word_has_bits(make_route, size):
    route = make_route(policies=("block",) * 70, credits=2)
    route.outlet.send(b"y" * size)
    with route.outlet.loan(size) as loan:
        memoryview(loan)[:] = b"z" * size
    taken = route.drain()
    assert sorted(taken) == [b"y" * size] * 70 + [b"z" * size] * 70
    assert route.arena.used == 0


def test_a_full_route_holds_all_back_and_nothing_is_sent_to_any(make_route):
    route = make_route(policies=("block", "block"), credits=[8, 1])
    route.outlet.send(b"1")
    with pytest.raises(shm.WouldBlock) as caught:
        route.outlet.send(b"2", 0)
    assert caught.value.args[1] == "r1"
    assert [view["committed"] for view in (route.view(0), route.view(1))] == [1, 1]
    assert route.drain() == [b"1", b"1"]


def test_a_route_that_drops_never_holds_back_and_counts(make_route):
    route = make_route(policies=("block", "drop_newest"), credits=[8, 2])
    for i in range(5):
        route.outlet.send(b"%d" % i, 0)
    assert route.view(0)["dropped"] == 0
    assert route.view(1)["dropped"] == 3
    frames = [route.take() for _ in range(7)]
    assert [bytes(f) for f in frames if f.port == 0] == [b"0", b"1", b"2", b"3", b"4"]
    assert [bytes(f) for f in frames if f.port == 1] == [b"0", b"1"]


def test_a_dropped_frame_has_no_number_and_no_memory(make_route):
    route = make_route(policies=("drop_newest",), credits=1)
    assert route.outlet.send(b"0" * 5000) == 0
    assert route.outlet.send(b"1" * 5000) == -1
    loan = route.outlet.loan(10)
    memoryview(loan)[:] = b"0123456789"
    assert loan.commit() == -1
    assert route.arena.used == 8192
    assert route.view()["dropped"] == 2


def test_fan_in_is_fair(make_route):
    route = make_route(policies=("block",) * 3)
    only = [shm.Outlet([producer], route.bell) for producer in route.producers]
    for i in range(4):
        for outlet in only:
            outlet.send(b"%d" % i)
    ports = [route.take().port for _ in range(12)]
    assert ports == [0, 1, 2] * 4


def test_fan_in_ends_when_every_route_has_ended(make_route):
    route = make_route(policies=("block", "block"))
    shm.Outlet([route.producers[0]], route.bell).send(b"last")
    route.producers[0].close()
    assert not route.inlet.ended
    route.producers[1].close()
    assert not route.inlet.ended
    assert bytes(route.take()) == b"last"
    assert route.inlet.ended
    assert route.inlet.take() is None


def test_an_inlet_without_routes_has_ended():
    inlet = shm.Inlet([], shm.Doorbell())
    assert inlet.ended
    assert inlet.take() is None


def test_a_detached_route_is_told_once_and_the_others_go_on(make_route):
    route = make_route(policies=("block", "block"))
    route.consumers[0].close()
    with pytest.raises(shm.RouteClosed) as caught:
        route.outlet.send(b"a")
    assert caught.value.args[1] == "r0"
    assert "its consumer has detached" in caught.value.args[0]
    assert route.outlet.send(b"b") == -1
    assert route.drain() == [b"b"]
    route.consumers[1].close()
    for _ in range(3):
        with pytest.raises(shm.RouteClosed):
            route.outlet.send(b"c")


def test_a_producer_that_closed_sends_no_more(route):
    route.outlet.send(b"1")
    route.producer.close()
    route.producer.close()
    with pytest.raises(shm.RouteClosed, match="closed at this end"):
        route.outlet.send(b"2")
    assert route.drain() == [b"1"]
    assert route.consumer.ended


def test_frames_of_a_closed_route_still_come_back_to_the_arena(route):
    route.outlet.send(b"x" * 5000)
    frame = route.take()
    route.producer.close()
    route.consumer.close()
    assert route.arena.used == 8192
    frame.release()
    assert route.arena.used == 0


def test_dropping_a_producer_is_no_end_of_stream(route):
    consumer, inlet = route.consumer, route.inlet
    del route
    assert inlet.take(0) is None
    assert not consumer.ended


def test_an_unlinked_producer_says_so_every_time():
    producer = shm.Producer(shm.Arena(), "alone")
    outlet = shm.Outlet([producer], shm.Doorbell())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="route alone is not linked"):
            outlet.send(b"")


def test_what_does_not_belong_together_is_refused(make_route):
    one, other = make_route(), make_route()
    with pytest.raises(ValueError, match="one arena"):
        shm.Outlet([one.producer, other.producer], one.bell)
    with pytest.raises(ValueError, match="one doorbell"):
        shm.Outlet([one.producer], other.bell)
    with pytest.raises(ValueError, match="at least one"):
        shm.Outlet([], one.bell)
    with pytest.raises(ValueError, match="listed twice"):
        shm.Outlet([one.producer, one.producer], one.bell)
    with pytest.raises(TypeError, match=r"must be shm\.Producer"):
        shm.Outlet([one.consumer], one.bell)
    with pytest.raises(TypeError, match=r"must be shm\.Consumer"):
        shm.Inlet([one.producer], one.bell)


@pytest.mark.parametrize(("policy", "sent"), [("block", 4), ("drop_newest", 100), ("latest", 100)])
def test_one_consumer_of_16_that_takes_nothing_stops_the_producer_only_if_its_route_blocks(make_route, policy, sent):
    route = make_route(policies=(*["block"] * 15, policy), credits=4)
    readers = shm.Inlet(route.consumers[:15], route.far_bell)
    taken = [0] * 15
    went = 0
    for _ in range(100):
        try:
            route.outlet.send(b"x", 0)
        except shm.WouldBlock:
            break
        went += 1
        while (frame := readers.take(0)) is not None:
            taken[frame.port] += 1
            del frame
    assert went == sent
    assert taken == [sent] * 15


def test_the_watermark_shows_before_the_credits_are_gone(make_route):
    route = make_route(credits=8)
    for i in range(6):
        assert not route.producer.high, f"after {i} frames"
        route.outlet.send(b"")
    assert route.producer.high
    route.take()
    assert not route.producer.high


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"credits": 0}, "credits must be from 1 to 65536"),
        ({"credits": 65537}, "credits must be from 1 to 65536"),
        ({"credits": 4, "watermark": 5}, "watermark must be from 1 to credits"),
        ({"credits": 4, "watermark": 0}, "watermark must be from 1 to credits"),
        ({"credits": 4, "credit_low": 4}, "credit_low must be below credits"),
        ({"policy": "sometimes"}, "policy must be 'block', 'drop_newest' or 'latest', not 'sometimes'"),
    ],
)
def test_senseless_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        shm.Producer(shm.Arena(), "r", **settings)


@pytest.mark.parametrize("credits", [1, 2, 63, 1000, 65536])
def test_any_number_of_credits_is_that_many_frames(make_route, credits):
    route = make_route(credits=credits)
    for _ in range(credits):
        route.outlet.send(b"", 0)
    with pytest.raises(shm.WouldBlock):
        route.outlet.send(b"", 0)
    assert len(route.drain()) == credits
