"""The two ends of a measurement, the same for every peer.

Rules:

* The first eight bytes of a frame are its number: phase in the upper bits, count below. Every number is checked.
* In throughput the count goes round after TURN frames, so that small frames are written beforehand, not while they are
  timed. A gap of whole turns shows too: what was sent is compared with what was received.
* A link with batches sends BATCH frames of one buffer at once and checks the numbers of all that it gets at once.
* A phase ends with a frame that carries minus the phase. It is sent again until the other end confirms it, because some
  peers lose frames. Frames of an earlier phase that still arrive are not counted.
* Phase 1 warms up, phase 2 counts. Time runs from before the first send until the end marker is taken.
* A receiver reads the eight bytes and drops the frame at once; it never copies the payload itself.
* ``wire`` is a SOCK_SEQPACKET socket between the two ends, apart from the peer that is measured.

This file is longer than 400 lines because sender and receiver of a mode are kept side by side: both follow the same
numbers.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

from bench.cells import BATCH, Cell, Sample
from bench.peers import Frames, Link

NUMBER = struct.Struct("<q")
PHASE_SHIFT = 40
TURN = 256
"""Numbers of a throughput phase."""
PREPARED_MAX = 4096
"""Bytes up to which every number has a frame of its own; larger frames are one buffer, numbered as it is sent."""
END_FRAME = 64
"""Bytes of an end marker."""
RESEND_AFTER = 0.05
"""How many seconds without an answer pass before an end marker is sent again."""
ANSWER_LIMIT = 30.0
"""After how many seconds an end gives up the other end."""

Report = dict[str, Any]


class EndLost(Exception):
    """The other end has not answered in time, or has ended."""


def cpu_ns(others: Iterable[int] = ()) -> int:
    """Processor time in ns of this process, all threads, and of the processes ``others``.

    The clock id of another process is its inverted pid shifted by three, with 2 for the scheduler's clock: what
    clock_getcpuclockid returns.
    """
    return time.process_time_ns() + sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in others)


def percentile(ordered: list[int], share: float) -> float:
    """Return the nearest-rank percentile of ``ordered`` nanoseconds (not empty), in microseconds."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000


def begin_apart(first: bool) -> None:
    """Move this thread to a processor of its own, free to go elsewhere from there.

    Two ends that never sleep would otherwise share the one that the last wake-up put them on, for as long as a
    short cell lasts.
    """
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {usable[0] if first else usable[-1]})
    os.sched_setaffinity(0, usable)


# -- throughput ----------------------------------------------------------------------------------------------


def send_for(send: Callable[[Any], object], size: int, phase: int, seconds: float) -> int:
    """Send numbered frames for ``seconds``, and return how many."""
    numbers = numbers_of(phase)
    if size > PREPARED_MAX:
        return send_one_by_one(send, bytearray(size), numbers, seconds)
    frames = [bytearray(size) for _ in numbers]
    for frame, number in zip(frames, numbers, strict=True):
        NUMBER.pack_into(frame, 0, number)
    turns, clock = 0, time.monotonic
    deadline = clock() + seconds
    while clock() < deadline:
        for frame in frames:
            send(frame)
        turns += 1
    return turns * TURN


def send_one_by_one(send: Callable[[Any], object], frame: bytearray, numbers: list[int], seconds: float) -> int:
    """Number and send the same buffer again and again, and return how often."""
    pack, clock = NUMBER.pack_into, time.monotonic
    sent = 0
    deadline = clock() + seconds
    while clock() < deadline:
        pack(frame, 0, numbers[sent % TURN])
        send(frame)
        sent += 1
    return sent


def send_batches(send_many: Callable[[Any, int], int], size: int, phase: int, seconds: float) -> int:
    """Send numbered frames for ``seconds``, BATCH at once, and return how many."""
    frames = memoryview(bytearray(size * TURN))
    for index, number in enumerate(numbers_of(phase)):
        NUMBER.pack_into(frames, index * size, number)
    batches = [frames[at * size : (at + BATCH) * size] for at in range(0, TURN, BATCH)]
    sent, clock = 0, time.monotonic
    deadline = clock() + seconds
    while clock() < deadline:
        for batch in batches:
            sent += send_many(batch, size)
    return sent


def numbers_of(phase: int) -> list[int]:
    """Return the numbers of a throughput phase, in order."""
    return list(range(phase << PHASE_SHIFT, (phase << PHASE_SHIFT) + TURN))


def take_until_end(receive: Callable[[], Any], phase: int) -> tuple[int, int]:
    """Take frames until the end of ``phase``. Returns how many were received, and how many were repeated or out of
    order."""
    turn, tally = numbers_of(phase), Tally(phase)
    while True:
        in_order, number = take_in_order(receive, turn[tally.begin :] + turn[: tally.begin])
        tally.go_on(in_order)
        if number == -phase:
            return tally.received, tally.repeated
        if number is not None:
            tally.add(number)


