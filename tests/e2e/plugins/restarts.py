"""Plugins for restarts: numbered items, and a sink whose ledger outlives it."""

import os
import signal
import time


def items(ctx):
    """Source: the numbers from where a predecessor was, for ever."""
    n = ctx.resume_after
    while True:
        n += 1
        yield n.to_bytes(8, "little")


def paced(ctx):
    """Source: as ``items``, some thousand a second."""
    for item in items(ctx):
        yield item
        time.sleep(0.0002)


def forgets(ctx):
    """Source: the numbers from 1, whatever a predecessor did."""
    n = 0
    while True:
        n += 1
        yield n.to_bytes(8, "little")


def forward(frame, ctx):
    """Map: the same bytes."""
    return bytes(frame)


class Ledger:
    """Sink: a line for each frame, written before the frame is returned: incarnation, route, number, redelivered."""

    def __init__(self, ctx):
        self.file = os.open(ctx.params["ledger"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.incarnation = ctx.incarnation

    def on_frame(self, frame, ctx):
        number = int.from_bytes(bytes(frame), "little")
        os.write(self.file, b"%d %s %d %d\n" % (self.incarnation, frame.route.encode(), number, frame.redelivered))

    def on_stop(self, ctx):
        os.close(self.file)


class FailsAtFirst:
    """Map: raises in its first ``lives`` incarnations, at the third frame."""

    def __init__(self, ctx):
        self.seen = 0
        self.raises = ctx.incarnation < ctx.params.get("lives", 1 << 30)

    def on_frame(self, frame, ctx):
        self.seen += 1
        if self.seen == 3 and self.raises:
            raise ValueError("the third frame is one too many")
        return bytes(frame)


class CannotSend:
    """Map: in its first ``lives`` incarnations, what it makes of its third frame is nothing that can be sent."""

    def __init__(self, ctx):
        self.seen = 0
        self.fails = ctx.incarnation < ctx.params["lives"]

    def on_frame(self, frame, ctx):
        self.seen += 1
        return object() if self.seen == 3 and self.fails else bytes(frame)


class CannotSendAsync(CannotSend):
    """The same, with several frames in hand at once."""

    async def on_frame(self, frame, ctx):
        return super().on_frame(frame, ctx)


class Hangs:
    """Map: in its first life, one frame never ends; the others are worked on for a while each."""

    def __init__(self, ctx):
        self.stuck = ctx.incarnation == 0
        self.seen = 0

    def on_frame(self, frame, ctx):
        self.seen += 1
        while self.seen == 5 and self.stuck:
            pass
        return bytes(frame)


def picky(frame, ctx):
    """Map: raises at every tenth number."""
    number = int.from_bytes(bytes(frame), "little")
    if number % 10 == 0:
        raise ValueError(f"{number} is a round number")
    return bytes(frame)


def some(ctx):
    """Source: ``count`` numbers."""
    for n in range(ctx.resume_after + 1, ctx.params["count"] + 1):
        yield n.to_bytes(8, "little")


class Letters:
    """Counts dead letters and tells each node's name for them."""

    def __init__(self):
        self.heads = []

    def on_message(self, message, ctx):
        head = message.envelope["headers"]
        self.heads.append([head["node"], head["error"], int.from_bytes(message.payload, "little")])
        ctx.log.info("letter", head=self.heads[-1])


def growing(ctx):
    """Source: numbers in frames of up to a megabyte, so that the arena grows while successors come and go."""
    n = ctx.resume_after
    while True:
        n += 1
        yield n.to_bytes(8, "little").ljust(8 + (n * 7919) % 1_000_000, b"\0")


class Heads(Ledger):
    """As Ledger, for frames whose first eight bytes are the number."""

    def on_frame(self, frame, ctx):
        number = int.from_bytes(frame.numpy()[:8].tobytes(), "little")
        os.write(self.file, b"%d %s %d %d\n" % (self.incarnation, frame.route.encode(), number, frame.redelivered))


class CutOff:
    """Map: the same bytes. Its first incarnation gets SIGTERM while it works on the fifth frame, and ends in order."""

    def on_frame(self, frame, ctx):
        if ctx.incarnation == 0 and int.from_bytes(bytes(frame), "little") == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return bytes(frame)

    def on_stop(self, ctx):
        ctx.log.info("stopped")
