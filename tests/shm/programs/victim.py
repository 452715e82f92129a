"""A process that reads a memory without seals, which somebody else then cuts short.

Arguments: descriptors of RING, segment and an end of a line. It takes one frame, says so, waits for the cut, and prints
what became of the frame and of its route. With the argument "elsewhere" it touches a cut file of its own instead: that
has to end it as ever.
"""

from __future__ import annotations

import mmap
import os
import sys

from chronetix import shm


def elsewhere() -> None:
    shm.Consumer("r")  # takes the signal
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.truncate(fd, 4096)
    own = mmap.mmap(fd, 4096)
    os.truncate(fd, 0)
    own[0]


def main(ring: int, segment: int, line: int) -> None:
    consumer, own_bell = shm.Consumer("cut", credits=4), shm.Doorbell()
    consumer.add_segment(0, segment)
    consumer.link(ring, line, own_bell)
    inlet = shm.Inlet([consumer], own_bell)
    frame = inlet.take(0)
    assert frame is not None
    print("taken", flush=True)
    sys.stdin.readline()
    print(f"content {bytes(frame)[:4]!r}")
    try:
        inlet.take(0)
    except shm.PeerFault as fault:
        print(fault.args[0])


if __name__ == "__main__":
    elsewhere() if sys.argv[1] == "elsewhere" else main(*map(int, sys.argv[1:4]))
