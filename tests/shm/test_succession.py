"""What comes after a death: a consumer's successor, a producer's next ring, and both at once, in one process.

The dead are ends that nobody calls any more: their memories stay as they left them, which is all that a death leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from chronetix import shm
from chronetixctl.conformance.forge import Forge
from tests.shm.conftest import MakeRoute, Route
from tests.shm.lines import a_line, attach, join, succeed


@pytest.fixture
def heir() -> Callable[..., tuple[shm.Consumer, shm.Inlet]]:
    """A linked successor of a route's consumer, and its inlet; the producer is relinked unless a line is given."""

    def make(route: Route, *, line: int = -1) -> tuple[shm.Consumer, shm.Inlet]:
        dead = route.consumer
        successor = shm.Consumer(dead.route, credits=8)
        for index, fd, _ in route.arena.segments:
            successor.add_segment(index, fd)
        if line < 0:
            succeed(route.producer, route.bell, successor, route.far_bell, dead.fd)
        else:
            successor.link(route.producer.fd, line, route.far_bell, predecessor=dead.fd)
        route.consumers[0] = successor
        return successor, shm.Inlet([successor], route.far_bell)

    return make


def drain(inlet: shm.Inlet) -> list[tuple[int, bytes, bool]]:
    found = []
    while (frame := inlet.take(0)) is not None:
        found.append((frame.seq, bytes(frame), frame.redelivered))
        frame.release()
    return found


# ---- the consumer dies --------------------------------------------------------------------------------------


def test_a_successor_gets_what_was_held_then_what_was_waiting_then_what_is_new(route, heir):
    for i in range(6):
        route.outlet.send(b"%d" % i)
    held = [route.take() for _ in range(4)]
    held[1].release()
    held[2].release()
    _, inlet = heir(route)
    route.outlet.send(b"6")
    assert drain(inlet) == [
        (0, b"0", True),
        (3, b"3", True),
        (4, b"4", False),
        (5, b"5", False),
        (6, b"6", False),
    ]
    assert route.producer.outstanding == 0
    assert route.arena.used == 0


def test_what_was_returned_before_the_death_is_free_at_once(route, heir):
    for _ in range(8):
        route.outlet.send(b"x")
    for _ in range(3):
        route.take().release()
    heir(route)
    assert route.producer.credits == 3
    for _ in range(3):
        route.outlet.send(b"y", 0)
    with pytest.raises(shm.WouldBlock):
        route.outlet.send(b"z", 0)


def test_a_stamp_decides_though_its_count_is_missing(forge: Forge):
    """The dead consumer was killed between the stamp and the count."""
    arena, bell = shm.Arena(1 << 20), shm.Doorbell()
    dead = forge.credit(4)
    producer = shm.Producer(arena, "r", credits=4)
    attach(producer.link, dead.fd, bell)
    outlet = shm.Outlet([producer], bell)
    for i in range(3):
        outlet.send(b"%d" % i)
    dead.give_back(0)
    dead.give_back(2)
    dead.put(192, 1)
    dead.put(264, 3)
    successor = shm.Consumer("r", credits=4)
    succeed(producer, bell, successor, bell, dead.fd)
    successor.add_segment(0, arena.segments[0][1])

    assert producer.outstanding == 1
    assert drain(shm.Inlet([successor], bell)) == [(1, b"1", True)]
    assert producer.outstanding == 0


def test_a_frame_that_is_held_over_several_laps_comes_again(route, heir):
    route.outlet.send(b"kept")
    kept = route.take()
    for i in range(50):
        route.outlet.send(b"%d" % i)
        route.take().release()
    route.outlet.send(b"last")
    _, inlet = heir(route)
    first, last = drain(inlet)
    assert first == (kept.seq, b"kept", True)
    assert last == (route.producer.position - 1, b"last", False)


def test_a_successor_of_a_successor_gets_what_neither_returned(route, heir):
    for i in range(6):
        route.outlet.send(b"%d" % i)
    held = [route.take() for _ in range(4)]
    held[1].release()
    second, inlet = heir(route)
    again = [inlet.take(0) for _ in range(2)]
    assert [frame.seq for frame in again] == [0, 2]
    again[0].release()
    _, last = heir(route)
    assert drain(last) == [(2, b"2", True), (3, b"3", True), (4, b"4", False), (5, b"5", False)]
    assert second.held == 1
    assert route.producer.outstanding == 0


