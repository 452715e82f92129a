"""Who waits sleeps, and is woken by what it waits for: in one process, across processes, by signals, by threads."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from chronetix import shm
from tests.shm.lines import attach


def test_frames_and_credits_wake_another_process(spawn):
    """A few credits, many frames, each end waiting for the other all the time."""
    count = 3000

    def echo(end):
        for i in range(count):
            frame = end.next()
            assert bytes(frame) == b"%d" % i
            end.outlet.send(frame, input_seq=frame.seq)
        end.producer.close()

    child = spawn(echo, credits=3)
    sent = received = 0
    while received < count:
        while sent < count and sent - received < 3:
            child.end.outlet.send(b"%d" % sent)
            sent += 1
        frame = child.end.next()
        assert (bytes(frame), frame.input_seq, frame.seq) == (b"%d" % received, received, received)
        received += 1
        del frame
    assert child.end.inlet.take() is None
    assert child.end.inlet.ended
    child.join()


def test_a_stream_through_one_credit_arrives_whole(spawn):
    def swallow(end):
        total = 0
        while not end.inlet.ended:
            frame = end.inlet.take()
            if frame is not None:
                total += int.from_bytes(frame, "little")
                frame.release()
        end.outlet.send(total.to_bytes(8, "little"))

    child = spawn(swallow, credits=1)
    for i in range(2000):
        child.end.outlet.send(i.to_bytes(8, "little"))
    child.end.producer.close()
    assert int.from_bytes(child.end.next(), "little") == sum(range(2000))
    child.join()


def test_room_wakes_a_producer_whose_arena_is_full(spawn):
    """64 credits, but room for two frames only: it waits for bytes, not for credits."""

    def swallow(end):
        for i in range(500):
            frame = end.next()
            assert frame.numpy()[0] == i & 0xFF
            del frame
        end.say()

    child = spawn(swallow, credits=64, limit=1 << 18)
    for i in range(500):
        child.end.outlet.send(bytes([i & 0xFF]) * 100_000)
    child.end.hear()
    assert child.end.arena.used == 0
    child.join()


def test_a_consumer_that_holds_more_than_credit_low_is_not_waited_for(spawn):
    """It holds six of eight frames before it looks at any; the producer would sleep until four are left."""

    def hoard(end):
        held = []
        for _ in range(50):
            while len(held) < 7:
                held.append(end.next())
            held.clear()
        end.say()

    child = spawn(hoard, credits=8)
    for i in range(350):
        child.end.outlet.send(b"%d" % i)
    child.end.hear()
    child.join()


def test_the_end_of_a_stream_wakes_the_other_process(spawn):
    def wait(end):
        end.say()
        assert end.inlet.take() is None
        assert end.inlet.ended

    child = spawn(wait)
    child.end.hear()
    child.end.producer.close()
    child.join()


def test_detaching_wakes_a_producer_that_waits(spawn):
    def detach(end):
        end.sock.recv(1)
        end.consumer.close()
        end.say()
        end.sock.recv(1)

    child = spawn(detach, credits=1)
    child.end.outlet.send(b"fills it")
    child.end.say()
    with pytest.raises(shm.RouteClosed, match="has detached"):
        child.end.outlet.send(b"waits")
    child.end.hear()
    child.end.say()
    child.join()


def test_time_runs_out(route):
    assert route.inlet.take(2_000_000) is None
    for _ in range(8):
        route.outlet.send(b"")
    with pytest.raises(shm.WouldBlock, match="all 8 credits are in use"):
        route.outlet.send(b"", 2_000_000)
    assert not route.outlet.wait(2_000_000)
    assert not route.bell.wait(2_000_000)
    seen = route.view()
    assert seen["would_block"] == 1
    assert seen["blocked_ns"] >= 2_000_000
    assert seen["producer_sleeps"] >= 1
    assert seen["consumer_sleeps"] == 1


@pytest.mark.parametrize("timeout", [0, 1, -1])
def test_nothing_sleeps_when_there_is_something(route, timeout):
    route.outlet.send(b"x", timeout)
    assert route.outlet.wait(timeout)
    assert bytes(route.inlet.take(timeout)) == b"x"
    assert route.view()["consumer_sleeps"] == 0


def test_would_block_changes_nothing(make_route):
    route = make_route(credits=2)
    route.outlet.send(b"a")
    route.outlet.send(b"b")
    before = os.pread(route.producer.fd, 1 << 16, 512), route.arena.used, route.producer.position
    for _ in range(5):
        with pytest.raises(shm.WouldBlock):
            route.outlet.send(b"c" * 10_000, 0)
        with pytest.raises(shm.WouldBlock):
            route.outlet.loan(10, 0)
    assert before == (os.pread(route.producer.fd, 1 << 16, 512), route.arena.used, route.producer.position)
    assert route.view()["would_block"] == 10
    assert not route.far_bell.clear()


def test_waiting_ends_at_credit_low_and_not_at_the_first_credit(make_route):
    route = make_route(credits=8, low=3)
    for _ in range(8):
        route.outlet.send(b"")
    with pytest.raises(shm.WouldBlock):
        route.outlet.send(b"", 0)
    frames = [route.take() for _ in range(8)]
    for used in (7, 6, 5, 4):
        frames.pop().release()
        assert route.producer.outstanding == used
        assert not route.outlet.wait(0)
    frames.pop().release()
    assert route.outlet.wait(0)


def test_credits_held_by_open_loans_count_for_credit_low(make_route):
    route = make_route(credits=4, low=1)
    loans = [route.outlet.loan(1) for _ in range(3)]
    route.outlet.send(b"")
    assert not route.outlet.wait(0)
    route.take().release()
    assert route.outlet.wait(0)
    for loan in loans:
        loan.cancel()


def test_a_ring_of_the_bell_ends_a_take(route):
    route.far_bell.ring()
    assert route.inlet.take() is None
    assert not route.far_bell.clear()


def test_a_foreign_loop_arms_polls_and_takes(route):
    assert route.inlet.arm()
    assert not route.far_bell.clear()
    route.outlet.send(b"x")
    assert route.far_bell.clear()
    assert not route.inlet.arm()
    assert bytes(route.take()) == b"x"
    route.outlet.send(b"y")
    route.take()
    assert route.inlet.arm()
    route.producer.close()
    assert route.far_bell.clear()


def test_nobody_asleep_costs_no_ring(route):
    for _ in range(100):
        route.outlet.send(b"")
        route.take()
    seen = route.view()
    assert (seen["producer_wakes"], seen["consumer_wakes"]) == (0, 0)
    assert not route.bell.clear()
    assert not route.far_bell.clear()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("what", ["take", "send", "wait", "bell"])
def test_a_signal_ends_any_sleep_through_its_handler(make_route, what):
    route = make_route(credits=1)
    route.outlet.send(b"")
    if what == "take":
        route.take()

    def stop(*_):
        raise Stopped

    def poke():
        armed.wait()
        while not done.wait(0.01):  # no way to see that it sleeps: signal until it has ended
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    armed, done = threading.Event(), threading.Event()
    before = signal.signal(signal.SIGUSR1, stop)
    thread = threading.Thread(target=poke)
    thread.start()
    calls = {
        "take": route.inlet.take,
        "send": lambda: route.outlet.send(b""),
        "wait": route.outlet.wait,
        "bell": route.bell.wait,
    }
    try:
        armed.set()
        with pytest.raises(Stopped):
            calls[what]()
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        done.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert route.producer.credits in (0, 1)


def test_a_handler_that_returns_does_not_end_a_sleep(route):
    calls = []
    before = signal.signal(signal.SIGUSR1, lambda *_: calls.append(1))

    def poke():
        while not calls:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        route.outlet.send(b"after the signal")

    thread = threading.Thread(target=poke)
    thread.start()
    try:
        assert bytes(route.inlet.take()) == b"after the signal"
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_threads_of_one_process_wait_for_each_other(make_route):
    route = make_route(credits=2)
    got = []

    def receive():
        while not route.inlet.ended:
            frame = route.inlet.take()
            if frame is not None:
                got.append(int.from_bytes(frame, "little"))

    thread = threading.Thread(target=receive)
    thread.start()
    for i in range(3000):
        route.outlet.send(i.to_bytes(4, "little"))
    route.producer.close()
    thread.join()
    assert got == list(range(3000))


def test_several_threads_may_sleep_on_one_bell(make_route):
    """Four senders on one outlet, three of one credit each: whoever is woken, nobody is forgotten."""
    route = make_route(credits=1, policies=("block",) * 4)
    outlets = [shm.Outlet([producer], route.bell) for producer in route.producers]
    total = 400

    def send(outlet):
        for i in range(total):
            outlet.send(i.to_bytes(4, "little"))

    threads = [threading.Thread(target=send, args=(outlet,)) for outlet in outlets]
    for thread in threads:
        thread.start()
    seen = dict.fromkeys(range(4), 0)
    while sum(seen.values()) < 4 * total:
        frame = route.inlet.take()
        if frame is None:
            continue
        assert int.from_bytes(frame, "little") == seen[frame.port]
        seen[frame.port] += 1
        del frame
    for thread in threads:
        thread.join()
    assert route.arena.used == 0


def test_several_threads_may_take_from_one_inlet(make_route):
    route = make_route(credits=4)
    got: list[int] = []

    def receive():
        while not route.inlet.ended:
            frame = route.inlet.take()
            if frame is not None:
                got.append(int.from_bytes(frame, "little"))

    threads = [threading.Thread(target=receive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(1000):
        route.outlet.send(i.to_bytes(4, "little"))
    route.producer.close()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(1000))


def test_a_confirmed_segment_wakes_the_sender():
    grown = threading.Event()
    arena = shm.Arena(1 << 20, first=1 << 16, on_grow=lambda *_: grown.set())
    bell, consumer, producer = shm.Doorbell(), shm.Consumer("r"), shm.Producer(arena, "r")
    attach(producer.link, consumer.fd, bell)
    outlet = shm.Outlet([producer], bell)

    def confirm():
        grown.wait()
        arena.confirm(1)

    thread = threading.Thread(target=confirm)
    thread.start()
    outlet.send(bytes(100_000))
    thread.join()
    assert producer.position == 1


def test_cancelling_a_loan_wakes_a_sender_in_another_thread(make_route):
    route = make_route(credits=1)
    loan = route.outlet.loan(1)
    thread = threading.Thread(target=lambda: route.outlet.send(b"at last"))
    thread.start()
    while not route.view()["producer_sleeps"]:
        pass
    loan.cancel()
    thread.join()
    assert route.drain() == [b"at last"]


def test_an_observer_sees_a_wait_that_has_not_ended(make_route):
    route = make_route(credits=1)
    route.outlet.send(b"")
    thread = threading.Thread(target=lambda: route.outlet.send(b""))
    thread.start()
    while not route.view()["producer_sleeps"]:
        pass
    first = route.view()["blocked_ns"]
    while route.view()["blocked_ns"] <= first:
        pass
    route.take()
    thread.join()
    total = route.view()["blocked_ns"]
    assert total > first
    assert route.view()["blocked_ns"] == total


def test_closing_at_this_end_wakes_a_sender_in_another_thread(make_route):
    route = make_route(credits=1)
    route.outlet.send(b"")
    caught = []

    def send():
        try:
            route.outlet.send(b"")
        except shm.RouteClosed as closed:
            caught.append(closed)

    thread = threading.Thread(target=send)
    thread.start()
    while not route.view()["producer_sleeps"]:
        pass
    route.producer.close()
    route.bell.ring()
    thread.join()
    assert len(caught) == 1


def test_a_frame_returned_while_its_taker_sleeps_wakes_a_sender_that_waits_for_more(make_route):
    """The sender wants both credits back (credit_low 0), but one is enough for the frame that the taker waits for."""
    route = make_route(credits=2, low=0)
    route.outlet.send(b"0")
    route.outlet.send(b"1")
    first, second = route.take(), route.take()
    taken = []
    taker = threading.Thread(target=lambda: taken.append(bytes(route.inlet.take())))
    taker.start()
    while not route.view()["consumer_sleeps"]:
        pass
    sender = threading.Thread(target=lambda: route.outlet.send(b"2"))
    sender.start()
    while not route.view()["producer_sleeps"]:
        pass
    second.release()
    taker.join()
    sender.join()
    assert taken == [b"2"]
    first.release()


def test_a_bell_is_not_closed_under_a_sleeper():
    bell = shm.Doorbell()
    thread = threading.Thread(target=bell.wait)
    thread.start()
    refused = False
    while not refused:
        try:
            bell.close()
            bell = shm.Doorbell()
            break
        except RuntimeError as error:
            refused = "a thread sleeps on this doorbell" in str(error)
    bell.ring()
    thread.join()
    bell.close()
    bell.close()
    with pytest.raises(ValueError, match="closed"):
        bell.wait(0)


class TestAnEventLoopOfOnesOwn:
    """Outlet.arm and Inlet.arm: what polls the doorbell's descriptor itself is rung for what it has asked for."""

    @staticmethod
    def rung(bell: shm.Doorbell) -> bool:
        return bell.clear()

    def test_is_rung_when_the_route_has_come_down_to_credit_low(self, make_route):
        route = make_route(credits=8, low=4)
        for _ in range(8):
            route.outlet.send(b"")
        with pytest.raises(shm.WouldBlock):
            route.outlet.send(b"", 0)
        assert route.outlet.arm()
        for left in (7, 6, 5, 4):
            assert not self.rung(route.bell), f"with {left + 1} frames on their way"
            route.take().release()
        assert self.rung(route.bell)
        assert not route.outlet.arm()
        assert route.outlet.send(b"", 0) == 8

    def test_is_not_rung_for_what_it_does_not_want_any_more(self, make_route):
        route = make_route(credits=1)
        route.outlet.send(b"")
        assert route.outlet.arm()
        route.outlet.disarm()
        route.take().release()
        assert not self.rung(route.bell)

    def test_is_rung_when_there_is_room_again(self, make_route):
        route = make_route(credits=8, limit=1 << 16, first=1 << 16)
        route.outlet.send(bytes(60_000))
        with pytest.raises(shm.WouldBlock, match="no room"):
            route.outlet.send(bytes(60_000), 0)
        assert route.outlet.arm()
        assert not self.rung(route.bell)
        route.take().release()
        assert self.rung(route.bell)
        assert not route.outlet.arm()
        route.outlet.send(bytes(60_000), 0)

    def test_is_rung_by_the_first_of_several_wishes(self, make_route):
        """Two outlets share a route: one waits for credit_low, the other for any room."""
        route = make_route(credits=4, low=0, limit=1 << 16, first=1 << 16)
        other = shm.Outlet([route.producer], route.bell)
        for _ in range(4):
            route.outlet.send(bytes(15_000))
        with pytest.raises(shm.WouldBlock):
            route.outlet.send(b"", 0)
        assert route.outlet.arm()
        assert other.arm()
        frames = [route.take() for _ in range(4)]
        for frame in frames[:3]:
            frame.release()
        assert not self.rung(route.bell)
        frames[3].release()
        assert self.rung(route.bell)

    def test_sees_the_time_that_it_waits_as_blocked_time(self, make_route):
        route = make_route(credits=1)
        route.outlet.send(b"")
        assert route.outlet.arm()
        waiting = route.view()["blocked_ns"]
        assert route.outlet.arm()
        assert route.view()["blocked_ns"] > waiting > 0
        route.outlet.disarm()
        over = route.view()["blocked_ns"]
        assert over > waiting
        assert route.view()["blocked_ns"] == over

    def test_is_told_that_a_consumer_has_detached(self, make_route):
        route = make_route(credits=1)
        route.outlet.send(b"")
        assert route.outlet.arm()
        route.consumer.close()
        assert self.rung(route.bell)
        assert not route.outlet.arm()
        with pytest.raises(shm.RouteClosed):
            route.outlet.send(b"", 0)
