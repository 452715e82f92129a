"""``python -m bench.fan``: one producer and N consumers, N producers and one consumer, each a process of its own.

Rules:

* Frames of 64 bytes over routes with policy block: no frame is lost, and the slowest process sets the pace. Routes have
  64 credits, which is the default, or 1024: a process that sleeps is woken once for some half of them.
* Every process makes its own memories and maps its peers'; descriptors travel over Unix sockets, as under the daemon.
* The clock runs from the moment when all are linked until the last frame was taken. Each process reports the CPU time
  that it has used since then.
* Shares (fan-in): frames of each producer that were taken by the time when the first one had ended; least to most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bench.machine import describe_machine, own_version, progress
from bench.report import aligned, number_text
from chronetix import shm

COUNTS = (1, 4, 16, 64)
FRAMES = 1_000_000
"""Deliveries of one measurement, whatever the number of processes."""
SIZE = 64
CREDITS = (64, 1024)
ROUNDS = 3
Mode = Literal["fan-out", "fan-in"]
REPORT = struct.Struct("<QQ")
"""The report of a child at its end: frames, CPU ns."""


@dataclass(frozen=True, slots=True)
class FanRow:
    """One line of the JSON file. ``one`` is the process that has all routes, ``many`` the others together."""

    peer: str
    version: str
    mode: Mode
    processes: int
    credits: int
    frames: int
    seconds: float
    frames_per_second: float
    one_cpu_s_per_million: float
    many_cpu_s_per_million: float
    least: int
    most: int


class Child:
    """Another process that runs ``work`` with its end of a socket, and reports at its end."""

    def __init__(self, work: Callable[[socket.socket], tuple[int, int]]) -> None:
        self.sock, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                self.sock.close()
                theirs.sendall(REPORT.pack(*work(theirs)))
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def report(self) -> tuple[int, int]:
        """Frames and CPU ns. RuntimeError when it failed."""
        said = self.sock.recv(REPORT.size, socket.MSG_WAITALL)
        self.sock.close()
        os.waitpid(self._pid, 0)
        if len(said) < REPORT.size:
            raise RuntimeError("a process of the benchmark failed; its message is above")
        frames, cpu_ns = REPORT.unpack(said)
        return frames, cpu_ns


def give(sock: socket.socket, *descriptors: int) -> None:
    """Send descriptors over ``sock``."""
    socket.send_fds(sock, [b"f"], descriptors)


def get(sock: socket.socket, count: int) -> list[int]:
    """Receive ``count`` descriptors from ``sock``."""
    _, found, _, _ = socket.recv_fds(sock, 1, count)
    assert len(found) == count
    return found


def consume(inlet: shm.Inlet, taken: list[int]) -> list[int]:
    """Count the frames of each route until all have ended; the counts when the first one had."""
    first: list[int] = []
    take, ends = inlet.take, inlet.consumers
    while not inlet.ended:
        frame = take()
        if frame is None:
            continue
        taken[frame.port] += 1
        frame.release()
        if not first and ends[frame.port].ended:
            first = list(taken)
    return first or list(taken)


def attach_consumer(sock: socket.socket, credits: int, bell: shm.Doorbell) -> shm.Consumer:
    """A consumer whose producer is at the other end."""
    consumer = shm.Consumer("r", credits=credits)
    give(sock, consumer.fd)
    ring, line, segment = get(sock, 3)
    consumer.link(ring, line, bell)
    consumer.add_segment(0, segment)
    for descriptor in (ring, line, segment):
        os.close(descriptor)
    return consumer


def attach_producer(sock: socket.socket, credits: int, arena: shm.Arena, bell: shm.Doorbell) -> shm.Producer:
    """A producer whose consumer is at the other end."""
    producer = shm.Producer(arena, "r", credits=credits)
    near, far = shm.line()
    give(sock, producer.fd, far, arena.segments[0][1])
    (credit,) = get(sock, 1)
    producer.link(credit, near, bell)
    for descriptor in (credit, near, far):
        os.close(descriptor)
    return producer


def arena_for(credits: int) -> shm.Arena:
    """Return an arena with room for so many frames."""
    size = max(1 << 20, credits * SIZE * 2)
    return shm.Arena(size, first=size)


def consumer_child(credits: int) -> Callable[[socket.socket], tuple[int, int]]:
    """Takes all frames until the stream ends; returns their number and the CPU ns used."""

    def work(sock: socket.socket) -> tuple[int, int]:
        bell = shm.Doorbell()
        inlet = shm.Inlet([attach_consumer(sock, credits, bell)], bell)
        taken = [0]
        sock.recv(1)
        began = time.process_time_ns()
        consume(inlet, taken)
        return taken[0], time.process_time_ns() - began

    return work


def producer_child(credits: int, frames: int) -> Callable[[socket.socket], tuple[int, int]]:
    """Sends ``frames`` frames."""

    def work(sock: socket.socket) -> tuple[int, int]:
        bell, arena = shm.Doorbell(), arena_for(credits)
        producer = attach_producer(sock, credits, arena, bell)
        send, data = shm.Outlet([producer], bell).send, bytes(SIZE)
        sock.recv(1)
        began = time.process_time_ns()
        for _ in range(frames):
            send(data)
        producer.close()
        return frames, time.process_time_ns() - began

    return work


def fan_out(consumers: int, credits: int, frames: int) -> FanRow:
    """Measure fan-out: this process sends each frame to all consumers."""
    children = [Child(consumer_child(credits)) for _ in range(consumers)]
    bell, arena = shm.Doorbell(), arena_for(consumers * credits)
    producers = [attach_producer(child.sock, credits, arena, bell) for child in children]
    send, data = shm.Outlet(producers, bell).send, bytes(SIZE)
    for child in children:
        child.sock.sendall(b"g")
    began, cpu = time.monotonic(), time.process_time_ns()
    for _ in range(frames):
        send(data)
    for producer in producers:
        producer.close()
    cpu = time.process_time_ns() - cpu
    reports = [child.report() for child in children]
    seconds = time.monotonic() - began
    counts = [count for count, _ in reports]
    return row("fan-out", consumers, credits, frames, seconds, cpu, sum(spent for _, spent in reports), counts)


def fan_in(producers: int, credits: int, frames: int) -> FanRow:
    """Measure fan-in: this process takes the frames of all producers."""
    children = [Child(producer_child(credits, frames)) for _ in range(producers)]
    bell = shm.Doorbell()
    inlet = shm.Inlet([attach_consumer(child.sock, credits, bell) for child in children], bell)
    for child in children:
        child.sock.sendall(b"g")
    taken = [0] * producers
    began, cpu = time.monotonic(), time.process_time_ns()
    first = consume(inlet, taken)
    seconds, cpu = time.monotonic() - began, time.process_time_ns() - cpu
    reports = [child.report() for child in children]
    if taken != [frames] * producers:
        raise RuntimeError(f"frames were lost: {taken} of {frames} each")
    return row(
        "fan-in", producers, credits, frames * producers, seconds, cpu, sum(spent for _, spent in reports), first
    )


def row(
    mode: Mode,
    processes: int,
    credits: int,
    frames: int,
    seconds: float,
    one_ns: int,
    many_ns: int,
    counts: Sequence[int],
) -> FanRow:
    """Rates and costs."""
    if mode == "fan-out" and set(counts) != {frames}:
        raise RuntimeError(f"frames were lost: {counts} of {frames} each")
    return FanRow(
        "chronetix",
        own_version(),
        mode,
        processes,
        credits,
        frames,
        seconds,
        frames / seconds,
        one_ns / frames / 1000,
        many_ns / frames / 1000,
        min(counts),
        max(counts),
    )


def added(rows: Sequence[FanRow], now: FanRow) -> str:
    """CPU ns of the one process for each frame and process added to the first."""
    first = next(row for row in rows if (row.mode, row.credits) == (now.mode, now.credits))
    if now.processes == first.processes:
        return ""
    more = now.one_cpu_s_per_million - first.one_cpu_s_per_million
    return number_text(more * 1000 / (now.processes - first.processes))


def document(rows: Sequence[FanRow], machine: str) -> str:
    """Return the table and its explanation."""
    lines = [
        ("mode", "processes", "credits", "frames/s", "CPU s/M one", "CPU s/M many", "ns/frame added", "least", "most")
    ]
    lines += [
        (
            each.mode,
            str(each.processes),
            str(each.credits),
            number_text(each.frames_per_second),
            number_text(each.one_cpu_s_per_million),
            number_text(each.many_cpu_s_per_million),
            added(rows, each),
            str(each.least),
            str(each.most),
        )
        for each in rows
    ]
    return "\n".join(
        [
            machine,
            "",
            *aligned(lines, left=1),
            "",
            "fan-out: frames a second that the one producer sends to all; fan-in: that the one consumer takes.",
            "CPU s/M: seconds of processor a million of these frames, of the one process and of all others together;",
            "ns/frame added: what each further process adds to the one's. least, most: frames by process (fan-in: when",
            "the first had ended). With more processes than processors the rates are the scheduler's as well.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.fan", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N", help=f"deliveries each; default {FRAMES:,}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"the best counts; default {ROUNDS}")
    parser.add_argument("--credits", type=int, nargs="+", default=CREDITS, metavar="N", help="default: 64 and 1024")
    options = parser.parse_args(argv)
    modes: tuple[Callable[[int, int, int], FanRow], ...] = (fan_out, fan_in)
    rows = []
    for measure, credits, count in itertools.product(modes, options.credits, COUNTS):
        progress(f"{measure.__name__} {count}, {credits} credits")
        frames = max(1, options.frames // count)
        tries = [measure(count, credits, frames) for _ in range(options.rounds)]
        rows.append(max(tries, key=lambda each: each.frames_per_second))
    progress("")
    if options.json is not None:
        options.json.write_text("".join(json.dumps(asdict(each)) + "\n" for each in rows))
    print(document(rows, f"{describe_machine()}; best of {options.rounds} round(s)"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
