"""The nodes of tests/sdk/go in Python: numbered patterns as sdk/go/internal/testnode makes them."""

import threading
from itertools import count

BLOCK = bytes(range(256)) * 2


def pattern(n: int, size: int) -> bytes:
    """Frame ``n``."""
    start = n % 256
    whole = BLOCK[start : start + 256]
    return (whole * (size // 256 + 1))[:size]


def source(ctx):
    """``count`` frames (0: without an end) whose sizes go round."""
    sizes = ctx.params.get("sizes") or [ctx.params.get("size", 64)]
    for n in range(ctx.resume_after, ctx.params["count"]) if ctx.params.get("count") else count(ctx.resume_after):
        yield pattern(n, sizes[n % len(sizes)])


def forward(frame, ctx):
    """The same bytes."""
    return bytes(frame)


class Sink:
    """Counts what is lost, repeated, out of order or changed, for each route."""

    def on_start(self, ctx):
        self.seen: dict[str, int] = {}
        self.faults: list[str] = []
        self.again = 0
        self.pause = ctx.params.get("pause", 0)
        self.wait = threading.Event().wait
        if isinstance(ctx.handover, dict):
            self.seen = {ctx.inputs[0].route: ctx.handover["seen"]}

    def on_frame(self, frame, ctx):
        n = self.seen.get(frame.route, 0)
        if frame.redelivered and frame.seq < n:
            self.again += 1
            return
        if len(self.faults) < 10 and bytes(frame) != pattern(n, len(frame)):
            self.faults.append(f"{frame.route}: frame {n} of {len(frame)} bytes")
        self.seen[frame.route] = n + 1
        if self.pause:
            self.wait(self.pause)

    def on_stop(self, ctx):
        return {"seen": sum(self.seen.values()), "faults": self.faults, "again": self.again}
