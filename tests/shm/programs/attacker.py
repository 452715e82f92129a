"""A peer in a process of its own that tries whatever could change or shorten a memory it was sent.

Arguments: the memory's descriptor, the process that owns it and the descriptor's number there. Prints one JSON object:
each attempt and how it ended (an errno's name, or "done").
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import sys
from collections.abc import Callable

PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE = 0x02, 0x01, 0x10
MADV_REMOVE, MADV_DONTNEED_LOCKED = 9, 24
PAGE = 4096

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def must(result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    must(libc.fallocate(fd, mode, offset, length))


def on_a_reading_map(fd: int, act: Callable[[int], int]) -> None:
    at = libc.mmap(None, PAGE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    try:
        must(act(at))
    finally:
        libc.munmap(at, PAGE)


def copy_into(fd: int) -> None:
    source = os.memfd_create("source")
    os.pwrite(source, b"x" * 64, 0)
    os.sendfile(fd, source, 0, 64)


def attempts(fd: int) -> dict[str, Callable[[], object]]:
    size = os.fstat(fd).st_size
    return {
        "truncate to nothing": lambda: os.truncate(fd, 0),
        "truncate within a page": lambda: os.truncate(fd, 100),
        "truncate by a page": lambda: os.truncate(fd, size - PAGE),
        "grow": lambda: os.truncate(fd, size + PAGE),
        "grow by allocating": lambda: allocate(fd, 0, 0, size + PAGE),
        "punch a hole": lambda: allocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, PAGE),
        "zero a range": lambda: allocate(fd, ZERO_RANGE, 0, PAGE),
        "write": lambda: os.write(fd, b"x"),
        "write at a place": lambda: os.pwrite(fd, b"x", 64),
        "write behind the end": lambda: os.pwrite(fd, b"x", size),
        "copy another file into it": lambda: copy_into(fd),
        "map it writable": lambda: mmap.mmap(fd, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE),
        "make a reading map writable": lambda: on_a_reading_map(
            fd, lambda at: libc.mprotect(at, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
        ),
        "remove pages below a map": lambda: on_a_reading_map(fd, lambda at: libc.madvise(at, PAGE, MADV_REMOVE)),
        "add a seal": lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    }


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as refused:
        return errno.errorcode[refused.errno or 0]
    return "done"


def main(fd: int, owner: int, theirs: int) -> None:
    ways = {"as sent": lambda: os.dup(fd)}
    for place in (f"/proc/self/fd/{fd}", f"/proc/{owner}/fd/{theirs}"):
        ways[f"opened again at {place}"] = lambda place=place: os.open(place, os.O_RDWR)
    outcomes = {}
    for way, descriptor in ways.items():
        ours = descriptor()
        for name, attempt in attempts(ours).items():
            outcomes[f"{name}, {way}"] = outcome(attempt)
    outcomes["truncate while opening"] = outcome(lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC))
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
