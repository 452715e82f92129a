"""Looks each word up with a service that takes its time, several at once, and keeps their order."""

import asyncio

MEANINGS = {"ring": "slots, used again and again", "credit": "the right to send one more", "frame": "one message"}


async def words(ctx):
    """Source: an asynchronous generator."""
    for word in ctx.params["words"]:
        yield word


class Lookup:
    """Map: up to ``qos.max_inflight`` callbacks wait at the same time, in one thread."""

    waiting = most = 0

    async def on_frame(self, frame, ctx):
        word = frame.value()
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(0.01)  # a service over the network, say
        self.waiting -= 1
        return {"word": word, "meaning": MEANINGS.get(word, "unknown")}

    async def on_stop(self, ctx):
        return {"at once": self.most}


class Book:
    """Sink: plain, as most plugins are."""

    def __init__(self):
        self.lines = []

    def on_frame(self, frame, ctx):
        self.lines.append(frame.value())

    def on_stop(self, ctx):
        return [line["word"] for line in self.lines]
