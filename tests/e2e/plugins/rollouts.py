"""Plugins for roll-outs: numbered items, maps that say which version they are, and a sink with a ledger."""

import itertools
import os
import time


def items(ctx):
    """Source: the numbers from where a predecessor was, for ever; params ``by`` is which version sent them."""
    n = ctx.resume_after
    while True:
        n += 1
        yield b"%d s%d" % (n, ctx.params.get("by", 0))


def obedient(ctx):
    """The same, and it ends by itself when it is to stop."""
    for item in items(ctx):
        if ctx.stopping:
            return
        yield item
        time.sleep(0.001)


def afresh(ctx):
    """Source: the numbers from 1, whatever a predecessor has sent."""
    for n in itertools.count(1):
        yield b"%d s%d" % (n, ctx.params.get("by", 0))
        if n % 20 == 0:
            time.sleep(0.001)


async def aobedient(ctx):
    """The same, asynchronous."""
    for item in items(ctx):
        if ctx.stopping:
            return
        yield item


async def aitems(ctx):
    """The same, asynchronous."""
    n = ctx.resume_after
    while True:
        n += 1
        yield b"%d s%d" % (n, ctx.params.get("by", 0))


def _pass(gate):
    """Wait until there is a file of that name."""
    while gate and not os.path.exists(gate):
        time.sleep(0.001)


class Mark:
    """Map: adds its version and counts; the count goes on in its successor."""

    def __init__(self, ctx):
        self.by = ctx.params.get("by", 0)
        self.count = 0
        if ctx.params.get("hangs"):
            time.sleep(1000)
        if ctx.params.get("raises"):
            raise ValueError("this version is no good")

    def on_start(self, ctx):
        self.count = ctx.handover or 0
        _pass(ctx.params.get("gate"))

    def on_frame(self, frame, ctx):
        _pass(ctx.params.get("frames"))
        self.count += 1
        return b"%s m%d" % (bytes(frame), self.by)

    def on_stop(self, ctx):
        return self.count


class AMark(Mark):
    """The same, asynchronous."""

    async def on_frame(self, frame, ctx):
        return super().on_frame(frame, ctx)


class BMark:
    """The same, a batch at a time."""

    def on_start(self, ctx):
        self.count = ctx.handover or 0

    def on_batch(self, batch, ctx):
        for frame in batch:
            self.count += 1
            ctx.send(b"%s m%d" % (bytes(frame), ctx.params.get("by", 0)))

    def on_stop(self, ctx):
        return self.count


class Ledger:
    """Sink: a line for each frame, written before it is returned: route, its words, redelivered, which version."""

    def __init__(self, ctx):
        self.file = os.open(ctx.params["ledger"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.by = ctx.params.get("by", 0)

    def on_frame(self, frame, ctx):
        line = b"%s %s %d %d\n" % (frame.route.encode(), bytes(frame), frame.redelivered, self.by)
        os.write(self.file, line)

    def on_stop(self, ctx):
        os.close(self.file)


class Stubborn(Ledger):
    """Sink: its version 0 never comes to an end of its own, with a frame in hand or without."""

    def on_frame(self, frame, ctx):
        super().on_frame(frame, ctx)
        while ctx.stopping and self.by == 0:
            time.sleep(0.01)

    def on_stop(self, ctx):
        while self.by == 0:
            time.sleep(0.01)
        super().on_stop(ctx)
