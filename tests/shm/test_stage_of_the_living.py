"""A producer that lives goes on with another ring; ends that are left, and routes that are forgotten."""

from __future__ import annotations

import threading

import pytest

from chronetix import shm
from tests.shm.lines import join


def numbers(inlet):
    taken = []
    while (frame := inlet.take(0)) is not None:
        taken.append((bytes(frame), frame.seq))
        frame.release()
    return taken


def test_frames_wait_for_a_route_that_is_to_be_linked_and_are_woken_by_that():
    near, far = shm.Doorbell(), shm.Doorbell()
    arena = shm.Arena(1 << 20, first=1 << 16)
    producer = shm.Producer(arena, "r", credits=4, policy="drop_newest", later=True)
    consumer = shm.Consumer("r", credits=4)
    outlet = shm.Outlet([producer], near)
    with pytest.raises(shm.WouldBlock, match="route r: its consumer is not linked yet"):
        outlet.send(b"1", 0)
    assert outlet.arm()
    sender = threading.Thread(target=outlet.send, args=(b"1",))
    sender.start()
    consumer.add_segment(0, arena.segments[0][1])
    join(consumer, far, producer, near)
    sender.join()
    assert numbers(shm.Inlet([consumer], far)) == [(b"1", 0)]


def test_another_ring_begins_where_the_one_before_was_left():
    near, far = shm.Doorbell(), shm.Doorbell()
    arena = shm.Arena(1 << 20, first=1 << 16)

    def ends(credits, epoch, base):
        producer = shm.Producer(arena, "r", credits=credits, epoch=epoch, base_seq=base, later=True)
        consumer = shm.Consumer("r", credits=credits, epoch=epoch, base_seq=base)
        consumer.add_segment(0, arena.segments[0][1])
        join(consumer, far, producer, near)
        return producer, consumer

    first, taken_by = ends(2, 0, 0)
    inlet = shm.Inlet([taken_by], far)
    outlet = shm.Outlet([first], near)
    outlet.send(b"1")
    outlet.send(b"2")
    assert shm.remains(first.fd)[0] == first.position == 2
    second, next_one = ends(5, 1, first.position)
    drained = []
    taken_by.succeed(next_one, lambda: drained.append(True))
    shm.Outlet([second], near).send(b"3")
    assert numbers(inlet) == [(b"1", 0), (b"2", 1), (b"3", 2)]
    assert drained == [True]


def test_an_outlet_goes_on_without_a_route_that_was_left_and_says_nothing(make_route):
    route = make_route(policies=("block", "block"))
    route.outlet.send(b"1")
    route.producers[1].leave()
    route.outlet.send(b"2")
    assert sorted(route.drain()) == [b"1", b"1", b"2"]
    assert route.consumers[1].ended
    route.producers[0].leave()
    with pytest.raises(shm.RouteClosed):
        route.outlet.send(b"3")


def test_loans_of_a_route_are_counted(make_route):
    route = make_route()
    assert route.producer.loans == 0
    with route.outlet.loan(8) as loan:
        assert route.producer.loans == 1
        memoryview(loan)[:] = b"12345678"
    assert route.producer.loans == 0


def test_only_a_route_that_has_ended_is_forgotten(make_route):
    route = make_route(policies=("block", "block"))
    route.outlet.send(b"1")
    with pytest.raises(ValueError, match="has ended"):
        route.inlet.remove(route.consumers[0])
    route.producers[0].leave()
    assert len(route.drain()) == 2
    route.inlet.remove(route.consumers[0])
    assert route.inlet.consumers == (route.consumers[1],)
    with pytest.raises(ValueError, match="has ended"):
        route.inlet.remove(route.consumers[0])
    route.outlet.send(b"2")
    assert route.drain() == [b"2"]
    route.producers[1].leave()
    assert route.inlet.take(0) is None
    route.inlet.remove(route.consumers[1])
    assert route.inlet.ended
    assert route.inlet.take(0) is None


def test_a_next_stage_may_be_of_another_class():
    near, far = shm.Doorbell(), shm.Doorbell()
    arena = shm.Arena(1 << 20, first=1 << 16)
    pairs = []
    for name, epoch, qos in (("a", 0, "normal"), ("a", 1, "realtime"), ("b", 0, "high")):
        producer = shm.Producer(arena, name, credits=8, epoch=epoch)
        consumer = shm.Consumer(name, credits=8, epoch=epoch, qos=qos)
        consumer.add_segment(0, arena.segments[0][1])
        join(consumer, far, producer, near)
        pairs.append((producer, consumer))
    (_, first), (second, next_one), (other, beside) = pairs
    inlet = shm.Inlet([first, beside], far)
    first.succeed(next_one)
    shm.Outlet([other], near).send(b"b")
    assert numbers(inlet) == [(b"b", 0)]
    shm.Outlet([second], near).send(b"a")
    shm.Outlet([other], near).send(b"b")
    assert [payload for payload, _ in numbers(inlet)] == [b"a", b"b"]
