"""Counts, squares each number, adds the squares up."""


def numbers(ctx):
    """Source: what a generator yields is sent."""
    for n in range(ctx.params["count"]):
        yield {"n": n}


def square(frame, ctx):
    """Map: what it returns is sent on."""
    return {"square": frame.value()["n"] ** 2}


class Total:
    """Sink: keeps state; what on_stop returns is the node's result."""

    total = 0

    def on_frame(self, frame, ctx):
        self.total += frame.value()["square"]

    def on_stop(self, ctx):
        return self.total
