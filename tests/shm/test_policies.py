"""What a route does with a frame that finds no credit, beside waiting: give the route up after a time, drop; and taps,
which listen without a say. Every frame that a route does not get is counted by its reason.
"""

from __future__ import annotations

import contextlib
import gc
import threading

import pytest

from chronetix import shm
from tests.shm.lines import attach, join

NS = 1_000_000


def drops(**counts: int) -> dict[str, int]:
    return {"no_credit": 0, "no_room": 0, "overwritten": 0, "given_up": 0, "unread": 0, **counts}


@pytest.fixture
def limited(make_route):
    """Two blocking routes of 2 credits, of which the first is given up after `limit_ms`."""

    def make(limit_ms: int, *, told: list[tuple[str, int]] | None = None, **arguments):
        route = make_route(policies=("block", "block"), credits=[2, 64])
        if told is not None:
            arguments["on_give_up"] = lambda name, waited_ns: told.append((name, waited_ns))
        producer = shm.Producer(route.arena, "limited", credits=2, limit_ns=limit_ms * NS, **arguments)
        consumer = shm.Consumer("limited", credits=2)
        join(producer, route.bell, consumer, route.far_bell)
        for index, fd, _ in route.arena.segments:
            consumer.add_segment(index, fd)
        route.producers[0], route.consumers[0] = producer, consumer
        route.outlet = shm.Outlet(route.producers, route.bell)
        route.inlet = shm.Inlet(route.consumers, route.far_bell)
        return route

    return make


def test_a_route_that_blocks_past_its_limit_is_given_up_and_the_others_go_on(limited):
    told: list[tuple[str, int]] = []
    route = limited(20, told=told)
    for number in range(10):
        route.outlet.send(b"%d" % number)
    assert [name for name, _ in told] == ["limited"]
    assert told[0][1] >= 20 * NS
    seen = route.view(0)
    assert seen["drops"] == drops(given_up=8)
    assert seen["gave_up_after_ns"] == told[0][1]
    assert (seen["committed"], seen["dropped"], seen["closed"]) == (2, 8, True)
    assert route.view(1)["committed"] == 10
    first = shm.Inlet([route.consumers[0]], route.far_bell)
    assert [bytes(frame) for frame in iter(lambda: first.take(0), None)] == [b"0", b"1"], "what it had is still there"
    assert first.ended


def test_a_route_alone_that_is_given_up_says_so(limited):
    route = limited(1)
    outlet = shm.Outlet([route.producers[0]], route.bell)
    outlet.send(b"0")
    outlet.send(b"1")
    for _ in range(2):
        with pytest.raises(shm.RouteClosed, match=r"given up: its consumer returned no credit for \d+ ms"):
            outlet.send(b"2")


def test_a_consumer_that_returns_credits_in_time_is_not_given_up(limited):
    told: list[tuple[str, int]] = []
    route = limited(60_000, told=told)
    first = shm.Inlet([route.consumers[0]], route.far_bell)

    def take_all() -> None:
        while not first.ended:
            first.take()

    reader = threading.Thread(target=take_all)
    reader.start()
    rest = shm.Inlet([route.consumers[1]], route.far_bell)
    for number in range(500):
        route.outlet.send(b"%d" % number)
        while rest.take(0) is not None:
            pass
    route.producers[0].close()
    reader.join()
    assert told == []
    assert route.view(0)["committed"] == 500


def test_tries_that_do_not_wait_use_the_limit_up_too(limited):
    route = limited(5)
    outlet = shm.Outlet([route.producers[0]], route.bell)
    outlet.send(b"0")
    outlet.send(b"1")

    def try_again() -> None:
        while True:
            with contextlib.suppress(shm.WouldBlock):
                outlet.send(b"2", 0)

    with pytest.raises(shm.RouteClosed):
        try_again()


def test_waiting_for_room_ends_with_the_limit(limited):
    route = limited(5)
    outlet = shm.Outlet([route.producers[0]], route.bell)
    outlet.send(b"0")
    outlet.send(b"1")
    with pytest.raises(shm.WouldBlock):
        outlet.send(b"2", 0)
    assert outlet.wait(), "nothing is to be waited for any more"
    with pytest.raises(shm.RouteClosed):
        outlet.send(b"2", 0)


def test_a_time_limit_of_a_send_ends_before_the_route_is_given_up(limited):
    route = limited(60_000)
    route.outlet.send(b"0")
    route.outlet.send(b"1")
    with pytest.raises(shm.WouldBlock):
        route.outlet.send(b"2", 1)
    assert route.view(0)["gave_up_after_ns"] == 0


def test_what_a_callback_raises_the_send_raises(limited):
    def refuse(route: str, waited_ns: int) -> None:
        raise LookupError(route)

    route = limited(1, on_give_up=refuse)
    route.outlet.send(b"0")
    route.outlet.send(b"1")
    with pytest.raises(LookupError):
        route.outlet.send(b"2")
    assert route.outlet.send(b"2") == -1
    assert route.view(1)["committed"] == 3


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"policy": "latest", "limit_ns": 1}, "limit_ns is 0, or a time that a route of policy 'block' may block"),
        ({"limit_ns": -1}, "limit_ns is 0"),
        ({"tap": True}, "a tap must not hold anybody up"),
        ({"policy": "drop_newest", "tap": True}, "a tap must not hold anybody up"),
    ],
)
def test_senseless_policies_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        shm.Producer(shm.Arena(), "r", **settings)


