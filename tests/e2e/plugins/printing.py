"""Plugins that print: each number, or more than anybody reads."""

from __future__ import annotations

import subprocess
import time


def numbers(ctx):
    """Source: prints each number before it sends it."""
    n = 0
    while not ctx.stopping:
        n += 1
        print(f"number {n}", flush=True)
        yield n.to_bytes(8, "little")
        time.sleep(0.005)


def floods(ctx):
    """Source: as much as it can, and a child does so too."""
    with subprocess.Popen(["sh", "-c", "while :; do echo a line of the child; done"]) as child:
        n = 0
        while not ctx.stopping:
            n += 1
            for _ in range(100):
                print("x" * 300)
            assert child.poll() is None, f"the child has ended: {child.returncode}"
            yield n.to_bytes(8, "little")
        child.kill()


class Written:
    """Sink: the last number, in a file."""

    def __init__(self, ctx):
        self.file = ctx.params["ledger"]

    def on_frame(self, frame, ctx):
        with open(self.file, "a") as file:
            file.write(f"{int.from_bytes(bytes(frame), 'little')}\n")
