"""A burst of large frames; both ends then wait until its memory has gone from their own address space."""

import threading

from chronetix.nodeworker.memory import arena_trim

SMALL = 1 << 20
arena_trim.SPAN_S = 0.01  # for this process: a quiet time that a test can wait for


def arenas():
    """Bytes of arena segments that this process maps."""
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps if "chronetix-arena" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


def wait_until_small(seconds=60):
    """Poll, as a plugin may, for as long as a test would wait for it."""
    pause = threading.Event()
    for _ in range(seconds * 100):
        if arenas() < SMALL:
            break
        pause.wait(0.01)


class Bursts:
    """Source: three times some large frames."""

    def on_start(self, ctx):
        self.sizes = []

    def produce(self, ctx):
        for _ in range(3):
            for _ in range(6):
                yield bytes(4 << 20)
            self.sizes.append(arenas())
            wait_until_small()
            self.sizes.append(arenas())

    def on_stop(self, ctx):
        return [self.sizes[::2], [size < SMALL for size in self.sizes[1::2]]]


class Sink:
    """Reads, and lets go."""

    frames = 0

    def on_frame(self, frame, ctx):
        self.frames += len(frame) == 4 << 20

    def on_stop(self, ctx):
        wait_until_small()
        return [self.frames, arenas() < SMALL]
