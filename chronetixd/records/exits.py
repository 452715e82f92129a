"""The last exits of each node's workers, on disk: they survive restarts of the node and of the daemon.

Each node of a flow has one small file, which is written anew with every exit and put in place by renaming. Rules:

* Files are read and written in a thread (:mod:`chronetixd.loop.aside`), and written one after another; the cost of an
  exit does not grow with the number of files.
* A record has a length and a CRC-32: a damaged record and those behind it are ignored and reported; those before it are
  used.
* When the disk is full, exits are kept in memory, which is reported once, and written with the next exit that can be
  written. Nothing is synced: a power cut may lose the last exits, a crash of the daemon those that were not yet
  written.
* Bounded: KEPT exits a node, MAX_FILES nodes; the files that were not written for longest are removed first.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from chronetix.protocol import cbor
from chronetixd.core.death import KEPT, ExitRecord
from chronetixd.store.state_dir import node_file_name

MAX_FILES = 2048
MAX_FILE = 2 * 1024 * 1024
"""How many bytes of a file are read: more than KEPT exits of the largest size take."""

SPARE = 8
"""When there are too many files, 1/SPARE of them are removed at once, because finding the oldest reads the whole
folder."""

_HEAD = 8
"""Length and CRC-32 of a record, big-endian."""

Key = tuple[str, str]
_Owed = dict[Key, list[ExitRecord]]


class ExitRecords:
    """The stored exits in ``folder``. ``on_trouble`` is called once with the reason when writing fails, and with ""
    when it works again; ``on_damage`` is called for each file that is damaged or cannot be read. Both are called in the
    thread that reads or writes."""

    def __init__(
        self,
        folder: Path,
        on_trouble: Callable[[str], None],
        on_damage: Callable[[str], None] = lambda _: None,
        do: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        """Make no file yet. ``do`` runs a piece of work in a thread, one after another; by default at once."""
        self._folder = folder
        self._on_trouble = on_trouble
        self._on_damage = on_damage
        self._do = do
        self._trouble = ""
        self._lock = threading.Lock()
        self._owed: _Owed = {}
        """By node, exits that are in no file yet."""
        self._writing: _Owed = {}
        """By node, exits that the thread is writing."""
        self._asked = False
        self._names: set[str] | None = None
        """Names of the existing files; None until the folder has been read."""
        self.lost = 0
        """How many exits were dropped because too many nodes waited for the disk."""

    def add(self, death: ExitRecord) -> None:
        """Store an exit. Never fails and never waits."""
        with self._lock:
            self._owe(self._owed, {(death.flow, death.node): [death]})
        self.flush()

    def _owe(self, owed: _Owed, more: _Owed) -> None:
        for key, deaths in more.items():
            owed[key] = [*owed.get(key, ()), *deaths][-KEPT:]
        while len(owed) > MAX_FILES:
            self.lost += len(owed.pop(next(iter(owed))))

    def flush(self) -> None:
        """Have the exits written that are in no file yet."""
        with self._lock:
            if not self._owed or self._asked:
                return
            self._asked = True
        self._do(self._write_owed)

    def _write_owed(self) -> None:
        """Write all exits that are in no file yet; stop at the first file that cannot be written."""
        with self._lock:
            self._asked = False
            self._writing, self._owed = self._owed, {}
            todo = list(self._writing.items())
        try:
            for key, deaths in todo:
                self._write(key, _joined(self._stored(*key), deaths))
                with self._lock:
                    self._writing.pop(key, None)
        except OSError as reason:
            with self._lock:
                left, self._writing, later = self._writing, {}, self._owed
                self._owe(left, later)
                self._owed = left
            self._tell(f"{self._folder} cannot be written: {reason.strerror}")
        else:
            self._tell("")

    def packed(self) -> list[ExitRecord]:
        """Return the exits that are in no file yet, for a snapshot."""
        with self._lock:
            return [death for owed in (self._writing, self._owed) for deaths in owed.values() for death in deaths]

    def unpack(self, packed: Iterable[ExitRecord]) -> None:
        """Take over the exits of a snapshot; they are written with the next exit."""
        for death in packed:
            self._owed.setdefault((death.flow, death.node), []).append(death)

    def of(self, flow: str, node: str) -> list[ExitRecord]:
        """Return the last exits of ``node``, oldest first. Reads a file: not for the loop."""
        with self._lock:
            owed = [*self._writing.get((flow, node), ()), *self._owed.get((flow, node), ())]
        return _joined(self._stored(flow, node), owed)

    def of_all(self, flow: str, nodes: Iterable[str]) -> dict[str, list[ExitRecord]]:
        """Return the last exits of each node, by node. Reads files: not for the loop."""
        return {node: self.of(flow, node) for node in nodes}

    def _stored(self, flow: str, node: str) -> list[ExitRecord]:
        file = self._file(flow, node)
        try:
            with open(file, "rb") as opened:
                data = opened.read(min(MAX_FILE, os.fstat(opened.fileno()).st_size))
        except OSError as reason:
            if not isinstance(reason, FileNotFoundError):
                self._on_damage(f"{file} cannot be read: {reason.strerror}")
            return []
        found = list(self._records(file, data))
        return [death for death in found if (death.flow, death.node) == (flow, node)][-KEPT:]

    def forget(self, flow: str, nodes: list[str]) -> None:
        """Remove the exits of a flow that is no longer listed."""
        with self._lock:
            for node in nodes:
                self._owed.pop((flow, node), None)
        self._do(partial(self._remove, [self._file(flow, node) for node in nodes]))

    def _remove(self, files: list[Path]) -> None:
        for file in files:
            with suppress(OSError):
                file.unlink()
                self._known().discard(file.name)

    def _file(self, flow: str, node: str) -> Path:
        return self._folder / node_file_name(flow, node)

    def _records(self, file: Path, data: bytes) -> Iterator[ExitRecord]:
        at = 0
        while at < len(data):
            length, crc = int.from_bytes(data[at : at + 4], "big"), int.from_bytes(data[at + 4 : at + _HEAD], "big")
            row = data[at + _HEAD : at + _HEAD + length]
            at += _HEAD + length
            try:
                if len(row) != length or zlib.crc32(row) != crc:
                    raise cbor.CborError("its checksum is wrong")
                yield msgspec.convert(cbor.loads(row), ExitRecord)
            except (cbor.CborError, msgspec.ValidationError) as reason:
                self._on_damage(f"{file} is damaged, exits behind byte {at - length - _HEAD} are ignored: {reason}")
                return

    def _write(self, key: tuple[str, str], deaths: list[ExitRecord]) -> None:
        file = self._file(*key)
        beside = self._folder / f".new-{os.getpid()}"
        try:
            with open(beside, "wb") as opened:
                for death in deaths:
                    row = cbor.dumps(msgspec.to_builtins(death))
                    opened.write(len(row).to_bytes(4, "big") + zlib.crc32(row).to_bytes(4, "big") + row)
        except FileNotFoundError:
            self._folder.mkdir(mode=0o700, parents=True)
            self._write(key, deaths)
            return
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise
        beside.rename(file)
        known = self._known()
        known.add(file.name)
        if len(known) > MAX_FILES:
            self._prune()

    def _known(self) -> set[str]:
        """Return the names of the files. The folder is read once, because only this object writes to it."""
        if self._names is None:
            self._names = set()
            with suppress(FileNotFoundError):
                self._names = {name for name in os.listdir(self._folder) if not name.startswith(".new-")}
        return self._names

    def _prune(self) -> None:
        """Remove the oldest files, so that there is room for MAX_FILES / SPARE new ones."""
        files = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    files.append((entry.stat().st_mtime_ns, entry.path))
        for _, path in sorted(files)[: len(files) - MAX_FILES + MAX_FILES // SPARE]:
            with suppress(FileNotFoundError):
                os.unlink(path)
        self._names = None

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_trouble(trouble)


def _joined(stored: list[ExitRecord], owed: list[ExitRecord]) -> list[ExitRecord]:
    """Return the last KEPT exits of both lists, each once: an exit that was written just before an upgrade may be in
    both."""
    return [*stored, *(death for death in owed if death not in stored)][-KEPT:]
