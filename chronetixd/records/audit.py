"""The audit log: which user called which verb, when, from which process, and how the call ended.

Rules: one JSON object a line in ``audit.log`` of the state folder, to which lines are only appended. A call's record is
written before the call begins, and synced to the disk within SYNC_EVERY_S: a crash of the daemon loses no record, a
crash of the machine those of that second. Files are rotated, and the oldest is removed. A record that cannot be
written, because the disk is full, is counted and reported, and the call goes on: flows are worth more than their
record. Refusals of one user are recorded at a bounded pace, so that a user without rights cannot push out the records
of others; refusals that are left out are counted.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from chronetix.protocol.errors import error
from chronetixd.core.access import Peer
from chronetixd.core.quota import Bucket
from chronetixd.loop.aside import Aside
from chronetixd.packing import Packed
from chronetixd.records.events import Events
from chronetixd.records.feed import Feed, PackedFeed

FILE = "audit.log"
FILES = 4
"""How many files are kept: the one that is written and those before it."""

SYNC_EVERY_S = 1.0
RECENT = 4096
"""How many records are kept in memory for clients."""

MAX_TEXT = 200
"""How many characters of each text that a client sent are recorded."""

REFUSALS_PER_S, REFUSAL_BURST = 1.0, 20.0
MAX_REFUSED_USERS = 256
"""How many users have a pace of refusals of their own; further users share one."""

ABOUT = ("flow", "name", "topic", "mode", "base_dir")
"""The arguments of verbs that are recorded, because they name what a call is about."""


class PackedAudit(Packed, frozen=True):
    """The audit log in a snapshot, without its file. ``owed``: how many records could not be written since the last
    written one."""

    feed: PackedFeed
    calls: int
    lost: int
    owed: int
    failing: bool


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the log. ``outcome`` is ``begun``, ``ok`` or an error's name; a call's two lines have the same
    number ``call``."""

    unix_ns: int
    uid: int
    gid: int
    pid: int
    program: str = ""
    verb: str
    """The verb that was called; ``connect`` for a connection that was refused."""
    outcome: str
    call: int = 0
    about: dict[str, str] = {}
    took_ns: int = 0
    lost: int = 0
    """How many records right before this one could not be written."""
    suppressed: int = 0
    """How many refusals of this user right before this one were left out."""


