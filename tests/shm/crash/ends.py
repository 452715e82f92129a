"""The two ends of the route that is played with, each in a process of its own that may die at any step.

Commands come over a socket in a thread of their own, as in a worker: the main thread sends, takes, waits, or is in the
middle of it when the other end gets a successor.

The stream is numbered batches, of one frame or of several sent at once; ``input_seq`` is the batch's number. A frame's
payload begins with its own number, from which the rest of it follows.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import socket
import struct
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

ENTRY = struct.Struct("<QQQQ")
"""Of the log: the frame's number, its sequence number, whether it was marked, how far it has come."""

TAKEN, RETURNING, RETURNED = 1, 2, 3

LOG_BYTES = 1 << 19

Send = Callable[..., None]


def batch_frames(batch: int) -> int:
    """How many frames a batch has."""
    return batch % 5 + 2 if batch % 3 == 0 else 1


def frame_number(batch: int, index: int) -> int:
    return batch * 16 + index


def payload(number: int) -> bytes:
    """Frames of one batch are equally long."""
    size = 8 + number // 16 * 389 % 6000
    return (number.to_bytes(8, "little") + bytes([number & 0xFF]) * size)[:size]


def fork(run: Callable[[socket.socket], None], *unwanted: socket.socket) -> tuple[int, socket.socket]:
    """A process that runs ``run`` with its end of a socket; its id, and our end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        for sock in (ours, *unwanted):
            sock.close()
        run(theirs)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def say(sock: socket.socket, what: str, fds: tuple[int, ...] = (), **details: Any) -> None:
    socket.send_fds(sock, [json.dumps({"what": what, **details}).encode()], list(fds))


def hear(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, fds, _, _ = socket.recv_fds(sock, 4096, 8)
    return (json.loads(data) if data else {"what": "gone"}), fds


def obey(sock: socket.socket, obeys: Callable[[dict[str, Any], list[int]], None]) -> None:
    """Serve commands in a thread until the socket ends, which ends the process too."""

    def serve() -> None:
        while True:
            message, fds = hear(sock)
            if message["what"] == "gone":
                os._exit(2)
            try:
                obeys(message, fds)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(3)
            for fd in fds:
                os.close(fd)

    threading.Thread(target=serve, daemon=True).start()


# ---- the producing end --------------------------------------------------------------------------------------


def produce(
    shm: ModuleType, sock: socket.socket, *, epoch: int, base_seq: int, resume: int, batches: int, credits: int
) -> None:
    """Send the batches from the one that a predecessor may not have finished on."""
    bell, arena = shm.Doorbell(), shm.Arena(1 << 20, first=1 << 20)
    producer = shm.Producer(arena, "r", credits=credits, epoch=epoch, base_seq=base_seq, resume=resume)
    outlet, linked, over = shm.Outlet([producer], bell), threading.Event(), threading.Event()

    def attach(message: dict[str, Any], fds: list[int]) -> None:
        if message["what"] == "over":
            return over.set()
        (producer.relink if producer.linked else producer.link)(*fds, bell)
        say(sock, "linked", life=message["life"])
        return linked.set()

    say(sock, "made", (producer.fd, arena.segments[0][1]))
    obey(sock, attach)
    linked.wait()
    for batch in range(max(1, resume), batches + 1):
        frames = [payload(frame_number(batch, i)) for i in range(batch_frames(batch))]
        if len(frames) > 1:
            assert outlet.send_many(b"".join(frames), len(frames[0]), input_seq=batch) == len(frames)
        elif batch % 2:
            outlet.send(frames[0], -1, batch)
        else:
            with outlet.loan(len(frames[0]), -1, batch) as loan:
                memoryview(loan)[:] = frames[0]
    producer.close()
    say(sock, "done")
    over.wait()
    assert arena.used == 0, "not all memory came back"
    assert (producer.outstanding, producer.credits) == (0, credits)


# ---- the consuming end --------------------------------------------------------------------------------------


class Log:
    """What an end has taken and given back; it outlives the end."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, LOG_BYTES)
        self._count = 0

    def taken(self, number: int, seq: int, marked: bool) -> int:
        self._count += 1
        ENTRY.pack_into(self._map, self._count * ENTRY.size, number, seq, marked, TAKEN)
        struct.pack_into("<Q", self._map, 0, self._count)
        return self._count

    def note(self, index: int, state: int) -> None:
        struct.pack_into("<Q", self._map, index * ENTRY.size + 24, state)

    def read(self) -> list[tuple[int, int, bool, int]]:
        (count,) = struct.unpack_from("<Q", self._map, 0)
        entries = [ENTRY.unpack_from(self._map, i * ENTRY.size) for i in range(1, count + 1)]
        return [(number, seq, bool(marked), state) for number, seq, marked, state in entries]

    def close(self) -> None:
        self._map.close()


