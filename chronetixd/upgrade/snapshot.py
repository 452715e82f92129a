"""The snapshot: all state of a daemon, in a sealed memfd, for its next image.

Layout: MAGIC, u32 format, u32 CRC-32 of the body, u64 length of the body (little-endian), then the body, a
:class:`Snapshot` as MessagePack. It is not CBOR as on the wire, because only Chronetix reads it, it is decoded into
typed structs in one step, and clients and workers wait meanwhile. Rules:

* A format that is not in FORMATS is refused, and so is an unknown field, because its content may matter.
* Nothing in a snapshot is trusted: a descriptor that was not handed over, or that is not what it should be, is an
  error.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from typing import Any

import msgspec

from chronetix.protocol.errors import error
from chronetixd.bus.event_bus import PackedBus
from chronetixd.control.server import PackedServer
from chronetixd.core.death import ExitRecord
from chronetixd.flows.registry import PackedFlows
from chronetixd.linux.cgroups import PackedGroups
from chronetixd.packing import Packed
from chronetixd.records.audit import PackedAudit
from chronetixd.records.feed import PackedFeed
from chronetixd.records.logs import PackedLogs
from chronetixd.settings import Settings
from chronetixd.workers.orphans import PackedOrphans

FORMAT = 2
FORMATS = (2,)
"""The formats that this release reads."""

MAGIC = b"CTXHAND\n"
_HEAD = struct.Struct("<8sIIQ")
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK

MAX_BODY = 1 << 30
"""The greatest length of the body in bytes. The largest part, what workers have printed lately, is bounded far
below."""


class Upgraded(Packed, frozen=True):
    """An upgrade as its result is reported. ``failed``: why the version ``after`` has not taken over; empty if it
    has."""

    id: str
    before: str
    after: str = ""
    pause_ns: int = 0
    flows: int = 0
    workers: int = 0
    failed: str = ""


class Snapshot(Packed, frozen=True):
    """The state of one daemon. ``flags`` and ``config`` are those that it was started with. ``since_ns`` is when it
    stopped serving (CLOCK_MONOTONIC). ``owed`` are the statements that the journal lacks."""

    upgrade: Upgraded
    since_ns: int
    descriptors: list[int]
    config: str | None
    flags: dict[str, Any]
    settings: Settings
    started_unix_ns: int
    lock: int
    server: PackedServer
    groups: PackedGroups
    strays: PackedOrphans
    flows: PackedFlows
    bus: PackedBus
    events: PackedFeed
    logs: PackedLogs
    audit: PackedAudit
    deaths: list[ExitRecord]
    owed: list[tuple[str, list[Any]]]
    unsent: list[tuple[str, int]]
    """What is still to be sent to the service manager, each with a descriptor or -1."""


def write(snapshot: Snapshot) -> int:
    """Return a sealed memfd that holds ``snapshot``; the caller closes it. Raises OSError."""
    body = msgspec.msgpack.encode(snapshot)
    fd = os.memfd_create("chronetix-upgrade", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in (_HEAD.pack(MAGIC, FORMAT, zlib.crc32(body), len(body)), body):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(fd: int) -> Snapshot:
    """Return the snapshot in the memfd ``fd``, which the caller keeps. Raises ChronetixError
    ``snapshot-unreadable``."""
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        head = os.pread(fd, _HEAD.size, 0)
    except OSError as reason:
        raise _unreadable(f"descriptor {fd} is not a memfd ({reason.strerror})") from None
    if not sealed:
        raise _unreadable("it is not sealed")
    if len(head) < _HEAD.size or not head.startswith(MAGIC):
        raise _unreadable("it is not a snapshot of a daemon")
    _, version, crc, length = _HEAD.unpack(head)
    if version not in FORMATS:
        raise _unreadable(f"it has format {version}, this release reads {', '.join(map(str, FORMATS))}")
    if length > MAX_BODY or length != os.fstat(fd).st_size - _HEAD.size:
        raise _unreadable("its length is not what its head says")
    body = os.pread(fd, length, _HEAD.size)
    if zlib.crc32(body) != crc:
        raise _unreadable("its checksum is wrong")
    try:
        return msgspec.msgpack.decode(body, type=Snapshot)
    except (msgspec.DecodeError, ValueError) as reason:
        raise _unreadable(str(reason)) from None


def _unreadable(reason: str) -> Exception:
    return error("snapshot-unreadable", reason=reason)
