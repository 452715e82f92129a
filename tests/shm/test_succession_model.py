"""A route whose ends die and are followed, against a model in plain Python: what comes, in which order, with which
number and mark, and how many credits are left, whatever was held, given back, skipped or waiting at each death.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chronetix import shm
from tests.shm.lines import attach, join


@dataclass(frozen=True)
class Sent:
    position: int
    data: bytes
    item: int
    marked: bool


@dataclass(eq=False)
class Stage:
    """What the model knows of a ring, and its real ends."""

    epoch: int
    base: int
    slots: int
    producer: shm.Producer
    segment: int
    consumer: shm.Consumer
    position: int = 0
    waiting: deque[Sent] = field(default_factory=deque)
    held: dict[int, Sent] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    drained: bool = False

    @property
    def used(self) -> int:
        return len(self.waiting) + len(self.held)

    def commit(self, data: bytes, item: int, marked: bool) -> int:
        full = {sent.position % self.slots for sent in (*self.waiting, *self.held.values())}
        while self.position % self.slots in full:
            self.position += 1
        self.waiting.append(Sent(self.position, data, item, marked))
        self.position += 1
        return self.base + self.position - 1


class Succession(RuleBasedStateMachine):
    @initialize(credits=st.integers(1, 9))
    def open(self, credits: int) -> None:
        self.credits = credits
        self.slots = max(8, 1 << (2 * credits - 1).bit_length())
        self.bell, self.far_bell = shm.Doorbell(), shm.Doorbell()
        self.stages: list[Stage] = []
        self.frames: dict[tuple[int, int], shm.Frame] = {}
        self.item = self.resume = 0
        self.begin(0, 0)
        self.inlet = shm.Inlet([self.stages[0].consumer], self.far_bell)

    def make_consumer(self, epoch: int, base: int) -> shm.Consumer:
        return shm.Consumer("r", credits=self.credits, epoch=epoch, base_seq=base)

    def begin(self, epoch: int, base: int) -> None:
        """A producer with a ring of its own."""
        self.arena = shm.Arena(1 << 20, first=1 << 20)
        producer = shm.Producer(self.arena, "r", credits=self.credits, epoch=epoch, base_seq=base, resume=self.resume)
        self.outlet = shm.Outlet([producer], self.bell)
        consumer = self.make_consumer(epoch, base)
        stage = Stage(epoch, base, self.slots, producer, self.arena.segments[0][1], consumer)
        if self.stages:
            self.follow(self.stages[-1], stage)
        self.stages.append(stage)
        join(producer, self.bell, consumer, self.far_bell)
        consumer.add_segment(0, stage.segment)

    def follow(self, stage: Stage, after: Stage) -> None:
        end = stage.consumer

        def drained() -> None:
            if end is not stage.consumer:
                return  # a dead one, whose frames are given up now
            assert not stage.drained
            assert not stage.used
            stage.drained = True

        end.succeed(after.consumer, drained)

    @property
    def last(self) -> Stage:
        return self.stages[-1]

    def stage_of(self, epoch: int) -> Stage:
        return next(stage for stage in self.stages if stage.epoch == epoch)

    # -- while both live ------------------------------------------------------------------------------------------

    @rule(size=st.integers(0, 300), again=st.integers(0, 3))
    def send(self, size: int, again: int) -> None:
        """The next item, or one that was sent before: a source that does not remember."""
        item = max(1, self.item + 1 - again)
        data = bytes([item & 0xFF]) * size
        if self.last.used >= self.credits:
            with pytest.raises(shm.WouldBlock):
                self.outlet.send(data, 0, item)
            return
        assert self.outlet.send(data, 0, item) == self.last.commit(data, item, item <= self.resume)
        self.item = max(self.item, item)

    @rule(count=st.integers(2, 6))
    def send_many(self, count: int) -> None:
        room = self.credits - self.last.used
        if not room:
            return
        assert self.outlet.send_many(b"x" * 64 * count, 64, 0, self.item + 1) == min(count, room)
        for _ in range(min(count, room)):
            self.item += 1
            self.last.commit(b"x" * 64, self.item, self.item <= self.resume)

    @rule()
    def take(self) -> None:
        stage = next((stage for stage in self.stages if stage.waiting), None)
        frame = self.inlet.take(0)
        if stage is None:
            assert frame is None
            assert all(left.drained or left.held for left in self.stages[:-1])
            return
        sent = stage.waiting.popleft()
        assert frame is not None
        assert (frame.seq, bytes(frame), frame.input_seq) == (stage.base + sent.position, sent.data, sent.item)
        assert frame.redelivered == (sent.marked or sent.position in stage.taken)
        stage.held[sent.position] = sent
        stage.taken.add(sent.position)
        self.frames[stage.epoch, sent.position] = frame

    @precondition(lambda self: self.frames)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        epoch, position = data.draw(st.sampled_from(sorted(self.frames)))
        stage = self.stage_of(epoch)
        frame = self.frames.pop((epoch, position))
        assert bytes(frame) == stage.held[position].data, "a held frame has changed"
        del stage.held[position]
        frame.release()

    # -- deaths ---------------------------------------------------------------------------------------------------

    @rule()
    def the_producer_dies(self) -> None:
        end, highest = shm.remains(self.last.producer.fd)
        assert end == self.last.position
        self.resume = max(self.resume, highest)
        assert self.resume == self.item
        self.begin(self.last.epoch + 1, self.last.base + end)

    @rule()
    def the_consumer_dies(self) -> None:
        while self.stages[0].drained:  # oldest first: each that is left ends where the next one begins
            del self.stages[0]
        dead = [(stage.consumer, self.frames) for stage in self.stages]
        for stage in self.stages:
            before = stage.consumer
            stage.consumer = self.make_consumer(stage.epoch, stage.base)
            attach(stage.consumer.link, stage.producer.fd, self.far_bell, predecessor=before.fd)
            stage.consumer.add_segment(0, stage.segment)
            stage.waiting = deque(sorted([*stage.waiting, *stage.held.values()], key=lambda sent: sent.position))
            stage.held, stage.drained = {}, False
        for stage, after in zip(self.stages, self.stages[1:], strict=False):
            self.follow(stage, after)
        attach(self.last.producer.relink, self.last.consumer.fd, self.bell)
        self.inlet = shm.Inlet([self.stages[0].consumer], self.far_bell)
        self.frames = {}
        dead.clear()  # what the dead held goes back to memories that nobody looks at

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "inlet"):
            return
        last = self.last
        assert last.producer.outstanding == last.used
        assert last.producer.credits == self.credits - last.used
        assert last.consumer.held == len(last.held)
        view = shm.RouteView(last.producer.fd, last.consumer.fd)
        assert view.snapshot()["outstanding"] == last.used
        view.close()
        if not last.used:
            assert self.arena.used == 0

    def teardown(self) -> None:
        if hasattr(self, "inlet"):
            while self.frames or any(stage.waiting for stage in self.stages):
                for epoch, position in list(self.frames):
                    self.stage_of(epoch).held.pop(position)
                    self.frames.pop((epoch, position)).release()
                self.take()
            self.take()
            assert all(stage.drained for stage in self.stages[:-1])
            assert self.last.producer.outstanding == 0
            self.__dict__.clear()


Succession.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestSuccession = Succession.TestCase
