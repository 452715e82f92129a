"""Memories of the data plane, made byte by byte from shm/SPEC.md: rings and credits as no honest end would write them.

Nothing here uses the extension, so that it is a second writer of the layout, which the first one has to agree with. The
conformance kit plays lying peers with it, and the tests of ``shm`` use the same.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

import posix_ipc

from chronetix import shm

MISSING: Final = shm.missing_features()
SEALED: Final = "seals" not in MISSING
SEALS: Final = 0x0002 | 0x0004 | 0x0010 | 0x0001
"""Shrink, grow, future write, seal."""

HEADER: Final = struct.Struct("<8sIIQQIIIII8x")
"""The header of RING and CREDIT up to its checksum (SPEC §2)."""

POLICIES: Final = ("block", "drop_newest", "latest")
"""The policies by their number in the header."""

CLOSED, WAKE_AT, WAIT_FOR, RETURNED, DROPPED, OLDEST = 64, 128, 128, 192, 240, 320
"""Offsets of words of RING and CREDIT (SPEC §3, §4)."""


@dataclass(frozen=True, slots=True)
class MemoryHeader:
    """The fields of a header."""

    magic: bytes
    abi: int
    kind: int
    epoch: int
    base_seq: int
    slots_log2: int
    credits: int
    watermark: int
    credit_low: int
    policy: int


def header_of(fd: int) -> MemoryHeader:
    """Return the header of a RING or CREDIT. Raises OSError."""
    return MemoryHeader(*HEADER.unpack(os.pread(fd, HEADER.size, 0)))


def word(fd: int, offset: int) -> int:
    """Return the 64-bit word at ``offset`` of a memory. Raises OSError."""
    return int(struct.unpack("<Q", os.pread(fd, 8, offset))[0])


def last_stamp(ring: int) -> int:
    """Return the highest stamp of a RING: the position behind its last frame. Raises OSError."""
    slots = 1 << header_of(ring).slots_log2
    return max(int(struct.unpack_from("<Q", found)[0]) for found in _descriptors(ring, slots))


def _descriptors(ring: int, slots: int) -> list[bytes]:
    data = os.pread(ring, 64 * slots, 512)
    return [data[at : at + 64] for at in range(0, len(data), 64)]


def slots_log2(credits: int) -> int:
    """Return the logarithm of the slots that a route of so many credits has."""
    log2 = 3
    while (1 << log2) < 2 * credits:
        log2 += 1
    return log2


def whole_pages(size: int) -> int:
    """Return ``size`` rounded up to pages."""
    return (size + 4095) & ~4095


def header_bytes(memory: str, **changes: int | bytes) -> bytes:
    """Return a header as SPEC.md draws it; ``changes`` overwrite fields, ``crc`` the checksum."""
    credits = int(changes.get("credits", 4))
    ring = memory == "ring"
    fields: dict[str, int | bytes] = {
        "magic": b"CHXRING\0" if ring else b"CHXCRED\0",
        "abi": 1,
        "kind": 1 if ring else 2,
        "epoch": 0,
        "base_seq": 0,
        "slots_log2": slots_log2(credits),
        "credits": credits,
        "watermark": max(1, credits * 3 // 4) if ring else 0,
        "credit_low": credits // 2 if ring else 0,
        "policy": 0,
    }
    fields.update({name: value for name, value in changes.items() if name != "crc"})
    body = HEADER.pack(*fields.values())
    assert len(body) == 60
    crc = changes.get("crc", zlib.crc32(body))
    return body + struct.pack("<I", crc)


@dataclass(slots=True)
class ForgedMemory:
    """A sealed memfd that its maker can write to as its owner would."""

    fd: int
    map: mmap.mmap
    slots: int = 0

    def put(self, offset: int, value: int) -> None:
        """Store a word."""
        self.map[offset : offset + 8] = struct.pack("<Q", value)

    def get(self, offset: int) -> int:
        """Load a word."""
        return int(struct.unpack_from("<Q", self.map, offset)[0])

    def describe(self, position: int, *, stamp: int | None = None, **fields: int) -> None:
        """Write the descriptor of ``position``; its stamp last."""
        values = {"offset": 0, "length": 0, "segment": 0, "flags": 0, "schema": 0, "time_ns": 1}
        values.update(fields)
        at = 512 + 64 * (position % self.slots)
        self.map[at + 8 : at + 40] = struct.pack("<QQHHIQ", *values.values())
        self.put(at, position + 1 if stamp is None else stamp)

    def skip(self, position: int, stamp: int | None = None) -> None:
        """Mark a position of a RING that holds no frame."""
        at = 512 + 64 * self.slots + 8 * (position % self.slots)
        self.put(at, position + 1 if stamp is None else stamp)

    def give_back(self, position: int, stamp: int | None = None) -> None:
        """Write the stamp of a returned frame into a CREDIT."""
        self.put(5376 + 8 * (position % self.slots), position + 1 if stamp is None else stamp)


@dataclass(slots=True)
class Forge:
    """Makes such memories, and closes all of them."""

    made: list[ForgedMemory] = field(default_factory=list)

    def header(self, memory: str, **changes: int | bytes) -> bytes:
        """As :func:`header_bytes`."""
        return header_bytes(memory, **changes)

    def memory(self, size: int, *, seals: int = SEALS, reserve: bool = True) -> ForgedMemory:
        """Make a memory of ``size`` zeros."""
        fd = self.descriptor()
        if reserve:
            os.posix_fallocate(fd, 0, size)
        else:
            os.truncate(fd, size)
        memory = ForgedMemory(fd, mmap.mmap(fd, size))
        self.made.append(memory)
        if seals and SEALED:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return memory

    def descriptor(self) -> int:
        """Return a memfd; where the kernel has no sealed memory, a POSIX object that has lost its name."""
        if SEALED:
            return os.memfd_create("forged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        memory = posix_ipc.SharedMemory(None, posix_ipc.O_CREX, mode=0o600)
        memory.unlink()
        return int(memory.fd)

    def ring(self, credits: int = 4, *, extra: int = 0, seals: int = SEALS, **changes: int | bytes) -> ForgedMemory:
        """Make a RING; ``changes`` are those of its header, ``extra`` bytes more than it should have."""
        slots = 1 << slots_log2(credits)
        memory = self.memory(whole_pages(512 + 72 * slots) + extra, seals=seals)
        memory.slots = slots
        memory.map[:64] = header_bytes("ring", credits=credits, **changes)
        return memory

    def credit(self, credits: int = 4, *, extra: int = 0, seals: int = SEALS, **changes: int | bytes) -> ForgedMemory:
        """Make a CREDIT, in the same way."""
        slots = 1 << slots_log2(credits)
        memory = self.memory(whole_pages(5376 + 8 * slots) + extra, seals=seals)
        memory.slots = slots
        memory.map[:64] = header_bytes("credit", credits=credits, **changes)
        return memory

    def close(self) -> None:
        """Give everything back. Idempotent."""
        while self.made:
            memory = self.made.pop()
            memory.map.close()
            os.close(memory.fd)