def take_batches_until_end(receive_many: Callable[[], Frames | None], size: int, phase: int) -> tuple[int, int]:
    """Take batches until the end of ``phase``; as :func:`take_until_end`."""
    turns = b"".join(NUMBER.pack(number) for number in numbers_of(phase)) * 2
    tally, words, unpack = Tally(phase), size // 8 if size % 8 == 0 else 0, NUMBER.unpack_from
    while True:
        frames = receive_many()
        if frames is None:
            continue
        count, begin = len(frames), tally.begin * 8
        alike = words and frames.nbytes == count * size
        if alike and frames.numpy("<i8")[::words].tobytes() == turns[begin : begin + count * 8]:
            frames.release()
            tally.go_on(count)
            continue
        numbers = [unpack(frame)[0] for frame in frames]
        frames.release()
        for number in numbers:
            if number == -phase:
                return tally.received, tally.repeated
            tally.add(number)


@dataclass(slots=True)
class Tally:
    """Counts of a phase: frames received, frames that came twice or late, and the position in the turn."""

    phase: int
    begin: int = 0
    received: int = 0
    repeated: int = 0

    def go_on(self, count: int) -> None:
        """Count ``count`` frames that have come in order."""
        self.received += count
        self.begin = (self.begin + count) % TURN

    def add(self, number: int) -> None:
        """Count one frame that may be out of order, or of another phase."""
        if number >> PHASE_SHIFT != self.phase:
            return
        gap = (number - self.begin) % TURN
        if gap < TURN // 2:
            self.received += 1
            self.begin = (self.begin + gap + 1) % TURN
        else:
            self.repeated += 1


def take_in_order(receive: Callable[[], Any], turn: list[int]) -> tuple[int, int | None]:
    """Take frames as long as their numbers follow ``turn``. Returns how many, and the number that did not fit (None
    when ``receive`` returned without a frame)."""
    unpack = NUMBER.unpack_from
    received = 0
    while True:
        for expected in turn:
            frame = receive()
            if frame is None:
                return received + turn.index(expected), None
            (number,) = unpack(frame)
            frame = None
            if number != expected:
                return received + turn.index(expected), number
        received += TURN


def end_phase(link: Link, wire: socket.socket, phase: int) -> Report:
    """Send end markers until the other end answers, and return the answer."""
    marker = bytearray(END_FRAME)
    NUMBER.pack_into(marker, 0, -phase)
    give_up = time.monotonic() + ANSWER_LIMIT
    while time.monotonic() < give_up:
        link.send(marker)
        if select.select([wire], [], [], RESEND_AFTER)[0]:
            return listen(wire)
    raise EndLost(f"no answer to the end of phase {phase} within {ANSWER_LIMIT:.0f} s")


def send_end(link: Link, wire: socket.socket, cell: Cell, others: Iterable[int]) -> Report:
    """Run the sender of a throughput cell."""

    def send_phase(phase: int, seconds: float) -> int:
        if link.send_many:
            return send_batches(link.send_many, cell.size, phase, seconds)
        send = link.loan or link.send if cell.mode == "loan" else link.send
        return send_for(send, cell.size, phase, seconds)

    begin_apart(True)
    send_phase(1, cell.warm_up)
    end_phase(link, wire, 1)
    begin_apart(True)
    cpu, start = cpu_ns(others), time.monotonic()
    sent = send_phase(2, cell.seconds)
    answer = end_phase(link, wire, 2)
    spent = cpu_ns(others) - cpu
    return {
        "sent": sent,
        "received": answer["received"],
        "repeated": answer["repeated"],
        "elapsed": answer["at"] - start,
        "cpu_ns": spent + answer["cpu_ns"],
    }


def receive_end(link: Link, wire: socket.socket, cell: Cell) -> None:
    """Run the receiver of a throughput cell."""
    for phase in (1, 2):
        begin_apart(False)
        cpu = cpu_ns()
        if link.receive_many:
            received, repeated = take_batches_until_end(link.receive_many, cell.size, phase)
        else:
            received, repeated = take_until_end(link.receive, phase)
        at = time.monotonic()
        tell(wire, {"received": received, "repeated": repeated, "at": at, "cpu_ns": cpu_ns() - cpu})


# -- round trip ----------------------------------------------------------------------------------------------


def ping_for(link: Link, frame: bytearray, phase: int, seconds: float) -> tuple[list[int], int]:
    """Send a frame and wait for its echo, for ``seconds``. Returns the round trips in ns, and how many echoes had a
    wrong number."""
    pack, unpack, clock = NUMBER.pack_into, NUMBER.unpack_from, time.perf_counter_ns
    send, receive = link.send, link.receive
    times: list[int] = []
    wrong, number = 0, phase << PHASE_SHIFT
    deadline = clock() + int(seconds * 1e9)
    now = clock()
    while now < deadline:
        pack(frame, 0, number)
        start = clock()
        send(frame)
        while (back := receive()) is None:
            pass
        (echo,) = unpack(back)
        back = None
        now = clock()
        times.append(now - start)
        wrong += echo != number
        number += 1
    return times, wrong


