"""Plugins of the end-to-end tests: numbered frames, and a sink that counts what is lost, repeated or out of order."""

import os
import signal
import threading
import time


def numbers(ctx):
    """Source: ``count`` frames of ``size`` bytes whose first eight say which they are."""
    size = ctx.params.get("size", 64)
    for n in range(ctx.params["count"]):
        yield n.to_bytes(8, "little").ljust(size, b"\0")


def chooses_not_to_wait(ctx):
    """Source: as ``numbers``, but asks with timeout 0 and waits for its own reasons when there is no credit."""
    from chronetix.shm import WouldBlock

    blocked = 0
    pause = threading.Event()
    for n in range(ctx.params["count"]):
        while True:
            try:
                ctx.send(n.to_bytes(8, "little"), timeout=0)
                break
            except WouldBlock:
                blocked += 1
                pause.wait(0.002)
    ctx.log.info("done", blocked=blocked)
    return
    yield


def forward(frame, ctx):
    """Map: the same bytes."""
    return bytes(frame)


class Check:
    """Sink: every number once and in order, ``pause`` seconds each."""

    def on_start(self, ctx):
        self.seen = {}
        self.faults = []
        self.pause = ctx.params.get("pause", 0)
        self.wait = threading.Event().wait

    def on_frame(self, frame, ctx):
        n = int.from_bytes(bytes(frame[:8]) if hasattr(frame, "__getitem__") else bytes(frame)[:8], "little")
        expected = self.seen.get(frame.route, 0)
        if n != expected:
            self.faults.append([frame.route, expected, n])
        self.seen[frame.route] = n + 1
        if self.pause:
            self.wait(self.pause)

    def on_stop(self, ctx):
        return {"seen": sum(self.seen.values()), "faults": self.faults}


def endless(ctx):
    """Source: never ends by itself; frames of ``size`` bytes."""
    n = 0
    while True:
        yield n.to_bytes(8, "little").ljust(ctx.params.get("size", 8), b"\0")
        n += 1


def raises(frame, ctx):
    """Map: fails at its first frame."""
    raise ValueError("no such thing as frame zero")


def exits(frame, ctx):
    """Map: leaves without a word."""
    os.write(2, b"about to leave\n")
    os._exit(7)


def killed(frame, ctx):
    """Map: dies by signal."""
    os.kill(os.getpid(), signal.SIGKILL)


def glutton(ctx):
    """Source: takes more memory than the control group it goes to has."""
    with open(f"{ctx.params['group']}/cgroup.procs", "w") as procs:
        procs.write(str(os.getpid()))
    yield len(b"x" * (256 << 20)).to_bytes(8, "little")


def talks(ctx):
    """Source: prints ``lines`` lines and sends nothing."""
    for n in range(ctx.params["lines"]):
        print("line", n, flush=True)
    yield from ()


def floods(ctx):
    """Source: prints as fast as it can."""
    text = b"x" * 79 + b"\n"
    while True:
        os.write(1, text * 800)
        yield b""


class NeverReady:
    """Sink: its constructor waits for ever."""

    def __init__(self):
        threading.Event().wait()


class Asks:
    """Requests an answer at start, publishes it."""

    def on_start(self, ctx):
        answer = ctx.request("sums", {"a": 2, "b": 3})
        ctx.publish("answers", {"sum": answer.value()})


class Answers:
    """Replies to requests for sums."""

    def on_start(self, ctx):
        ctx.subscribe("sums")

    def on_message(self, message, ctx):
        numbers = message.value()
        message.reply(numbers["a"] + numbers["b"])


class Ticks:
    """Counts its timer's ticks and publishes each."""

    def on_tick(self, tick, ctx):
        ctx.publish("ticked", {"timer": tick.id, "sequence": tick.sequence})


class Collects:
    """Logs every message it gets."""

    def on_message(self, message, ctx):
        ctx.log.info("got", topic=message.topic, value=message.value())


def grows(ctx):
    """Source: small frames until the file ``go`` is there, then 20 of 3 MB, and the end."""
    n = 0
    while not os.path.exists(ctx.params["go"]):
        yield n.to_bytes(8, "little")
        n += 1
    for n in range(n, n + 20):  # noqa: B020
        yield n.to_bytes(8, "little").ljust(3_000_000, b"\0")


class Keeps:
    """Sink: keeps every frame until it is stopped."""

    def on_start(self, ctx):
        self.frames = []

    def on_frame(self, frame, ctx):
        self.frames.append(memoryview(frame))

    def on_stop(self, ctx):
        kept = len(self.frames)
        self.frames.clear()
        return {"seen": kept}


class Newest:
    """Sink: how many frames came, and the last one."""

    def on_start(self, ctx):
        self.seen, self.last, self.wait = 0, -1, threading.Event().wait

    def on_frame(self, frame, ctx):
        n = int.from_bytes(bytes(frame)[:8], "little")
        assert n > self.last
        self.seen, self.last = self.seen + 1, n
        if self.seen < 20:
            self.wait(0.005)

    def on_stop(self, ctx):
        return {"seen": self.seen, "last": self.last}


def words(ctx):
    """Source: values in the route's format, for ever."""
    n = 0
    while True:
        yield {"n": n, "word": "grün"}
        n += 1


class KeepsTheFirst:
    """Sink: keeps the first frame in place until it is stopped, and gives all others back."""

    def on_start(self, ctx):
        self.seen, self.first = 0, None

    def on_frame(self, frame, ctx):
        self.seen += 1
        if self.first is None:
            self.first = memoryview(frame)

    def on_stop(self, ctx):
        first = int.from_bytes(self.first[:8], "little")
        self.first = None
        return {"seen": self.seen, "first": first}


def logs_much(ctx):
    """Source: logs ``count`` records as fast as it can."""
    for n in range(ctx.params["count"]):
        ctx.log.info("record", n=n)
    return
    yield


class Grows:
    """Source: sends more than its first memory holds as soon as it gets a message."""

    def on_message(self, message, ctx):
        ctx.send(bytes(32 << 20))


def swallows(frame):
    """Sink: anything."""


def surroundings(ctx):
    """Source: sends nothing; its result is what its process has from its birth."""
    yield from ()
    return [os.environ.get("COLOUR"), time.tzname[0], os.getcwd(), os.environ["CHRONETIX_NODE"]]
