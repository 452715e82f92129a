"""Policy latest: the producer never waits, the newest frames are there, none is torn, and every lost one is counted."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chronetix import shm
from tests.shm.lines import attach, join
from tests.shm.test_route_model import SIZES, payload


class LatestRoute(RuleBasedStateMachine):
    """Against a deque of bounded length."""

    @initialize(credits=st.integers(1, 9))
    def open(self, credits: int) -> None:
        self.credits = credits
        self.bell, self.far_bell = shm.Doorbell(), shm.Doorbell()
        self.arena = shm.Arena(1 << 20, first=1 << 16, on_grow=self.grow)
        self.consumer = shm.Consumer("r", credits=credits, base_seq=7)
        self.producer = shm.Producer(self.arena, "r", credits=credits, policy="latest", base_seq=7)
        join(self.producer, self.bell, self.consumer, self.far_bell)
        self.consumer.add_segment(0, self.arena.segments[0][1])
        self.outlet = shm.Outlet([self.producer], self.bell)
        self.inlet = shm.Inlet([self.consumer], self.far_bell)
        self.queue: deque[tuple[int, bytes]] = deque()
        self.kept: list[tuple[shm.Frame, bytes]] = []
        self.sent = self.taken = 0
        self.closed = False

    def grow(self, index: int, fd: int, size: int) -> None:
        self.consumer.add_segment(index, fd)

    def goes(self, data: bytes) -> None:
        self.queue.append((7 + self.sent, data))
        self.sent += 1
        while len(self.queue) > self.credits:
            self.queue.popleft()

    @rule(length=SIZES)
    def send(self, length: int) -> None:
        data = payload(self.sent, length)
        if self.closed:
            with pytest.raises(shm.RouteClosed):
                self.outlet.send(data)
            return
        assert self.outlet.send(data) == 7 + self.sent
        self.goes(data)

    @rule(size=st.integers(1, 5000), frames=st.integers(1, 30))
    def send_many(self, size: int, frames: int) -> None:
        if self.closed:
            return
        records = [payload(self.sent + i, size) for i in range(frames)]
        assert self.outlet.send_many(b"".join(records), size) == frames
        for record in records:
            self.goes(record)

    @rule(length=SIZES)
    def lend_and_commit(self, length: int) -> None:
        if self.closed:
            return
        data = payload(self.sent, length)
        loan = self.outlet.loan(length)
        np.frombuffer(loan, np.uint8)[:] = np.frombuffer(data, np.uint8) if length else 0
        loan.commit()
        self.goes(data)

    @rule(keep=st.booleans())
    def take(self, keep: bool) -> None:
        frame = self.inlet.take(0)
        if not self.queue:
            assert frame is None
            return
        assert frame is not None
        seq, data = self.queue.popleft()
        assert (frame.seq, bytes(frame)) == (seq, data)
        self.taken += 1
        if keep:
            self.kept.append((frame, data))
        else:
            frame.release()

    @rule(limit=st.integers(1, 12))
    def take_many(self, limit: int) -> None:
        batch = self.inlet.take_many(limit, 0)
        if not self.queue:
            assert batch is None
            return
        assert batch is not None
        frames = [self.queue.popleft() for _ in range(min(limit, len(self.queue)))]
        assert [(frame.seq, bytes(frame)) for frame in batch] == frames
        assert batch.numpy().tobytes() == b"".join(data for _, data in frames)
        self.taken += len(frames)

    @rule()
    def close(self) -> None:
        self.producer.close()
        self.closed = True

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "producer"):
            return
        view = shm.RouteView(self.producer.fd, self.consumer.fd)
        seen = view.snapshot()
        view.close()
        lost = self.sent - self.taken - len(self.queue)
        assert (seen["committed"], seen["taken"], seen["outstanding"]) == (self.sent, self.taken, len(self.queue))
        assert seen["drops"] == {"no_credit": 0, "no_room": 0, "overwritten": lost, "given_up": 0, "unread": 0}
        assert seen["dropped"] == lost
        assert self.inlet.ended == (self.closed and not self.queue)
        assert self.consumer.lost == lost
        assert self.consumer.held == 0
        assert all(bytes(frame) == data for frame, data in self.kept), "a frame that was taken has changed"
        if not self.queue:
            assert self.arena.used == 0

    def teardown(self) -> None:
        if hasattr(self, "producer"):
            self.arena.close()
            self.__dict__.clear()


LatestRoute.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestLatestRoute = LatestRoute.TestCase


@pytest.mark.parametrize("size", [8, 4096, 300_000])
def test_between_processes_no_frame_is_torn_and_all_are_accounted_for(spawn, size):
    frames = 40_000_000 // (size + 4000)

    def write(end) -> None:
        block = np.empty(size // 8, np.uint64)
        for number in range(frames):
            block[:] = number
            end.outlet.send(block)
        end.producer.close()
        end.hear()

    child = spawn(write, credits=4, limit=1 << 22, policy="latest")
    received, last = 0, -1
    while (frame := child.end.inlet.take()) is not None or not child.end.inlet.ended:
        if frame is None:
            continue
        values = frame.numpy(np.uint64)
        assert (values == values[0]).all(), f"frame {frame.seq} is torn"
        assert int(values[0]) == frame.seq > last
        last = frame.seq
        received += 1
    assert received + child.end.consumer.lost == frames
    assert last == frames - 1, "the newest frame is always there"
    child.end.say()
    child.join()


def test_a_reader_that_stands_still_holds_nobody_up_and_its_losses_are_counted(spawn):
    """It is stopped by a signal, in whatever it was doing."""

    def read(end) -> None:
        end.say()
        received = 0
        while not end.inlet.ended:
            received += end.inlet.take() is not None
        end.outlet.send(f"{received} {end.consumer.lost}".encode())
        end.hear()

    child = spawn(read, credits=4, policy="latest")
    child.end.hear()
    os.kill(child.pid, signal.SIGSTOP)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    for number in range(10_000):
        child.end.outlet.send(b"%d" % number * 1000)
    assert child.end.producer.outstanding <= 4
    os.kill(child.pid, signal.SIGCONT)
    child.end.producer.close()
    received, lost = map(int, bytes(child.end.next()).split())
    assert received + lost == 10_000
    child.end.say()
    child.join()


def test_a_full_arena_overwrites_before_it_keeps_a_blocking_route_waiting(make_route):
    """Each frame takes half of the arena, and the reader of the second route reads nothing."""
    route = make_route(policies=("block", "latest"), limit=1 << 18, first=1 << 18, credits=[4, 4])
    for number in range(10):
        assert route.outlet.send(bytes([number]) * (1 << 17), 0) == number
        taken = shm.Inlet([route.consumers[0]], route.far_bell).take(0)
        assert taken is not None
        taken.release()
    seen = route.view(1)
    assert seen["dropped"] == seen["drops"]["overwritten"] >= 8
    assert route.view(0)["dropped"] == 0


def test_a_frame_in_memory_that_the_reader_does_not_have_yet_comes_later(make_route):
    route = make_route(policies=("latest",), credits=2, first=1 << 16)
    late: list[tuple[int, int]] = []
    arena = shm.Arena(1 << 22, first=1 << 16, on_grow=lambda index, fd, size: late.append((index, fd)))
    producer = shm.Producer(arena, "r", credits=2, policy="latest")
    consumer = shm.Consumer("r", credits=2)
    join(producer, route.bell, consumer, route.far_bell)
    consumer.add_segment(0, arena.segments[0][1])
    outlet, inlet = shm.Outlet([producer], route.bell), shm.Inlet([consumer], route.far_bell)
    assert outlet.send(b"x" * 100_000) == 0, "nobody has to confirm the segment"
    assert inlet.take(0) is None
    consumer.add_segment(*late[0])
    frame = inlet.take(0)
    assert frame is not None
    assert len(frame) == 100_000
    assert consumer.lost == 0


@pytest.mark.parametrize("oldest", [1, 5, 1 << 40, (1 << 64) - 1])
def test_whatever_a_hostile_producer_claims_overwritten_the_reader_goes_on_or_detaches(forge, oldest):
    ring, segment = forge.ring(4, policy=2), forge.memory(1 << 16)
    bell, consumer = shm.Doorbell(), shm.Consumer("evil", credits=4)
    attach(consumer.link, ring.fd, bell)
    consumer.add_segment(0, segment.fd)
    inlet = shm.Inlet([consumer], bell)
    for position in range(5):
        ring.describe(position, offset=64 * position, length=8)
    ring.put(320, oldest)
    ring.put(64, 6)
    taken = 0
    with contextlib.suppress(shm.PeerFault):
        while inlet.take(0) is not None:
            taken += 1
    assert taken <= 5
    assert inlet.ended


def test_a_stamp_of_a_later_lap_without_its_mark_is_a_lie(forge):
    ring = forge.ring(4, policy=2)
    bell, consumer = shm.Doorbell(), shm.Consumer("evil", credits=4)
    attach(consumer.link, ring.fd, bell)
    ring.describe(0, stamp=9)
    with pytest.raises(shm.PeerFault, match="impossible stamp 9"):
        shm.Inlet([consumer], bell).take(0)


@pytest.mark.parametrize("returned", [9, 1 << 63, (1 << 64) - 1])
def test_a_reader_that_claims_more_than_was_sent_is_found_out(forge, returned):
    credit, bell = forge.credit(4), shm.Doorbell()
    arena = shm.Arena(1 << 20)
    producer = shm.Producer(arena, "evil", credits=4, policy="latest")
    attach(producer.link, credit.fd, bell)
    outlet = shm.Outlet([producer], bell)
    outlet.send(b"x")
    credit.put(192, returned)
    for _ in range(3):
        outlet.send(b"x")
    with pytest.raises(shm.PeerFault, match="claims"):
        outlet.send(bytes(4096))