def ping_end(link: Link, wire: socket.socket, cell: Cell, others: Iterable[int]) -> Report:
    """Run the asking end of a round-trip cell."""
    frame = bytearray(cell.size)
    begin_apart(True)
    ping_for(link, frame, 1, cell.warm_up)
    end_phase(link, wire, 1)
    begin_apart(True)
    cpu, start = cpu_ns(others), time.monotonic()
    times, wrong = ping_for(link, frame, 2, cell.seconds)
    elapsed = time.monotonic() - start
    spent = cpu_ns(others) - cpu
    answer = end_phase(link, wire, 2)
    ordered = sorted(times)
    return {
        "sent": len(times),
        "received": len(times) - wrong,
        "repeated": wrong,
        "elapsed": elapsed,
        "cpu_ns": spent + answer["cpu_ns"],
        "p50_us": percentile(ordered, 0.5),
        "p99_us": percentile(ordered, 0.99),
    }


def echo_end(link: Link, wire: socket.socket) -> None:
    """Run the answering end of a round-trip cell."""
    receive, reply, unpack = link.receive, link.reply, NUMBER.unpack_from
    for phase in (1, 2):
        begin_apart(False)
        cpu = cpu_ns()
        while True:
            frame = receive()
            if frame is None:
                continue
            (number,) = unpack(frame)
            if number == -phase:
                break
            if number >= 0:
                reply(frame)
            frame = None
        frame = None
        tell(wire, {"cpu_ns": cpu_ns() - cpu})


# -- one process ---------------------------------------------------------------------------------------------


def alone(here: Link, there: Link, cell: Cell) -> Report:
    """Run a cell whose two ends are one thread, which sends and takes (and echoes and takes) in turn."""
    trips = cell.mode == "roundtrip"
    step = alone_trips if trips else alone_frames
    step(here, there, cell.size, 1, cell.warm_up)
    cpu, start = cpu_ns(), time.monotonic()
    count, wrong, times = step(here, there, cell.size, 2, cell.seconds)
    elapsed = time.monotonic() - start
    report: Report = {
        "sent": count,
        "received": count - wrong,
        "repeated": wrong,
        "elapsed": elapsed,
        "cpu_ns": cpu_ns() - cpu,
    }
    if trips:
        ordered = sorted(times)
        report |= {"p50_us": percentile(ordered, 0.5), "p99_us": percentile(ordered, 0.99)}
    return report


def alone_frames(here: Link, there: Link, size: int, phase: int, seconds: float) -> tuple[int, int, list[int]]:
    """Send and take for ``seconds``. Returns how many frames, how many wrong numbers, and no times."""
    unpack, receive = NUMBER.unpack_from, there.receive
    wrong, expected, send = 0, iter(cycle(numbers_of(phase))), here.send

    def send_and_take(frame: bytearray) -> None:
        nonlocal wrong
        send(frame)
        wrong += unpack(receive())[0] != next(expected)

    return send_for(send_and_take, size, phase, seconds), wrong, []


def alone_trips(here: Link, there: Link, size: int, phase: int, seconds: float) -> tuple[int, int, list[int]]:
    """Send, take, echo and take back for ``seconds``. Returns how many trips, how many wrong numbers, and the ns of
    each."""
    pack, unpack, clock = NUMBER.pack_into, NUMBER.unpack_from, time.perf_counter_ns
    send, take, reply, receive = here.send, there.receive, there.reply, here.receive
    frame = bytearray(size)
    times: list[int] = []
    wrong, number = 0, phase << PHASE_SHIFT
    now = clock()
    deadline = now + int(seconds * 1e9)
    while now < deadline:
        pack(frame, 0, number)
        start = clock()
        send(frame)
        reply(take())
        (echo,) = unpack(receive())
        now = clock()
        times.append(now - start)
        wrong += echo != number
        number += 1
    return len(times), wrong, times


# -- the wire ------------------------------------------------------------------------------------------------


def tell(wire: socket.socket, report: Report) -> None:
    """Send one report to the other end of ``wire``."""
    wire.send(json.dumps(report).encode())


def listen(wire: socket.socket) -> Report:
    """Return the next report on ``wire``. Raises EndLost when it has closed."""
    data = wire.recv(1 << 16)
    if not data:
        raise EndLost("the other end has gone; its message is above, on stderr")
    report: Report = json.loads(data)
    return report


def run(link: Link, wire: socket.socket, cell: Cell, first: bool, others: Iterable[int] = ()) -> Report:
    """Run one end of ``cell``. The ``first`` end sends or asks, and returns the figures."""
    if cell.mode == "roundtrip":
        if first:
            return ping_end(link, wire, cell, others)
        echo_end(link, wire)
    else:
        if first:
            return send_end(link, wire, cell, others)
        receive_end(link, wire, cell)
    return {}


def sample(report: Report) -> Sample:
    """Return the figures of the first end's report."""
    return Sample(
        sent=report["sent"],
        received=report["received"],
        repeated=report["repeated"],
        elapsed=report["elapsed"],
        cpu_s=report["cpu_ns"] / 1e9,
        p50_us=report.get("p50_us"),
        p99_us=report.get("p99_us"),
    )


def cell_as_json(cell: Cell) -> Report:
    """Return a cell as it is sent to the ends."""
    return asdict(cell)
