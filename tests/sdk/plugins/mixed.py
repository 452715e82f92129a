"""The Python ends of the flows in tests/sdk/c: they send and check what programs/worker.c does."""

from __future__ import annotations

from functools import cache


@cache
def content(number: int, size: int) -> bytes:
    """The bytes of the frame of that number."""
    if size > 1 << 16:
        period = 1 << 16
        return (content(number, period) * (size // period + 1))[:size]
    return bytes((number * 131 + at * 7 + (at >> 8)) & 0xFF for at in range(size))


def sized(ctx):
    """Source: frames of the given sizes in turn."""
    sizes = ctx.params["sizes"]
    for number in range(ctx.params["count"]):
        yield content(number, sizes[number % len(sizes)])


def forward(frame, ctx):
    """Map: the same bytes."""
    return bytes(frame)


class Check:
    """Sink: counts frames, and those whose content is not theirs."""

    def __init__(self, ctx):
        self.sizes = ctx.params["sizes"]
        self.frames = self.bytes = self.wrong = self.largest = self.redelivered = 0

    def on_frame(self, frame, ctx):
        size, number = len(frame), self.frames
        self.frames += 1
        self.bytes += size
        self.largest = max(self.largest, size)
        self.redelivered += frame.redelivered
        self.wrong += size != self.sizes[number % len(self.sizes)] or bytes(frame) != content(number, size)

    def on_stop(self, ctx):
        return {name: value for name, value in vars(self).items() if name != "sizes"}


def items(ctx):
    """Source: the numbers from 1 to ``count``."""
    for n in range(ctx.resume_after + 1, ctx.params["count"] + 1):
        yield n.to_bytes(8, "little")


class Notes:
    """Sink: counts frames, and those whose notes are not as expected."""

    frames = wrong = 0

    def on_frame(self, frame, ctx):
        self.frames += 1
        self.wrong += frame.meta != {"camera": 3} or frame.stamp_ns != 1_700_000_000_000_000_001

    def on_stop(self, ctx):
        return {"frames": self.frames, "wrong": self.wrong}


class Doubles:
    """Answers requests for twice a number."""

    def on_message(self, message, ctx):
        message.reply((2 * int.from_bytes(message.payload, "little")).to_bytes(8, "little"))
