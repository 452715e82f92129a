"""A camera, an edge filter, a monitor: pictures travel as numpy arrays, in place, with the time they were taken."""

import time

import numpy as np


def camera(ctx):
    """Source: an array a picture; its number and the time at which it was taken go along."""
    rows, columns = np.mgrid[0 : ctx.params["height"], 0 : ctx.params["width"]]
    for n in range(ctx.params["count"]):
        picture = ((columns - 8 * n) ** 2 + (rows - 40) ** 2 < 900).astype("u1") * 255
        ctx.send(picture, meta={"n": n}, stamp_ns=time.time_ns())
        yield None


def edges(frame, ctx):
    """Map: reads the picture where it lies, sends a new one, and passes on what came with it."""
    picture = frame.numpy().astype("i2")
    across = np.abs(np.diff(picture, axis=1))[1:]
    down = np.abs(np.diff(picture, axis=0))[:, 1:]
    ctx.send(np.maximum(across, down).astype("u1"), meta=frame.meta, stamp_ns=frame.stamp_ns)


class Monitor:
    """Sink: how many points of an edge each picture had."""

    def __init__(self):
        self.points = {}

    def on_frame(self, frame, ctx):
        self.points[frame.meta["n"]] = int(np.count_nonzero(frame.numpy()))

    def on_stop(self, ctx):
        return {"pictures": len(self.points), "most": max(self.points.values())}
