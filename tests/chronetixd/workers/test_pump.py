"""No worker waits for the daemon: its pipes are emptied while the loop is busy, within bounds, and losses are told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetixd.core.token_bucket import TokenBucket
from chronetixd.records.log_record import LINES_AT_ONCE
from chronetixd.workers import pump as module
from chronetixd.workers.output import Output
from chronetixd.workers.pump import MAX_BUFFER, Pump


@pytest.fixture
def pump(loop: Any) -> Iterator[Pump]:
    made = Pump(loop)
    yield made
    made.close()
    assert made.total == 0


class Heard:
    """Lines and losses of one output."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.lost_bytes = self.lost_lines = self.cut = 0

    def lost(self, size: int, lines: int) -> None:
        self.lost_bytes += size
        self.lost_lines += lines

    def cut_one(self) -> None:
        self.cut += 1


@pytest.fixture
def listen(loop: Any, pump: Pump) -> Callable[[int], tuple[Output, Heard]]:
    def make(fd: int) -> tuple[Output, Heard]:
        heard = Heard()
        return Output(loop, fd, heard.lines.append, heard.cut_one, pump=pump, on_dropped=heard.lost), heard

    return make


FLOOD = "import sys; [sys.stdout.write('x' * 99 + chr(10)) for _ in range({count})]"


def test_a_worker_that_floods_is_not_held_up_by_a_loop_that_stands(listen: Any, until: Any, pump: Pump) -> None:
    """The loop stands still until the worker, which writes 200 pipes full, has ended."""
    count = 500_000
    worker = subprocess.Popen([sys.executable, "-c", FLOOD.format(count=count)], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    output, heard = listen(os.dup(worker.stdout.fileno()))
    worker.stdout.close()
    assert worker.wait() == 0
    assert pump.total <= MAX_BUFFER + module.READ_SIZE
    until(lambda: output._fd < 0)
    assert LINES_AT_ONCE <= len(heard.lines) < count // 5
    kept = sum(len(line) + (len(line) == 99) for line in heard.lines)  # what was cut has lost its end
    assert heard.lost_bytes + kept == pytest.approx(
        100 * count, abs=100
    )  # of a line that is cut in two either end may count
    assert {line for line in heard.lines if len(line) == 99} == {"x" * 99}


def test_what_is_printed_in_reason_comes_complete_and_in_order(listen: Any, until: Any) -> None:
    read, write = os.pipe()
    output, heard = listen(read)
    for number in range(LINES_AT_ONCE):
        os.write(write, b"line %d\n" % number)
    os.write(write, b"no end")
    os.close(write)
    until(lambda: output._fd < 0)
    assert heard.lines == [*(f"line {number}" for number in range(LINES_AT_ONCE)), "no end"]
    assert heard.lost_bytes == 0


def test_finishing_hands_on_what_the_thread_has_and_what_is_still_in_the_pipe(listen: Any) -> None:
    for _ in range(50):
        read, write = os.pipe()
        output, heard = listen(read)
        os.write(write, b"one\ntwo\n")
        os.write(write, b"three")
        output.finish()
        os.close(write)
        assert heard.lines == ["one", "two", "three"]


def test_a_flood_beside_it_costs_a_quiet_worker_nothing(listen: Any, until: Any) -> None:
    flood = subprocess.Popen([sys.executable, "-c", FLOOD.format(count=10**9)], stdout=subprocess.PIPE)
    assert flood.stdout is not None
    loud, loud_heard = listen(os.dup(flood.stdout.fileno()))
    flood.stdout.close()
    read, write = os.pipe()
    quiet, heard = listen(read)
    until(lambda: loud_heard.lost_bytes)
    for number in range(100):
        os.write(write, b"%d\n" % number)
        until(lambda number=number: len(heard.lines) > number)
    assert heard.lines == [str(number) for number in range(100)]
    flood.kill()
    flood.wait()
    loud.finish()
    os.close(write)
    quiet.finish()


def test_all_together_have_a_limit_too(loop: Any, pump: Pump, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOTAL", 100_000)
    streams, reads = [], []
    for _ in range(4):
        read, write = os.pipe()
        reads.append(read)
        os.set_blocking(read, False)
        streams.append(pump.add(read, lambda: None))
        with open(write, "wb") as end:
            end.write(bytes(200_000))
    for stream in streams:
        while "end" not in stream.pieces:
            pass
    assert pump.total <= 100_000 + module.READ_SIZE
    for stream in streams:
        pieces = list(iter(stream.take, None))
        sizes = [piece if isinstance(piece, int) else len(piece) for piece in pieces if piece != "end"]
        assert sum(sizes) == 200_000
    for stream, read in zip(streams, reads, strict=True):
        stream.give_back()
        os.close(read)


def test_pipes_come_and_go_while_the_thread_reads(listen: Any, until: Any) -> None:
    """Descriptor numbers are used again at once; nothing of one pipe ends in another."""

    def write(fd: int, text: bytes) -> None:
        with open(fd, "wb") as end:
            end.write(text)

    for round in range(30):
        outputs, writers = [], []
        for number in range(8):
            read, end = os.pipe()
            outputs.append(listen(read))
            writers.append(threading.Thread(target=write, args=(end, f"{round}.{number}\n".encode() * 100)))
        for writer in writers:
            writer.start()
        for number, (output, heard) in enumerate(outputs):
            if number % 2:
                writers[number].join()
                output.finish()
            else:
                until(lambda output=output: output._fd < 0)
            assert heard.lines == [f"{round}.{number}"] * 100
        for writer in writers:
            writer.join()


@given(st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 500))))
def test_an_allowance_never_lets_through_more_than_its_burst_and_rate(steps: list[tuple[int, int]]) -> None:
    allowance, now, taken = TokenBucket(rate=50, burst=100, now=0), 0, 0
    for wait, wanted in steps:
        now += wait
        count = min(wanted, allowance.left(now))
        allowance.take(count)
        taken += count
        assert taken <= 100 + 50 * now / 1e9 + 1


def test_a_debt_is_paid_first() -> None:
    allowance = TokenBucket(rate=10, burst=10, now=0)
    allowance.take(30)
    assert allowance.left(10**9) == 0
    assert allowance.left(3 * 10**9) == 10
    assert allowance.left(0) == 10


class TestTheThreadFails:
    def test_without_memory_what_came_is_thrown_away_and_counted(
        self, listen: Any, until: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reading, writing = os.pipe()
        output, heard = listen(reading)

        def read(_fd: int, _size: int) -> bytes:
            raise MemoryError

        monkeypatch.setattr(module.os, "read", read)
        os.write(writing, b"x" * 100)
        os.close(writing)
        until(lambda: output._fd < 0)  # it has ended: what is lost may be told before
        assert heard.lost_bytes == 100

    def test_what_nobody_had_thought_of_reaches_the_loop_and_does_not_end_the_thread_in_silence(
        self, loop: Any, listen: Any, until: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[BaseException] = []
        loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
        reading, writing = os.pipe()
        output, _ = listen(reading)

        def read(_fd: int, _size: int) -> bytes:
            raise RuntimeError("nobody has thought of this")

        monkeypatch.setattr(module.os, "read", read)
        os.write(writing, b"x")
        until(lambda: told)
        assert isinstance(told[0], RuntimeError)
        os.close(writing)
        output.close()