def test_batches_are_marked_and_go_back_too(route, heir):
    route.outlet.send_many(b"abcdefgh", 1)
    batch = route.inlet.take_many(5, 0)
    route.inlet.take_many(1, 0).release()
    assert not batch.redelivered
    _, inlet = heir(route)
    seen = []
    while (again := inlet.take_many(8, 0)) is not None:
        seen += [(frame.seq, frame.redelivered) for frame in again]
        assert again.redelivered == (seen[-1][0] < 6)
        again.release()
    assert seen == [(0, True), (1, True), (2, True), (3, True), (4, True), (6, False), (7, False)]
    assert route.producer.outstanding == 0


def test_a_producer_that_waits_for_the_dead_goes_on_with_the_successor(make_route: MakeRoute, heir):
    route = make_route(credits=8, low=7)
    for _ in range(8):
        route.outlet.send(b"x")
    held = [route.take() for _ in range(8)]
    sent: list[int] = []
    sender = threading.Thread(target=lambda: sent.append(route.outlet.send(b"y")))
    sender.start()
    while not route.view()["producer_sleeps"]:
        pass
    with a_line() as (near, far):
        successor, inlet = heir(route, line=far)
        route.producer.relink(successor.fd, near, route.bell)
    frame = inlet.take(0)
    assert frame.redelivered
    frame.release()
    sender.join()
    assert sent == [8]
    assert held


def test_a_producer_whose_consumer_detached_before_it_died_goes_on(route, heir):
    route.outlet.send(b"a")
    route.consumer.close()
    with pytest.raises(shm.RouteClosed):
        route.outlet.send(b"b")
    _, inlet = heir(route)
    route.outlet.send(b"c")
    assert drain(inlet) == [(0, b"a", False), (1, b"c", False)]


def test_a_stream_that_was_closed_ends_for_the_successor(route, heir):
    route.outlet.send(b"a")
    held = route.take()
    route.producer.close()
    _, inlet = heir(route)
    assert not held.redelivered
    assert not inlet.ended
    assert drain(inlet) == [(0, b"a", True)]
    assert inlet.ended
    assert route.producer.outstanding == 0


def test_a_successor_that_armed_before_the_relink_is_rung(route):
    dead, successor = route.consumer, shm.Consumer("r0", credits=8)
    for index, fd, _ in route.arena.segments:
        successor.add_segment(index, fd)
    bell = shm.Doorbell()
    inlet = shm.Inlet([successor], bell)
    with a_line() as (near, far):
        successor.link(route.producer.fd, far, bell, predecessor=dead.fd)
        assert inlet.arm()
        route.outlet.send(b"a")
        assert not bell.clear()
        route.producer.relink(successor.fd, near, route.bell)
    assert bell.clear()
    assert drain(inlet) == [(0, b"a", False)]


def test_the_books_go_on_over_a_succession(route, heir):
    for _ in range(5):
        route.outlet.send(b"x")
    held = [route.take() for _ in range(3)]
    held[0].release()
    _, inlet = heir(route)
    seen = route.view()
    assert (seen["committed"], seen["returned"], seen["outstanding"], seen["taken"]) == (5, 1, 4, 0)
    drain(inlet)
    seen = route.view()
    assert (seen["returned"], seen["outstanding"], seen["taken"], seen["again"]) == (5, 0, 4, 2)


# ---- the producer dies --------------------------------------------------------------------------------------


@pytest.fixture
def stage() -> Callable[..., tuple[shm.Producer, shm.Outlet, shm.Consumer]]:
    """The next stage of a route: fresh memories, linked to each other."""

    def make(route: Route, epoch: int, base_seq: int, *, link: bool = True, **more: int):
        arena = shm.Arena(1 << 20)
        producer = shm.Producer(arena, "r0", credits=8, epoch=epoch, base_seq=base_seq, **more)
        consumer = shm.Consumer("r0", credits=8, epoch=epoch, base_seq=base_seq)
        if link:
            join(producer, route.bell, consumer, route.far_bell)
            consumer.add_segment(0, arena.segments[0][1])
        segments[producer.fd] = arena.segments[0][1]
        return producer, shm.Outlet([producer], shm.Doorbell()), consumer

    segments: dict[int, int] = {}
    make.segments = segments  # type: ignore[attr-defined]
    return make


