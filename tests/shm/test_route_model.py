"""One route against a model in plain Python: whatever is sent, held, returned out of order, lent or dropped, the frames
come out once each, in order and unchanged, and the credits add up.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from chronetix import shm
from tests.shm.lines import join

SIZES = st.one_of(st.integers(0, 200), st.integers(3500, 5000), st.sampled_from([0, 64, 4096, 20_000]))


def payload(number: int, length: int) -> bytes:
    return bytes((number * 31 + i) & 0xFF for i in range(min(length, 64))) + b"." * max(0, length - 64)


class OneRoute(RuleBasedStateMachine):
    held = Bundle("held")
    batches = Bundle("batches")
    loans = Bundle("loans")

    @initialize(credits=st.integers(1, 9), policy=st.sampled_from(["block", "drop_newest"]))
    def open(self, credits: int, policy: str) -> None:
        self.credits, self.policy = credits, policy
        self.bell, self.far_bell = shm.Doorbell(), shm.Doorbell()
        self.arena = shm.Arena(1 << 20, first=1 << 16, on_grow=self.grow)
        self.consumer = shm.Consumer("r", credits=credits)
        self.producer = shm.Producer(self.arena, "r", credits=credits, policy=policy)
        join(self.producer, self.bell, self.consumer, self.far_bell)
        self.consumer.add_segment(0, self.arena.segments[0][1])
        self.outlet = shm.Outlet([self.producer], self.bell)
        self.inlet = shm.Inlet([self.consumer], self.far_bell)
        self.queue: deque[tuple[int, bytes]] = deque()
        self.sent = self.out = self.lent = self.dropped = self.position = 0
        self.slots: dict[int, int] = {}
        self.slot_count = max(8, 1 << (2 * credits - 1).bit_length())
        self.closed = False

    def grow(self, index: int, fd: int, size: int) -> None:
        self.consumer.add_segment(index, fd)
        self.arena.confirm(index)

    @property
    def used(self) -> int:
        return len(self.queue) + self.out + self.lent

    def commit_one(self, data: bytes) -> int:
        """The next free slot is the frame's place and number."""
        while self.position % self.slot_count in self.slots:
            self.position += 1
        seq = self.position
        self.slots[seq % self.slot_count] = seq
        self.queue.append((seq, data))
        self.sent += 1
        self.position += 1
        return seq

    def return_one(self, seq: int) -> None:
        assert self.slots.pop(seq % self.slot_count) == seq
        self.out -= 1

    @rule(length=SIZES)
    def send(self, length: int) -> None:
        data = payload(self.sent, length)
        if self.closed:
            with pytest.raises(shm.RouteClosed):
                self.outlet.send(data, 0)
        elif self.used < self.credits:
            assert self.outlet.send(data, 0) == self.commit_one(data)
        elif self.policy == "drop_newest":
            assert self.outlet.send(data, 0) == -1
            self.dropped += 1
        else:
            with pytest.raises(shm.WouldBlock):
                self.outlet.send(data, 0)

    @rule(size=st.one_of(st.integers(1, 200), st.sampled_from([64, 4096, 20_000])), frames=st.integers(1, 12))
    def send_many(self, size: int, frames: int) -> None:
        records = [payload(self.sent + i, size) for i in range(frames)]
        data, room = b"".join(records), max(0, self.credits - self.used)
        goes = min(frames, room)
        if self.closed:
            with pytest.raises(shm.RouteClosed):
                self.outlet.send_many(data, size, 0)
            return
        if self.policy == "drop_newest":
            assert self.outlet.send_many(data, size, 0) == frames
            self.dropped += frames - goes
        elif room:
            assert self.outlet.send_many(data, size, 0) == goes
        else:
            with pytest.raises(shm.WouldBlock):
                self.outlet.send_many(data, size, 0)
        for record in records[:goes]:
            self.commit_one(record)

    @rule(target=loans, length=SIZES)
    def loan(self, length: int) -> object:
        if self.closed:
            with pytest.raises(shm.RouteClosed):
                self.outlet.loan(length, 0)
            return multiple()
        if self.used >= self.credits:
            if self.policy == "block":
                with pytest.raises(shm.WouldBlock):
                    self.outlet.loan(length, 0)
            else:
                assert self.outlet.loan(length, 0).commit() == -1
                self.dropped += 1
            return multiple()
        self.lent += 1
        return self.outlet.loan(length, 0), length

    @rule(lent=consumes(loans), keep=st.floats(0, 1))
    def commit(self, lent: tuple[shm.Loan, int], keep: float) -> None:
        loan, length = lent
        self.lent -= 1
        data = payload(self.sent, length)
        np.frombuffer(loan, np.uint8)[:] = np.frombuffer(data, np.uint8) if length else 0
        kept = int(length * keep)
        if self.closed:
            with pytest.raises(shm.RouteClosed):
                loan.commit(kept)
        else:
            assert loan.commit(kept) == self.commit_one(data[:kept])

    @rule(lent=consumes(loans))
    def cancel(self, lent: tuple[shm.Loan, int]) -> None:
        lent[0].cancel()
        self.lent -= 1

    @rule(target=held)
    def take(self) -> object:
        frame = self.inlet.take(0)
        if not self.queue:
            assert frame is None
            return multiple()
        seq, data = self.queue.popleft()
        assert frame is not None
        assert (frame.seq, bytes(frame)) == (seq, data)
        self.out += 1
        return frame, seq, data

    @rule(target=batches, limit=st.integers(1, 12))
    def take_many(self, limit: int) -> object:
        batch = self.inlet.take_many(limit, 0)
        if not self.queue:
            assert batch is None
            return multiple()
        assert batch is not None
        frames = [self.queue.popleft() for _ in range(min(limit, len(self.queue)))]
        assert [(frame.seq, bytes(frame)) for frame in batch] == frames
        assert (len(batch), batch.seq) == (len(frames), frames[0][0])
        self.out += len(frames)
        return batch, frames

    @rule(got=consumes(batches), keep_frame=st.booleans())
    def give_batch_back(self, got: tuple[shm.Batch, list[tuple[int, bytes]]], keep_frame: bool) -> None:
        batch, frames = got
        data = [payload for _, payload in frames]
        assert batch.numpy().tobytes() == b"".join(data), "a held batch has changed"
        last = batch[len(batch) - 1] if keep_frame else None
        batch.release()
        batch.release()
        if last is not None:
            assert self.consumer.held == self.out
            assert bytes(last) == data[-1]
            last.release()
        for seq, _ in frames:
            self.return_one(seq)

    @rule(got=consumes(held), with_view=st.booleans())
    def give_back(self, got: tuple[shm.Frame, int, bytes], with_view: bool) -> None:
        frame, seq, data = got
        view = memoryview(frame)
        assert bytes(view) == data, "a held frame has changed"
        if not with_view:
            view.release()
        frame.release()
        frame.release()
        view.release()
        self.return_one(seq)

    @rule()
    def close(self) -> None:
        self.producer.close()
        self.closed = True

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "producer"):
            return
        assert self.producer.credits == self.credits - self.used
        assert self.producer.outstanding == len(self.queue) + self.out
        assert self.consumer.held == self.out
        assert self.producer.position == self.position
        assert self.inlet.ended == (self.closed and not self.queue)
        view = shm.RouteView(self.producer.fd, self.consumer.fd)
        seen = view.snapshot()
        view.close()
        assert seen["committed"] == self.sent
        assert seen["outstanding"] == len(self.queue) + self.out
        assert seen["dropped"] == self.dropped
        if not self.used:
            assert self.arena.used == 0

    def teardown(self) -> None:
        if hasattr(self, "producer"):
            self.arena.close()
            self.__dict__.clear()


OneRoute.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestOneRoute = OneRoute.TestCase
