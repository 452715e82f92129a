"""The audit log: who asked the daemon for what, when, from which process, and how it ended.

Rules: one JSON object a line in ``audit.log`` of the state folder, only ever appended to; a record is written before
the call that it tells of begins, and synced to the disk within SYNC_EVERY_S (a crash of the daemon loses none, one of
the machine that second). Files are rotated, the oldest goes. What cannot be written, because the disk is full, is
counted and reported, and stops nothing: flows are worth more than their book-keeping. Refusals of one user are
recorded at a bounded pace, so that who may nothing cannot push out what the others did; those left out are counted.
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
"""Files kept: the one that is written and those before it."""

SYNC_EVERY_S = 1.0
RECENT = 4096
"""Records that are kept at hand to be read by clients."""

MAX_TEXT = 200
"""Characters kept of what a client sent."""

REFUSALS_PER_S, REFUSAL_BURST = 1.0, 20.0
MAX_REFUSED_USERS = 256
"""Users whose refusals are paced each for itself; those beyond share one pace."""

ABOUT = ("flow", "name", "topic", "mode", "base_dir")
"""Arguments of verbs that say what a call is about."""


class PackedAudit(Packed, frozen=True):
    """The audit log beside its file. ``owed`` are records that could not be written."""

    feed: PackedFeed
    calls: int
    lost: int
    owed: int
    failing: bool


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. ``outcome`` is ``begun``, ``ok`` or an error's name; the two lines of a call share its number."""

    unix_ns: int
    uid: int
    gid: int
    pid: int
    program: str = ""
    verb: str
    """What was asked for; ``connect`` for a connection that was refused."""
    outcome: str
    call: int = 0
    about: dict[str, str] = {}
    took_ns: int = 0
    lost: int = 0
    """Records before this one that could not be written."""
    suppressed: int = 0
    """Refusals of this user before this one that were left out."""


class Audit:
    """Writes the log of the state folder ``folder``, at most ``limit`` bytes of it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, folder: Path, limit: int, events: Events, reads: bool = False
    ) -> None:
        self._loop = loop
        self._path = folder / FILE
        self._events = events
        self.limit = limit
        self.reads = reads
        """Whether calls that only look are recorded, too."""
        self.feed: Feed[Record] = Feed(RECENT)
        self.lost = 0
        """Records that could not be written, of this daemon's whole life."""
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
        """Begin to write, and have the last records of before at hand. Raises ChronetixError ``config-invalid``."""
        try:
            for record in tail(self._path, RECENT):
                self.feed.append(record)
            self._open()
        except OSError as reason:
            raise error("config-invalid", source=str(self._path), path="state_dir", reason=str(reason)) from None

    def packed(self) -> PackedAudit:
        """All of it but the file."""
        return PackedAudit(
            feed=self.feed.packed(), calls=self._call, lost=self.lost, owed=self._owed, failing=self._failing
        )

    def unpack(self, packed: PackedAudit) -> None:
        """The inverse. Raises ValueError."""
        self.feed.unpack(packed.feed, Record)
        self._call, self.lost, self._owed, self._failing = packed.calls, packed.lost, packed.owed, packed.failing

    def go_on(self) -> None:
        """Write on after :meth:`unpack`, instead of :meth:`open`."""
        try:
            self._open()
        except OSError as reason:
            self._not_written(reason)
            return
        self._sync_soon()

    def close(self) -> None:
        """Sync what is written and end; gives a disk that does not answer up after a while. Idempotent."""
        if self._sync_timer is not None:
            self._sync_timer.cancel()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._aside.do(partial(_sync_and_close, fd))
        self._aside.close()

    # -- what happens --------------------------------------------------------------------------------------

    def begun(self, peer: Peer, verb: str, args: Mapping[str, Any]) -> int:
        """A call that was let through begins; its number, for :meth:`ended`."""
        self._call += 1
        self._add(peer, verb, "begun", call=self._call, about=_about(args))
        return self._call

    def ended(self, peer: Peer, verb: str, call: int, outcome: str, took_ns: int) -> None:
        """It has, with ``ok`` or an error's name."""
        self._add(peer, verb, outcome, call=call, took_ns=took_ns)

    def refused(self, peer: Peer, verb: str, outcome: str, args: Mapping[str, Any] | None = None) -> None:
        """Something was not let through, because of ``outcome``."""
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
            return  # not opened, or closed: the daemon is not up yet, or is going
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
            self._size += os.write(self._fd, b"\n")  # a line that a crash tore: what follows must not join it

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
            self._sync_soon()  # a slow disk is not asked twice at once
            return
        try:
            fd = os.dup(self._fd)
        except OSError:
            self._sync_soon()  # when there are descriptors again
            return
        self._syncing = True
        self._aside.do(partial(self._synced_by, fd))

    def _synced_by(self, fd: int) -> None:
        """In the thread."""
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
    flow = args.get("flow")
    if isinstance(flow, Mapping) and "name" not in found and isinstance(flow.get("name"), str):
        found["name"] = flow["name"][:MAX_TEXT]
    return found


# -- reading -----------------------------------------------------------------------------------------------


def files(path: Path) -> list[Path]:
    """Those of the log at ``path`` that are there, oldest first."""
    names = [*(path.with_name(f"{path.name}.{number}") for number in range(FILES - 1, 0, -1)), path]
    return [name for name in names if name.exists()]


def read(lines: Iterable[bytes]) -> Iterator[Record]:
    """The records of ``lines``. One that a crash tore is passed over: its call's other line tells of it."""
    decode = msgspec.json.Decoder(Record).decode
    for line in lines:
        try:
            yield decode(line)
        except msgspec.DecodeError:
            continue


def tail(path: Path, count: int) -> list[Record]:
    """The last ``count`` records of the log at ``path``, oldest first. Raises OSError."""
    found: list[Record] = []
    for name in reversed(files(path)):
        with name.open("rb") as file:
            found = [*read(file), *found]
        if len(found) >= count:
            break
    return found[-count:] if count else []
