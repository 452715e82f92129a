"""A route whose ends die and are followed by others, and what must be true of it afterwards.

:class:`Play` is the daemon of one route: it starts the ends, hands their memories to each other, notices deaths by
pidfd, finds where a dead ring ends and starts successors. It keeps every memory until its stage is drained.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from tests.shm.crash import ends
from tests.shm.crash.ends import RETURNED, TAKEN, Log, batch_frames, frame_number, hear, say

WATCHDOG_MS = 60_000


@dataclass(frozen=True)
class Fault:
    """An end of ``role`` dies at ``point``, at its n-th ``visit`` of it."""

    role: str
    point: str
    visit: int = 1


@dataclass(eq=False)
class End:
    """A process at one end. ``life`` counts all ends of the play."""

    role: str
    life: int
    pid: int
    pidfd: int
    sock: socket.socket
    fault: Fault | None
    started: bool = False
    status: int | None = None

    def close(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.sock.close()


@dataclass(eq=False)
class Stage:
    """A ring, its memories, and how far its present ends are linked."""

    epoch: int
    base_seq: int
    memories: list[int]
    end: int | None = None
    """None while its producer lives."""
    predecessor: int = -1
    """CREDIT of the last consumer that had linked."""
    credit: list[int] = field(default_factory=list)
    """CREDIT of the present consumer."""
    line: int = -1
    """The producer's end of the line to it."""
    asked: bool = False
    told: bool = False
    linked: bool = False
    producer_told: int = -1
    producer_linked: int = -1
    """Life of the consumer that the producer was told of, and has linked."""

    def close_line(self) -> None:
        """The producer has it, or will not get it."""
        if self.line >= 0:
            os.close(self.line)
        self.line = -1


