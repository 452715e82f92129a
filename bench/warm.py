"""``python -m bench.warm N``: one process that has imported what a worker has imported, and forks N children, timed.

Prints the seconds from before the first fork until every child has written its byte, then the children's pids; they
stay until stdin ends. It is the least that N started workers can cost: no daemon, no messages, no plugin.
Without N it forks nothing: a cold interpreter that imports the same for itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import time

from chronetix.nodeworker.process.launcher import PRELOADED


def load() -> None:
    """Import what the launcher has imported when it forks, and freeze it as the launcher does."""
    for name in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.collect()
    gc.disable()
    gc.freeze()


def fork_all(count: int) -> tuple[float, list[int], int]:
    """Fork ``count`` children. Returns the seconds until all run, their pids, and the descriptor whose closing ends
    them."""
    up_read, up_write = os.pipe()
    stay_read, stay_write = os.pipe()
    began = time.monotonic()
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(stay_write)
            os.write(up_write, b".")
            os.read(stay_read, 1)
            os._exit(0)
        pids.append(pid)
    arrived = 0
    while arrived < count:
        arrived += len(os.read(up_read, count))
    seconds = time.monotonic() - began
    for descriptor in (up_read, up_write, stay_read):
        os.close(descriptor)
    return seconds, pids, stay_write


def main() -> None:
    """Load. With a number of children: fork them, print, wait and reap; without: write one byte and wait."""
    load()
    if len(sys.argv) == 1:
        os.write(1, b".")
        sys.stdin.read()
        return
    seconds, pids, stay = fork_all(int(sys.argv[1]))
    print(json.dumps({"seconds": seconds, "pids": pids}), flush=True)
    sys.stdin.read()
    os.close(stay)
    for pid in pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