def test_a_consumer_empties_the_old_ring_then_goes_on_with_the_next(route, stage):
    for i in range(4):
        route.outlet.send(b"old %d" % i)
    first = route.take()
    end, _ = shm.remains(route.producer.fd)
    assert end == 4
    producer, outlet, consumer = stage(route, 1, end)
    drained: list[str] = []
    route.consumer.succeed(consumer, lambda: drained.append("now"))
    outlet.send(b"new")
    assert drain(route.inlet) == [
        (1, b"old 1", False),
        (2, b"old 2", False),
        (3, b"old 3", False),
        (4, b"new", False),
    ]
    assert route.inlet.consumers == (consumer,)
    assert drained == []
    first.release()
    assert drained == ["now"]
    assert producer.outstanding == 0


def test_a_drained_stage_says_so_once_and_at_the_latest_when_the_inlet_goes_on(route, stage):
    route.outlet.send(b"a")
    drain(route.inlet)
    _, _, consumer = stage(route, 1, 1)
    drained: list[int] = []
    route.consumer.succeed(consumer, lambda: drained.append(1))
    assert drained == []
    assert route.inlet.take(0) is None
    assert drained == [1]
    assert not route.inlet.ended


def test_the_next_stage_may_be_linked_later(route, stage):
    producer, outlet, consumer = stage(route, 1, 0, link=False)
    route.consumer.succeed(consumer)
    assert route.inlet.take(0) is None
    assert not route.inlet.ended
    assert route.inlet.arm()
    join(producer, route.bell, consumer, route.far_bell)
    outlet.send(b"")
    assert drain(route.inlet) == [(0, b"", False)]
    producer.close()
    assert route.inlet.take(0) is None
    assert route.inlet.ended


def test_a_stage_that_nothing_came_of_is_passed_over(route, stage):
    route.outlet.send(b"a")
    _, _, second = stage(route, 1, 1, link=False)
    _, outlet, third = stage(route, 2, 1)
    drained: list[int] = []
    route.consumer.succeed(second, lambda: drained.append(0))
    second.succeed(third, lambda: drained.append(1))
    outlet.send(b"")
    assert drain(route.inlet) == [(0, b"a", False), (1, b"", False)]
    assert drained == [0, 1]


def test_a_stage_without_its_frames_is_a_fault(route, stage):
    route.outlet.send(b"a")
    _, _, consumer = stage(route, 1, 3)
    route.consumer.succeed(consumer)
    route.take()
    with pytest.raises(shm.PeerFault, match="left by a dead producer at position 3, but frames end at 1"):
        route.inlet.take(0)


def test_a_stage_with_more_frames_than_it_should_is_a_fault(route, stage):
    route.outlet.send(b"a")
    route.outlet.send(b"b")
    _, _, consumer = stage(route, 1, 1)
    route.consumer.succeed(consumer)
    route.take()
    with pytest.raises(shm.PeerFault, match="a frame at position 1, but its dead producer's end at 1"):
        route.inlet.take(0)


def test_only_a_later_stage_can_follow(route, stage):
    for epoch, base in ((0, 5), (0, 0)):
        _, _, consumer = stage(route, epoch, base)
        with pytest.raises(ValueError, match="cannot follow one of epoch 0"):
            route.consumer.succeed(consumer)
    _, _, second = stage(route, 1, 0)
    route.consumer.succeed(second)
    _, _, third = stage(route, 2, 0)
    with pytest.raises(ValueError, match="has a next one already"):
        route.consumer.succeed(third)
    with pytest.raises(TypeError):
        second.succeed(third, 5)


def test_frames_up_to_what_predecessors_committed_are_marked(route, stage):
    _, outlet, consumer = stage(route, 1, 0, resume=2)
    route.consumer.succeed(consumer)
    for item in range(1, 5):
        outlet.send(b"%d" % item, -1, item)
    outlet.send(b"no item")
    marks = [(frame.input_seq, frame.redelivered) for frame in iter(lambda: route.inlet.take(0), None)]
    assert marks == [(1, True), (2, True), (3, False), (4, False), (0, False)]


def test_what_is_made_of_a_redelivered_frame_is_redelivered(route, heir, make_route):
    route.outlet.send(b"a")
    route.outlet.send(b"b")
    held = route.take()
    _, inlet = heir(route)
    assert held.seq == 0
    made = make_route(credits=16)
    for _ in range(2):
        frame = inlet.take(0)
        made.outlet.send(b"x", -1, frame)
        made.outlet.send_many(b"xx", 1, -1, frame)
        with made.outlet.loan(1, -1, frame) as loan:
            memoryview(loan)[:] = b"y"
        made.outlet.loan(0).commit(origin=frame)
    made.producer.close()
    marks = [(frame.input_seq, frame.redelivered) for frame in iter(made.inlet.take, None)]
    assert marks == [(0, True)] * 5 + [(1, False)] * 5


