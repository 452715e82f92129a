"""A process that is short of something. Argument: of what. Prints, for each memory, what making it raises; exits with 1
if that has left anything behind.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from chronetix import shm

CLONE_NEWNS, MS_PRIVATE, MS_REC = 0x00020000, 1 << 18, 1 << 14


def limit(what: int, value: int) -> None:
    resource.setrlimit(what, (value, resource.getrlimit(what)[1]))


def descriptors() -> None:
    limit(resource.RLIMIT_NOFILE, max(map(int, os.listdir("/proc/self/fd"))))


def file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit(resource.RLIMIT_FSIZE, 4096)


def address_space() -> None:
    limit(resource.RLIMIT_AS, int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + (1 << 20))


def shared_memory() -> None:
    """/dev/shm of 64 KiB, of this process's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    for result in (
        libc.unshare(CLONE_NEWNS),
        libc.mount(b"none", b"/", None, MS_PRIVATE | MS_REC, None),
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k"),
    ):
        if result != 0:
            print("not allowed")
            sys.exit(2)


def left() -> tuple[int, int, int]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = sum("/memfd:chronetix" in line or "/dev/shm/" in line for line in lines)
    return len(os.listdir("/proc/self/fd")), mapped, sum(f"-{os.getpid()}-" in name for name in os.listdir("/dev/shm"))


def attempt(make: Callable[[], object]) -> str:
    try:
        make()
    except (OSError, MemoryError) as failure:
        return f"{type(failure).__name__}: {failure}"
    return "made"


def main(what: str) -> int:
    arena = shm.Arena(1 << 30, first=1 << 15)
    bell, producer, consumer = shm.Doorbell(), shm.Producer(arena, "r", credits=4), shm.Consumer("r", credits=4)
    producer.link(consumer.fd, shm.line()[0], bell)
    outlet = shm.Outlet([producer], bell)
    {f.__name__: f for f in (descriptors, file_size, address_space, shared_memory)}[what]()
    size, before = 64 << 20, None if what == "descriptors" else left()
    makers = {
        "arena": lambda: shm.Arena(size, first=size),
        "producer": lambda: shm.Producer(arena, "big", credits=65536),
        "consumer": lambda: shm.Consumer("big", credits=65536),
        "growth": lambda: outlet.loan(8 << 20, 0),
    }
    for name, make in makers.items():
        print(f"{name}: {attempt(make)}")
    return 0 if before is None or left() == before else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
