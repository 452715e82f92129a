"""Plugins that are in the middle of something while their daemon is replaced."""

import os
import time


def halves(ctx):
    """Source: begins a line, and ends it when the file ``params["end"]`` is there."""
    os.write(1, b"the first half, ")
    open(ctx.params["begun"], "w").close()
    while not os.path.exists(ctx.params["end"]):
        time.sleep(0.01)
    os.write(1, b"the second half\n")
    yield b"done"


class Asks:
    """Requests an answer at start, and publishes it."""

    def on_start(self, ctx):
        answer = ctx.request("/slow", {"asked": os.getpid()}, timeout=60)
        ctx.publish("answers", answer.value())
        print("the answer:", answer.value(), flush=True)


class AnswersLate:
    """Replies to each request when it hears of topic ``/now``."""

    def on_start(self, ctx):
        self.asked = None
        ctx.subscribe("/slow")
        ctx.subscribe("/now")

    def on_message(self, message, ctx):
        if message.topic == "/slow":
            self.asked = message
            print("asked", flush=True)
        else:
            self.asked.reply({"late": True})


class Slow:
    """Takes its time to be constructed: until the file ``params["go"]`` is there."""

    def __init__(self, ctx):
        open(ctx.params["begun"], "w").close()
        while not os.path.exists(ctx.params["go"]):
            time.sleep(0.01)

    def on_tick(self, tick, ctx):
        pass


class SlowMap(Slow):
    """Map, in the same way: the same bytes."""

    def on_frame(self, frame, ctx):
        return bytes(frame)


class Takes:
    """Sink: for whatever comes."""

    def on_frame(self, frame, ctx):
        pass


class Lingers:
    """Sink: ends its drain when the file ``params["go"]`` is there."""

    def on_frame(self, frame, ctx):
        pass

    def on_stop(self, ctx):
        open(ctx.params["begun"], "w").close()
        while not os.path.exists(ctx.params["go"]):
            time.sleep(0.01)
        return "lingered"


def ticks(tick, ctx):
    """Counts: publishes the number of each tick."""
    print("tick", tick.sequence, tick.missed, flush=True)


def grows(ctx):
    """Source: frames that are larger and larger, so that its arena has to grow; ever again, until 20 000."""
    for number in range(1, 20_000):
        size = 64 << (number % 14)
        yield number.to_bytes(8, "little") + bytes(size)


class Numbers:
    """Sink: checks that each follows the one before, and ends with the last."""

    last = 0

    def on_frame(self, frame, ctx):
        number = int.from_bytes(bytes(memoryview(frame)[:8]), "little")
        assert number == self.last + 1, f"{number} follows {self.last}"
        assert not frame.redelivered
        self.last = number

    def on_stop(self, ctx):
        return self.last
