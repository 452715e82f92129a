"""The last deaths of each node, on disk: they survive restarts of the node and of the daemon.

One small file for each node of a flow, written anew with every death and put in place by renaming. Rules:

* A record has a length and a CRC-32: what has rotted is left out and reported, never believed; what is before it
  counts.
* A disk that is full costs nothing but the files: deaths are kept in memory, which is told once, and written with the
  next one that succeeds. Nothing is waited for: a power cut may lose the last deaths, a crash of the daemon none.
* Bounded: KEPT deaths a node, MAX_FILES nodes; the files that were not written for longest go first.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from chronetixd.core.death import KEPT, Death
from chronetixd.state import node_file_name
from protocol import cbor

MAX_FILES = 2048
MAX_FILE = 2 * 1024 * 1024
"""Bytes that are read of a file: more than KEPT of the largest deaths take."""

_HEAD = 8
"""Length and CRC-32 of a record, big-endian."""


class Deaths:
    """The deaths in ``folder``. ``on_trouble`` is told once why writing fails, and with "" when it works again;
    ``on_damage`` of each file that has rotted or cannot be read."""

    def __init__(
        self, folder: Path, on_trouble: Callable[[str], None], on_damage: Callable[[str], None] = lambda _: None
    ) -> None:
        """Makes nothing yet."""
        self._folder = folder
        self._on_trouble = on_trouble
        self._on_damage = on_damage
        self._trouble = ""
        self._owed: dict[tuple[str, str], list[Death]] = {}
        """By node, all of its deaths, when the last one could not be written."""
        self.lost = 0
        """Deaths that were given up because too many nodes waited for the disk."""

    def add(self, death: Death) -> None:
        """Remember ``death``. Never fails."""
        key = death.flow, death.node
        deaths = [*self.of(*key), death][-KEPT:]
        self._owed[key] = deaths
        while len(self._owed) > MAX_FILES:
            self.lost += len(self._owed.pop(next(iter(self._owed))))
        self.flush()

    def flush(self) -> None:
        """Write what is owed; stops at the first that cannot be written."""
        try:
            for key, deaths in tuple(self._owed.items()):
                self._write(key, deaths)
                del self._owed[key]
        except OSError as reason:
            self._tell(f"{self._folder} cannot be written: {reason.strerror}")
        else:
            self._tell("")

    def packed(self) -> list[Death]:
        """Those that are owed to the disk."""
        return [death for deaths in self._owed.values() for death in deaths]

    def unpack(self, packed: Iterable[Death]) -> None:
        """The inverse: they are written with the next one."""
        for death in packed:
            self._owed.setdefault((death.flow, death.node), []).append(death)

    def of(self, flow: str, node: str) -> list[Death]:
        """The last deaths of ``node``, oldest first."""
        owed = self._owed.get((flow, node))
        if owed is not None:
            return list(owed)
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
        """The flow is no longer listed."""
        for node in nodes:
            self._owed.pop((flow, node), None)
            with suppress(OSError):
                self._file(flow, node).unlink()

    def _file(self, flow: str, node: str) -> Path:
        return self._folder / node_file_name(flow, node)

    def _records(self, file: Path, data: bytes) -> Iterator[Death]:
        at = 0
        while at < len(data):
            length, crc = int.from_bytes(data[at : at + 4], "big"), int.from_bytes(data[at + 4 : at + _HEAD], "big")
            row = data[at + _HEAD : at + _HEAD + length]
            at += _HEAD + length
            try:
                if len(row) != length or zlib.crc32(row) != crc:
                    raise cbor.CborError("its checksum is wrong")
                yield msgspec.convert(cbor.loads(row), Death)
            except (cbor.CborError, msgspec.ValidationError) as reason:
                self._on_damage(f"{file} is damaged, what is behind byte {at - length - _HEAD} is left out: {reason}")
                return

    def _write(self, key: tuple[str, str], deaths: list[Death]) -> None:
        file = self._file(*key)
        beside = self._folder / f".new-{os.getpid()}"
        new = not file.exists()
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
        if new:
            self._prune()

    def _prune(self) -> None:
        with os.scandir(self._folder) as entries:
            files = [(entry.stat().st_mtime_ns, entry.path) for entry in entries]
        for _, path in sorted(files)[: max(0, len(files) - MAX_FILES)]:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_trouble(trouble)