def test_a_producer_may_mark_a_frame_itself(route):
    route.outlet.send(b"x", redelivered=True)
    route.outlet.send(b"x", redelivered=False, input_seq=7)
    with pytest.raises(TypeError, match="origin must be a"):
        route.outlet.send(b"x", -1, "frame")
    first, second = route.take(), route.take()
    assert (first.redelivered, second.redelivered, second.input_seq) == (True, False, 7)


# ---- both die -----------------------------------------------------------------------------------------------


def test_a_successor_begins_with_every_stage_that_is_not_empty(route, stage, heir):
    for i in range(3):
        route.outlet.send(b"old %d" % i)
    held = [route.take() for _ in range(2)]
    held[1].release()
    with a_line() as (_, far):
        successor, _ = heir(route, line=far)
    end, _ = shm.remains(route.producer.fd)
    _, outlet, dead = stage(route, 1, end)
    outlet.send(b"new")
    ring = outlet.producers[0]
    third = shm.Consumer("r0", credits=8, epoch=1, base_seq=end)
    third.add_segment(0, stage.segments[ring.fd])
    succeed(ring, route.bell, third, route.far_bell, dead.fd)

    drained: list[str] = []
    successor.succeed(third, lambda: drained.append("old"))
    inlet = shm.Inlet([successor], route.far_bell)
    assert drain(inlet) == [(0, b"old 0", True), (2, b"old 2", False), (3, b"new", False)]
    assert drained == ["old"]
    assert ring.outstanding == 0


# ---- what is left -------------------------------------------------------------------------------------------


def test_a_ring_ends_behind_its_last_frame(forge: Forge):
    ring = forge.ring(4)
    assert shm.remains(ring.fd) == (0, 0)
    for position in range(3):
        ring.describe(position)
    assert shm.remains(ring.fd) == (3, 0)
    ring.skip(3)
    assert shm.remains(ring.fd) == (4, 0)
    for position in range(4, 21):
        ring.describe(position)
    ring.skip(21)
    assert shm.remains(ring.fd) == (22, 0)


def test_a_run_whose_first_stamp_is_missing_was_never_sent(forge: Forge):
    ring = forge.ring(4)
    for position in (*range(10), 11, 12):
        ring.describe(position)
    assert shm.remains(ring.fd) == (10, 0)


def test_the_highest_input_is_of_frames_that_were_committed(make_route: MakeRoute):
    route = make_route(credits=2)
    for item in range(1, 30):
        route.outlet.send(b"", -1, item)
        route.take()
        assert shm.remains(route.producer.fd) == (item, item)


def test_a_frame_that_was_being_described_is_not_looked_at(forge: Forge):
    ring = forge.ring(4)
    for position in range(9):
        ring.describe(position)
        ring.put(512 + 64 * (position % 8) + 56, position + 1)
    for torn in range(9, 13):
        ring.put(512 + 64 * (torn % 8) + 56, 1000 + torn)
    assert shm.remains(ring.fd) == (9, 9)


@pytest.mark.parametrize(
    ("slot", "word"),
    [(0, 2), (3, 1), (3, (1 << 64) - 4), (3, (1 << 62) + 4), (0, (1 << 63) + 1)],
)
def test_a_ring_that_cannot_have_been_left_is_refused(forge: Forge, slot: int, word: int):
    for at in (512 + 64 * slot, 512 + 64 * 8 + 8 * slot):
        ring = forge.ring(4)
        ring.put(at, word)
        with pytest.raises(shm.PeerFault, match=f"the ring that was left has {word} in slot {slot}"):
            shm.remains(ring.fd)
    with pytest.raises(shm.PeerFault, match="not a ring"):
        shm.remains(forge.credit(4).fd)


@pytest.mark.parametrize("batch", [False, True])
def test_what_is_dropped_after_an_end_was_abandoned_is_not_given_back(batch: bool, route, heir):
    """A worker that fails lets go of what it had in hand, and its successor has to get it."""
    for i in range(3):
        route.outlet.send(b"%d" % i)
    held = route.inlet.take_many(2) if batch else [route.take(), route.take()]
    route.consumer.abandon()
    del held
    _, inlet = heir(route)
    assert drain(inlet) == [(0, b"0", True), (1, b"1", True), (2, b"2", False)]