def consume(shm: ModuleType, sock: socket.socket, *, credits: int, log: Log, seed: int) -> None:
    """Take until the stream ends; hold some frames, give them back in any order."""
    bell = shm.Doorbell()
    stages: dict[int, Any] = {}
    inlets: list[Any] = []
    unemptied: list[int] = []
    empty: set[int] = set()
    go = threading.Event()

    def obeys(message: dict[str, Any], fds: list[int]) -> None:
        what, epoch = message["what"], message.get("epoch", 0)
        if what == "stage":
            made = shm.Consumer("r", credits=credits, epoch=epoch, base_seq=message["base_seq"])
            if stages:
                last = stages[max(stages)]
                last.succeed(made, lambda: emptied(last.epoch))
            else:
                inlets.append(shm.Inlet([made], bell))
            stages[epoch] = made
            unemptied.append(epoch)
            bell.ring()
            say(sock, "made", (made.fd,), epoch=epoch)
        elif what == "link":
            ring, segment, line, *predecessor = fds
            stages[epoch].add_segment(0, segment)
            stages[epoch].link(ring, line, bell, predecessor=predecessor[0] if predecessor else -1)
            bell.ring()
            say(sock, "linked", epoch=epoch)
        else:
            go.set()

    def emptied(epoch: int) -> None:
        """Oldest first: each stage that is left ends where the next one begins."""
        empty.add(epoch)
        while unemptied and min(unemptied) in empty:
            say(sock, "drained", epoch=unemptied.pop(unemptied.index(min(unemptied))))

    obey(sock, obeys)
    go.wait()
    _take_all(inlets[0], log, random.Random(seed), min(3, credits - 1))
    for end in stages.values():
        end.close()
    say(sock, "done")


def _take_all(inlet: Any, log: Log, chance: random.Random, most: int) -> None:
    held: list[list[tuple[Any, int, bytes]]] = []
    while True:
        if chance.random() < 0.3:
            batch = inlet.take_many(3)
            frames = list(batch) if batch is not None else []
        else:
            frame = inlet.take()
            frames = [frame] if frame is not None else []
        if not frames and inlet.ended:
            break
        noted = []
        for frame in frames:
            data = bytes(frame)
            number = int.from_bytes(data[:8], "little")
            assert data == payload(number), f"frame {frame.seq} is not whole"
            assert frame.input_seq == number // 16
            noted.append((frame, log.taken(number, frame.seq, frame.redelivered), data))
        if noted:
            held.append(noted)
        frames = frame = batch = None  # type: ignore[assignment]
        while sum(map(len, held)) > most:
            _give_back(held.pop(0 if chance.random() < 0.2 else len(held) - 1), log)
    while held:
        _give_back(held.pop(), log)


def _give_back(noted: list[tuple[Any, int, bytes]], log: Log) -> None:
    for frame, index, data in noted:
        assert bytes(frame) == data, "a held frame has changed"
        log.note(index, RETURNING)
    for frame, _, _ in noted:
        frame.release()
    indices = [index for _, index, _ in noted]
    frame = None
    noted.clear()
    for index in indices:
        log.note(index, RETURNED)