class Audit:
    """The audit log in the state folder ``folder``; its files take at most ``limit`` bytes together."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, folder: Path, limit: int, events: Events, reads: bool = False
    ) -> None:
        self._loop = loop
        self._path = folder / FILE
        self._events = events
        self.limit = limit
        self.reads = reads
        """Whether calls that only read are recorded, too."""
        self.feed: Feed[Record] = Feed(RECENT)
        self.lost = 0
        """How many records could not be written since the daemon began."""
        self._owed = 0
        self._fd = -1
        self._size = 0
        self._call = 0
        self._failing = False
        self._refusals: dict[int, tuple[Bucket, int]] = {}
        self._encode = msgspec.json.Encoder().encode
        self._aside = Aside(loop, "chronetix-audit")
        self._syncing = False
        self._sync_timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Read the last records into memory, and open the file. Raises ChronetixError ``config-invalid``."""
        try:
            for record in tail(self._path, RECENT):
                self.feed.append(record)
            self._open()
        except OSError as reason:
            raise error("config-invalid", source=str(self._path), path="state_dir", reason=str(reason)) from None

    def packed(self) -> PackedAudit:
        """Return the log for a snapshot, without its file."""
        return PackedAudit(
            feed=self.feed.packed(), calls=self._call, lost=self.lost, owed=self._owed, failing=self._failing
        )

    def unpack(self, packed: PackedAudit) -> None:
        """Take over the log of a snapshot. Raises ValueError."""
        self.feed.unpack(packed.feed, Record)
        self._call, self.lost, self._owed, self._failing = packed.calls, packed.lost, packed.owed, packed.failing

    def resume(self) -> None:
        """Open the file after :meth:`unpack`, instead of :meth:`open`."""
        try:
            self._open()
        except OSError as reason:
            self._not_written(reason)
            return
        self._sync_soon()

    def close(self) -> None:
        """Sync and close the file; give up after a while if the disk does not answer. Idempotent."""
        if self._sync_timer is not None:
            self._sync_timer.cancel()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._aside.do(partial(_sync_and_close, fd))
        self._aside.close()

    # -- calls ---------------------------------------------------------------------------------------------

    def begun(self, peer: Peer, verb: str, args: Mapping[str, Any]) -> int:
        """Record that an admitted call begins, and return its number for :meth:`ended`."""
        self._call += 1
        self._add(peer, verb, "begun", call=self._call, about=_about(args))
        return self._call

    def ended(self, peer: Peer, verb: str, call: int, outcome: str, took_ns: int) -> None:
        """Record the end of the call number ``call``; ``outcome`` is ``ok`` or an error's name."""
        self._add(peer, verb, outcome, call=call, took_ns=took_ns)

    def refused(self, peer: Peer, verb: str, outcome: str, args: Mapping[str, Any] | None = None) -> None:
        """Record that a call or connection was refused with the error ``outcome``, unless this user's refusals come too
        fast."""
        now_ns = time.monotonic_ns()
        key = peer.uid if peer.uid in self._refusals or len(self._refusals) < MAX_REFUSED_USERS else -1
        bucket, suppressed = self._refusals.get(key) or (Bucket(REFUSALS_PER_S, REFUSAL_BURST, now_ns), 0)
        if bucket.take(now_ns):
            self._refusals[key] = bucket, 0
            self._add(peer, verb, outcome, about=_about(args or {}), suppressed=suppressed)
        else:
            self._refusals[key] = bucket, suppressed + 1

    def _add(self, peer: Peer, verb: str, outcome: str, **more: Any) -> None:
        who: dict[str, Any] = {"uid": peer.uid, "gid": peer.gid, "pid": peer.pid, "program": peer.program}
        verb = verb[:MAX_TEXT]
        record = Record(unix_ns=time.time_ns(), **who, verb=verb, outcome=outcome, lost=self._owed, **more)
        self.feed.append(record)
        self._write(self._encode(record) + b"\n")

    # -- the file ------------------------------------------------------------------------------------------

    def _write(self, line: bytes) -> None:
        if self._fd < 0 and not self._failing:
            return  # not opened yet, or closed: the daemon starts or ends
        try:
            if self._fd < 0:
                self._open()
            if self._size + len(line) > self.limit // FILES:
                self._rotate()
            written = os.write(self._fd, line)
            if written < len(line):
                os.ftruncate(self._fd, self._size)
                raise OSError(28, "No space left on device")
        except OSError as reason:
            self._not_written(reason)
            return
        self._size += len(line)
        self._owed = 0
        if self._failing:
            self._failing = False
            self._events.emit("audit-resumed", message="records can be written again", lost=self.lost)
        self._sync_soon()

    def _not_written(self, reason: OSError) -> None:
        self.lost += 1
        self._owed += 1
        if not self._failing:
            self._failing = True
            text = f"{self._path} cannot be written: {reason.strerror}; calls go on unrecorded and are counted"
            structlog.get_logger("chronetixd.records.audit").error(text)
            self._events.emit("audit-lost", message=text)

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._size += os.write(self._fd, b"\n")  # a crash cut the last line: the next must not be joined to it

    def _rotate(self) -> None:
        fd, self._fd = self._fd, -1
        self._aside.do(partial(_sync_and_close, fd))
        for number in range(FILES - 1, 0, -1):
            older = self._path.with_name(f"{FILE}.{number}")
            newer = self._path.with_name(f"{FILE}.{number - 1}") if number > 1 else self._path
            if newer.exists():
                newer.rename(older)
        self._open()

    def _sync_soon(self) -> None:
        if self._sync_timer is None:
            self._sync_timer = self._loop.call_later(SYNC_EVERY_S, self._sync_now)

    def _sync_now(self) -> None:
        self._sync_timer = None
        if self._fd < 0:
            return
        if self._syncing:
            self._sync_soon()  # never two syncs of a slow disk at once
            return
        try:
            fd = os.dup(self._fd)
        except OSError:
            self._sync_soon()  # descriptors have run out: try again later
            return
        self._syncing = True
        self._aside.do(partial(self._synced_by, fd))

    def _synced_by(self, fd: int) -> None:
        """Sync and close ``fd``; runs in the thread."""
        _sync_and_close(fd)
        self._aside.post(self._synced)

    def _synced(self) -> None:
        self._syncing = False


def _sync_and_close(fd: int) -> None:
    try:
        os.fdatasync(fd)
    except OSError as reason:
        structlog.get_logger("chronetixd.records.audit").error("the audit log could not be synced", reason=str(reason))
    finally:
        os.close(fd)


def _about(args: Mapping[str, Any]) -> dict[str, str]:
    found = {name: value[:MAX_TEXT] for name in ABOUT if isinstance(value := args.get(name), str)}
    nodes = args.get("nodes")
    if isinstance(nodes, list) and nodes:
        found["nodes"] = ", ".join(map(str, nodes[:MAX_TEXT]))[:MAX_TEXT]
    flow = args.get("flow")
    if isinstance(flow, Mapping) and "name" not in found and isinstance(flow.get("name"), str):
        found["name"] = flow["name"][:MAX_TEXT]
    return found


# -- reading -----------------------------------------------------------------------------------------------


def files(path: Path) -> list[Path]:
    """Return the existing files of the log at ``path``, oldest first."""
    names = [*(path.with_name(f"{path.name}.{number}") for number in range(FILES - 1, 0, -1)), path]
    return [name for name in names if name.exists()]


def read(lines: Iterable[bytes]) -> Iterator[Record]:
    """Yield the records of ``lines``. A line that a crash has cut is skipped: the call has another line."""
    decode = msgspec.json.Decoder(Record).decode
    for line in lines:
        try:
            yield decode(line)
        except msgspec.DecodeError:
            continue


def tail(path: Path, count: int) -> list[Record]:
    """Return the last ``count`` records of the log at ``path``, oldest first. Raises OSError."""
    found: list[Record] = []
    for name in reversed(files(path)):
        with name.open("rb") as file:
            found = [*read(file), *found]
        if len(found) >= count:
            break
    return found[-count:] if count else []