class Play:
    """``faults`` are given to the ends of their role one after the other, as they are started."""

    def __init__(
        self, native: ModuleType, *, faults: Sequence[Fault] = (), batches: int = 60, credits: int = 6, seed: int = 0
    ) -> None:
        self.native = native
        self.faults = list(faults)
        self.batches = batches
        self.credits = credits
        self.seed = seed
        self.lives = 0
        self.logs: list[Log] = []
        self.stages: list[Stage] = []
        self.resume = 0
        self.producer: End | None = None
        self.consumer: End | None = None
        self.met: list[Fault] = []
        """Faults at which an end has died."""
        self.done = False
        self._kept: list[int] = []

    # -- the daemon's part ----------------------------------------------------------------------------------------

    def run(self, meddle: Callable[[Play], int | None] = lambda _: None) -> None:
        """Until every frame has arrived and both ends have finished. ``meddle`` may kill; it says after how many
        milliseconds it wants to be asked again."""
        try:
            self._start_producer(0, 0)
            self._start_consumer()
            while not self.done:
                self._advance()
                self._serve(meddle(self))
        finally:
            self.close()

    def close(self) -> None:
        for end in (self.producer, self.consumer):
            if end is not None:
                end.close()
        self.producer = self.consumer = None
        for stage in self.stages:
            stage.close_line()
        for fd in self._kept:
            os.close(fd)
        self._kept.clear()

    def forget(self) -> None:
        """Give the logs back."""
        for log in self.logs:
            log.close()

    def kill(self, end: End) -> None:
        if end.status is None:
            os.kill(end.pid, signal.SIGKILL)

    def _fork(self, role: str, run: Callable[[socket.socket], None]) -> End:
        fault = next((fault for fault in self.faults if fault.role == role), None)
        if fault is not None:
            self.faults.remove(fault)

        def armed(sock: socket.socket) -> None:
            if fault is not None:
                self.native.fail_at(fault.point, fault.visit)
            run(sock)

        others = [end.sock for end in (self.producer, self.consumer) if end is not None]
        pid, sock = ends.fork(armed, *others)
        self.lives += 1
        return End(role, self.lives, pid, os.pidfd_open(pid), sock, fault)

    def _start_producer(self, epoch: int, base_seq: int) -> None:
        def run(sock: socket.socket) -> None:
            ends.produce(
                self.native,
                sock,
                epoch=epoch,
                base_seq=base_seq,
                resume=self.resume,
                batches=self.batches,
                credits=self.credits,
            )

        self.producer = self._fork("producer", run)
        self.stages.append(Stage(epoch, base_seq, []))

    def _start_consumer(self) -> None:
        log = Log()
        self.logs.append(log)
        seed = self.seed + len(self.logs)

        def run(sock: socket.socket) -> None:
            ends.consume(self.native, sock, credits=self.credits, log=log, seed=seed)

        self.consumer = self._fork("consumer", run)
        for stage in self.stages:
            stage.credit, stage.asked, stage.told, stage.linked = [], False, False, False

    def _advance(self) -> None:
        """Whatever can be handed over now."""
        assert self.consumer is not None
        consumer, producer = self.consumer, self.producer
        for stage in self.stages:
            if consumer.status is not None:
                return
            if not stage.asked:
                self._tell(consumer, "stage", epoch=stage.epoch, base_seq=stage.base_seq)
                stage.asked = True
            if stage.memories and stage.credit and not stage.told:
                stage.close_line()
                stage.line, far = self.native.line()
                fds = [*stage.memories, far, *([stage.predecessor] if stage.predecessor >= 0 else [])]
                self._tell(consumer, "link", tuple(fds), epoch=stage.epoch)
                os.close(far)
                stage.told = True
        last = self.stages[-1]
        if producer is None or producer.status is not None or last.end is not None:
            return
        if last.linked and last.producer_told != consumer.life:
            self._tell(producer, "link", (*last.credit, last.line), life=consumer.life)
            last.close_line()
            last.producer_told = consumer.life
        ready = all(stage.linked or not stage.memories for stage in self.stages)
        if last.producer_linked == consumer.life and ready and not consumer.started:
            self._tell(consumer, "go")
            consumer.started = True

    @staticmethod
    def _tell(end: End, what: str, fds: tuple[int, ...] = (), **details: Any) -> None:
        """It may be dead: that will be noticed."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            say(end.sock, what, fds, **details)

    def _serve(self, timeout_ms: int | None) -> None:
        poll = select.poll()
        alive = [end for end in (self.producer, self.consumer) if end is not None and end.status is None]
        watched = {fd: end for end in alive for fd in (end.sock.fileno(), end.pidfd)}
        for fd in watched:
            poll.register(fd, select.POLLIN)
        ready = poll.poll(WATCHDOG_MS if timeout_ms is None else timeout_ms)
        assert ready or timeout_ms is not None, f"somebody sleeps for ever: {self}"
        said = [watched[fd] for fd, _ in ready if fd != watched[fd].pidfd]
        for end in said:
            self._hear_all(end)
        for fd, _ in ready:
            if fd == watched[fd].pidfd and watched[fd].status is None:
                self._dead(watched[fd])

    def _hear_all(self, end: End) -> None:
        end.sock.setblocking(False)
        try:
            while True:
                message, fds = hear(end.sock)
                if message["what"] == "gone":
                    return
                self._kept += fds
                self._heard(end, message, fds)
        except (BlockingIOError, ConnectionResetError):
            pass
        finally:
            end.sock.setblocking(True)

    def _heard(self, end: End, message: dict[str, Any], fds: list[int]) -> None:
        what = message["what"]
        if end is self.producer:
            if what == "made":
                self.stages[-1].memories = fds
            elif what == "linked":
                self.stages[-1].producer_linked = message["life"]
        elif what == "made":
            self._stage(message["epoch"]).credit = fds
        elif what == "linked":
            stage = self._stage(message["epoch"])
            stage.linked, stage.predecessor = True, stage.credit[0]
        elif what == "drained":
            drained = self._stage(message["epoch"])
            drained.close_line()
            self.stages.remove(drained)

    def _stage(self, epoch: int) -> Stage:
        return next(stage for stage in self.stages if stage.epoch == epoch)

    def _dead(self, end: End) -> None:
        self._hear_all(end)
        _, status = os.waitpid(end.pid, 0)
        end.status = os.waitstatus_to_exitcode(status)
        assert end.status in (0, -signal.SIGKILL), f"the {end.role} failed with {end.status}"
        if end.status and end.fault is not None:
            self.met.append(end.fault)
        if end is self.producer:
            if end.status:
                self._producer_died()
        elif end.status:
            end.close()
            self._start_consumer()
        else:
            self._finish()

    def _producer_died(self) -> None:
        assert self.producer is not None
        last = self.stages[-1]
        last.end = 0
        if last.memories:
            last.end, highest = self.native.remains(last.memories[0])
            self.resume = max(self.resume, highest)
        self.producer.close()
        last.close_line()
        if not last.memories:
            self.stages.remove(last)  # nobody can have been linked to what was never made
            if last.asked:
                self.stages.append(last)
        self._start_producer(last.epoch + 1, last.base_seq + last.end)

    def _finish(self) -> None:
        """The consumer has ended well: the producer has, too, or has died after its close."""
        assert self.producer is not None
        self.done = True
        if self.producer.status is None and self.stages[-1].producer_linked >= 0:
            self._tell(self.producer, "over")
            _, status = os.waitpid(self.producer.pid, 0)
            self.producer.status = os.waitstatus_to_exitcode(status)
            assert self.producer.status in (0, -signal.SIGKILL), f"the producer failed with {self.producer.status}"
            if self.producer.status and self.producer.fault is not None:
                self.met.append(self.producer.fault)

    # -- what must be true ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """No frame was lost, the order was kept, what came twice was marked, what was given back did not come again."""
        expected = {frame_number(b, i) for b in range(1, self.batches + 1) for i in range(batch_frames(b))}
        numbers: set[int] = set()
        places: dict[int, int] = {}
        for log in self.logs:
            entries = log.read()
            for number, seq, marked, _ in entries:
                if number in numbers or places.get(seq, TAKEN - 1) >= TAKEN:
                    assert marked, f"frame {number} (seq {seq}) came twice and was not marked"
                assert places.get(seq) != RETURNED, f"seq {seq} was given back and came again"
            seqs = [seq for _, seq, _, _ in entries]
            assert seqs == sorted(set(seqs)), "the order was not kept"
            held = {seq for seq, state in places.items() if state == TAKEN}
            if entries and entries[-1][1] >= max(held, default=0):
                assert held <= set(seqs), f"{held - set(seqs)} were held by the dead and did not come again"
            numbers |= {number for number, *_ in entries}
            places |= {seq: state for _, seq, _, state in entries}
        assert numbers == expected, f"lost: {sorted(expected - numbers)}"