def test_frames_dropped_for_room_and_for_credits_are_counted_apart(make_route):
    route = make_route(policies=("drop_newest",), credits=2, limit=1 << 16)
    held = route.outlet.send(b"x" * 40_000), route.take()
    assert route.outlet.send(b"y" * 40_000) == -1, "no room"
    assert route.outlet.send(b"small") == 1
    assert route.outlet.send(b"small") == -1, "no credit"
    assert route.view()["drops"] == drops(no_room=1, no_credit=1)
    assert route.view()["dropped"] == 2
    del held


class TestTaps:
    @pytest.fixture
    def tap(self):
        """One more listener on the outlet of `route`."""

        def make(route, *, credits: int = 4):
            producer = shm.Producer(route.arena, "tap", credits=credits, policy="latest", tap=True)
            consumer = shm.Consumer("tap", credits=credits)
            join(producer, route.bell, consumer, route.far_bell)
            for index, fd, _ in route.arena.segments:
                consumer.add_segment(index, fd)
            route.outlet.add(producer)
            return producer, consumer, shm.Inlet([consumer], route.far_bell)

        return make

    def test_a_tap_gets_every_frame_from_the_next_one_on(self, route, tap):
        route.outlet.send(b"before")
        _, _, inlet = tap(route)
        assert route.outlet.send(b"one") == 1, "numbers are those of the first route"
        assert [bytes(f) for f in iter(lambda: inlet.take(0), None)] == [b"one"]
        assert route.drain() == [b"before", b"one"]

    def test_a_loan_that_was_open_before_goes_without_it(self, route, tap):
        with route.outlet.loan(4) as loan:
            memoryview(loan)[:] = b"lent"
            producer, consumer, inlet = tap(route)
        assert route.drain() == [b"lent"]
        assert inlet.take(0) is None
        view = shm.RouteView(producer.fd, consumer.fd)
        assert view.snapshot()["dropped"] == 0
        view.close()

    def test_more_routes_than_a_word_has_bits(self, make_route, tap):
        route = make_route(policies=("block",) * 63, credits=1)
        loan = route.outlet.loan(1)
        inlets = [tap(route)[2] for _ in range(70)]
        memoryview(loan)[:] = b"x"
        loan.commit()
        assert all(inlet.take(0) is None for inlet in inlets)
        assert len(route.drain()) == 63
        route.outlet.send(b"y")
        assert all(bytes(inlet.take(0)) == b"y" for inlet in inlets)

    def test_a_tap_that_goes_disturbs_nobody_and_is_let_go_of(self, route, tap):
        producer, consumer, _ = tap(route)
        consumer.close()
        for number in range(3):
            assert route.outlet.send(b"%d" % number) == number
        assert len(route.outlet.producers) == 2
        route.outlet.sweep()
        assert route.outlet.producers == (route.producer,)
        del producer
        gc.collect()
        assert len(route.drain()) == 3

    def test_it_is_let_go_of_only_when_no_loan_is_open(self, route, tap):
        producer, _, _ = tap(route)
        loan = route.outlet.loan(1)
        producer.close()
        route.outlet.sweep()
        assert len(route.outlet.producers) == 2
        memoryview(loan)[:] = b"x"
        loan.commit()
        route.outlet.sweep()
        assert route.outlet.producers == (route.producer,)
        assert route.drain() == [b"x"]

    def test_a_tap_alone_keeps_no_producer_going(self, route, tap):
        _, _, inlet = tap(route)
        route.consumer.close()
        for _ in range(2):
            with pytest.raises(shm.RouteClosed):
                route.outlet.send(b"x")
        assert inlet.take(0) is None

    def test_a_tap_that_lies_is_left_out_quietly(self, route, forge):
        credit = forge.credit(4)
        producer = shm.Producer(route.arena, "tap", credits=4, policy="latest", tap=True)
        attach(producer.link, credit.fd, route.bell)
        route.outlet.add(producer)
        route.outlet.send(b"x")
        credit.put(192, 1 << 50)
        for number in range(5):
            route.outlet.send(b"%d" % number)
            route.drain()
        with pytest.raises(shm.PeerFault, match="claims"):
            shm.Outlet([producer], route.bell).send(b"x")

    def test_only_taps_are_added(self, route):
        producer = shm.Producer(route.arena, "late", credits=4)
        with pytest.raises(ValueError, match="only taps are added"):
            route.outlet.add(producer)
        with pytest.raises(TypeError):
            route.outlet.add(7)

    def test_a_tap_joins_while_another_thread_waits_for_a_credit(self, make_route, tap):
        route = make_route(credits=1)
        route.outlet.send(b"0")
        sent = threading.Event()

        def send() -> None:
            route.outlet.send(b"1")
            sent.set()

        sender = threading.Thread(target=send)
        sender.start()
        while route.view()["would_block"] == 0:
            pass
        _, _, inlet = tap(route)
        route.take().release()
        sender.join()
        assert sent.is_set()
        assert [bytes(f) for f in iter(lambda: inlet.take(0), None)] == [b"1"]
