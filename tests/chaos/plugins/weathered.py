"""Plugins whose every frame is accounted for.

A frame begins with HEAD: its number, and in which lives of source and map it was made. A sink's ledger has a line for
each frame, written before the frame is returned:

    B                                                               the flow begins anew
    F monotonic_ns route number redelivered life(source) life(map) life(sink)
    Q id, W id, E id outcome                                        a request: asked, word of the daemon, its end
    R id                                                            the request as its replier got it
"""

import os
import struct
import subprocess
import time

from chronetix import RequestFailed
from chronetix.nodeworker.process import remote

HEAD = struct.Struct("<QII")
BURST = 10
PAUSE_S = 0.02


def _ledger(ctx):
    return os.open(ctx.params["ledger"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _made(number, ctx):
    return HEAD.pack(number, ctx.incarnation, 0)


def numbers(ctx):
    """Source: the numbers from where its predecessor was, in bursts."""
    number = ctx.resume_after
    while not ctx.stopping:
        for _ in range(BURST):
            number += 1
            yield _made(number, ctx)
        time.sleep(PAUSE_S)


def replays(ctx):
    """Source: whichever life it is, from 1; slowly once it goes beyond what its predecessors sent, of which its file
    has a byte for each burst. (Who reads ``ctx.resume_after`` goes on from there.)"""
    file, number = _ledger(ctx), 0
    if ctx.incarnation == 0:
        os.ftruncate(file, 0)
    while not ctx.stopping:
        for _ in range(BURST):
            number += 1
            yield _made(number, ctx)
        if number > BURST * os.fstat(file).st_size:
            os.write(file, b".")
            time.sleep(BURST * PAUSE_S)


def prints(ctx):
    """Source: as ``numbers``, and prints far more than anybody keeps; so does a child after each burst."""
    for at, item in enumerate(numbers(ctx)):
        if at % BURST == 0:
            print("\n".join(["x" * 300] * 200), flush=True)
            subprocess.run(["sh", "-c", "echo out; echo err >&2"], check=True)
        yield item


def grown(ctx):
    """Source: as ``numbers``, in frames of up to 300 KB, so that memory grows and is given back."""
    number = ctx.resume_after
    while not ctx.stopping:
        for _ in range(BURST):
            number += 1
            yield _made(number, ctx).ljust(HEAD.size + (number * 7919) % 300_000, b"\0")
        time.sleep(PAUSE_S)


def forward(frame, ctx):
    """Map: the same bytes, but for its own life."""
    number, source, _ = HEAD.unpack_from(frame)
    return HEAD.pack(number, source, ctx.incarnation) + bytes(memoryview(frame)[HEAD.size :])


def picky(frame, ctx):
    """Map: as ``forward``, but it cannot take every tenth number."""
    number, _, _ = HEAD.unpack_from(frame)
    if number % 10 == 0:
        raise ValueError(f"{number} is a round number")
    return forward(frame, ctx)


class Ledger:
    """Sink: writes down what it gets."""

    def __init__(self, ctx):
        self.file = _ledger(ctx)
        if ctx.incarnation == 0:
            os.write(self.file, b"B\n")

    def on_frame(self, frame, ctx):
        number, source, mapped = HEAD.unpack_from(frame)
        line = time.monotonic_ns(), frame.route, number, frame.redelivered, source, mapped, ctx.incarnation
        os.write(self.file, b"F %d %s %d %d %d %d %d\n" % (line[0], line[1].encode(), *line[2:]))

    def on_stop(self, ctx):
        os.close(self.file)


class Letters:
    """Writes down the numbers that were set aside."""

    def __init__(self, ctx):
        self.file = _ledger(ctx)

    def on_message(self, message, ctx):
        number, _, _ = HEAD.unpack_from(message.payload)
        os.write(self.file, b"L %d\n" % number)

    def on_stop(self, ctx):
        os.close(self.file)


def asks(ctx):
    """Source: asks somebody to confirm each number, again until he does, before it sends it."""
    ledger = _ledger(ctx)
    told = remote.DaemonHost.resolve

    def resolve(host, end):
        os.write(ledger, b"W %s\n" % end.corr_id.encode())
        told(host, end)

    remote.DaemonHost.resolve = resolve
    number, attempt = ctx.resume_after, 0
    while not ctx.stopping:
        number += 1
        confirmed = False
        while not confirmed and not ctx.stopping:
            attempt += 1
            name = f"{os.getpid()}-{attempt}"
            os.write(ledger, b"Q %s\n" % name.encode())
            outcome = "interrupted"
            try:
                answer = ctx.request("confirm", {"id": name}, timeout=1.0).value()
                confirmed = answer["id"] == name
                outcome = "reply" if confirmed else "another's"
            except RequestFailed as failed:
                outcome = failed.reason
                time.sleep(0.01)
            finally:
                os.write(ledger, b"E %s %s\n" % (name.encode(), outcome.encode()))
        if confirmed:
            yield _made(number, ctx)
        time.sleep(0.002)


class Confirms:
    """Replies to every request, each once."""

    def __init__(self, ctx):
        self.file = _ledger(ctx)

    def on_message(self, message, ctx):
        name = message.value()["id"]
        os.write(self.file, b"R %s\n" % name.encode())
        message.reply({"id": name})

    def on_stop(self, ctx):
        os.close(self.file)
