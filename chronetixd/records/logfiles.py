"""Writes the lines that workers print and log to disk: JSON lines in a few rotating files for each node of a flow.

A thread writes, so that a slow disk holds up nothing else. The lines that wait for it are bounded, and lines that could
not be written are counted. Rules:

* NAME is the newest file, NAME.1 the one before, and so on; the oldest is removed. Lines are whole, also after a full
  disk.
* A full disk is reported once. Lines are in memory only then, and are written to files again as soon as there is room.
* ``run`` and ``seq`` identify a line, so that the same line in memory is not shown twice: ``seq`` counts the lines of
one
  run of the daemon.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from chronetixd.records.log_record import LogRecord
from chronetixd.store.state_dir import node_file_name

MAX_QUEUED = 8 * 1024 * 1024
"""How many bytes may wait for the disk; further lines are not written."""

MAX_NODES = 1024
"""How many nodes may have files; files that were not written for longest are removed first."""

MAX_LINE_READ = 256 * 1024


class StoredRecord(LogRecord, frozen=True, kw_only=True):
    """A line with its number ``seq`` in the run of the daemon that wrote it. ``run`` is the start of that daemon (Unix
    time in ns)."""

    run: int = 0
    seq: int = 0


Key = tuple[str, str]
"""Flow and node."""


class LogFiles:
    """The log files in ``folder``: for each node ``count`` files of at most ``max_bytes``. The thread calls
    ``on_trouble`` once with the reason when writing fails, and with "" when it works again."""

    def __init__(self, folder: Path, run: int, max_bytes: int, count: int, on_trouble: Callable[[str], None]) -> None:
        self._folder = folder
        self.run = run
        self._max_bytes = max_bytes
        self._count = count
        self._on_trouble = on_trouble
        self._trouble = ""
        self._change = threading.Condition()
        self._queue: deque[tuple[Key, bytes]] = deque()
        self._queued = 0
        self._writing = 0
        """How many lines the thread is about to write."""
        self._forgotten: list[Key] = []
        """Nodes whose files the thread is to remove."""
        self._removing = False
        self._halted = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(StoredRecord)
        self.unwritten = 0
        """How many lines are in no file because the disk was full or too slow."""

    @property
    def on(self) -> bool:
        """Whether log files are written at all."""
        return self._count > 0

    def append(self, record: LogRecord, seq: int) -> None:
        """Queue ``record`` for the thread to write. Never waits for the disk."""
        if not self.on:
            return
        stored = StoredRecord(**msgspec.structs.asdict(record), run=self.run, seq=seq)
        line = self._encoder.encode(stored) + b"\n"
        with self._change:
            if self._queued + len(line) > MAX_QUEUED:
                self.unwritten += 1
                return
            self._queue.append(((record.flow, record.node), line))
            self._queued += len(line)
            self._change.notify_all()
        if not self._halted:
            self._begin()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="chronetix-logs", daemon=True)
            self._thread.start()

    def halt(self, timeout_s: float) -> None:
        """Stop writing until :meth:`resume`, and wait up to ``timeout_s`` for the lines that the thread is writing. If
        that takes longer, the next image counts these lines as not written."""
        with self._change:
            self._halted = True
            self._change.notify_all()
            self._change.wait_for(lambda: not self._writing, timeout_s)

    def resume(self) -> None:
        """Write again after :meth:`halt` or :meth:`unpack`, beginning with the queued lines."""
        with self._change:
            self._halted = False
            self._change.notify_all()
            waits = bool(self._queue)
        if waits:
            self._begin()

    def packed(self) -> tuple[int, list[tuple[Key, bytes]]]:
        """Return, for a snapshot, the number of lines that are in no file, and the queued lines."""
        with self._change:
            return self.unwritten + self._writing, list(self._queue)

    def unpack(self, run: int, unwritten: int, waiting: Iterable[tuple[Key, bytes]]) -> None:
        """Take over the lines of a snapshot; nothing is written before :meth:`resume`."""
        self._halted = True
        self.run, self.unwritten = run, unwritten
        self._queue.extend(waiting)
        self._queued = sum(len(line) for _, line in self._queue)

    def settle(self, timeout_s: float) -> bool:
        """Wait until all appended lines have been written or dropped; return False if that takes longer than
        ``timeout_s``."""
        with self._change:
            return self._change.wait_for(
                lambda: not (self._queue or self._writing or self._forgotten or self._removing), timeout_s
            )

    def close(self) -> None:
        """Write the queued lines and end the thread. Idempotent."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def forget(self, flow: str, nodes: Iterable[str]) -> None:
        """Have the files of a flow removed that is no longer listed."""
        if not self.on:
            return
        with self._change:
            self._forgotten += [(flow, node) for node in nodes]
            self._change.notify_all()
        self._begin()

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, flow: str | None, node: str | None) -> Iterator[StoredRecord]:
        """Yield the lines of a flow or a node, or of all, in the order of their time; damaged lines are skipped. Not
        for the loop."""
        files = [self._of(name, flow, node) for name in sorted(self._names())]
        yield from heapq.merge(*files, key=lambda record: record.unix_ns)

    def _names(self) -> set[str]:
        with suppress(OSError):
            return {_base(entry) for entry in os.listdir(self._folder)}
        return set()

    def _of(self, name: str, flow: str | None, node: str | None) -> Iterator[StoredRecord]:
        for at in range(self._count, -1, -1):
            with suppress(OSError), open(self._numbered(name, at), "rb") as file:
                while line := file.readline(MAX_LINE_READ):
                    try:
                        record = self._decoder.decode(line)
                    except (msgspec.DecodeError, UnicodeDecodeError):
                        continue
                    if flow not in (None, record.flow):
                        return  # a file is of one node of one flow
                    if node in (None, record.node):
                        yield record

    # -- writing, in the thread --------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            with self._change:
                self._writing, self._removing = 0, False
                self._change.notify_all()
                self._change.wait_for(lambda: ((self._queue or self._forgotten) and not self._halted) or self._closing)
                if not self._queue and not self._forgotten:
                    return
                forgotten, self._forgotten = self._forgotten, []
                self._removing = bool(forgotten)
                batch, self._queue = self._queue, deque()
                self._writing = len(batch)
                self._queued = 0
            by_node: dict[Key, list[bytes]] = {}
            for file in [file for key in forgotten for file in self._files(key)]:
                with suppress(OSError):
                    file.unlink()
            for key, line in batch:
                by_node.setdefault(key, []).append(line)
            for key, lines in by_node.items():
                self._write(key, lines)

    def _write(self, key: Key, lines: list[bytes]) -> None:
        try:
            self._append(key, lines)
        except OSError as reason:
            self.unwritten += len(lines)
            self._tell(f"{self._folder} cannot be written: {reason.strerror}")
        else:
            self._tell("")

    def _append(self, key: Key, lines: list[bytes]) -> None:
        """Append ``lines`` to the files of a node. Raises OSError; the files hold only whole lines then."""
        newest = self._numbered(node_file_name(*key), 0)
        while lines:
            fd = self._open(newest)
            try:
                size = os.fstat(fd).st_size
                room = max(self._max_bytes - size, 0 if size else len(lines[0]))
                fits, total = 0, 0
                while fits < len(lines) and total + len(lines[fits]) <= room:
                    total += len(lines[fits])
                    fits += 1
                _write_whole(fd, b"".join(lines[:fits]), size)
            finally:
                os.close(fd)
            lines = lines[fits:]
            if lines:
                self._rotate(newest)

    def _open(self, file: Path) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            return os.open(file, flags)
        except FileNotFoundError:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._prune()
            return os.open(file, flags | os.O_CREAT, 0o600)

    def _rotate(self, newest: Path) -> None:
        name = _base(newest.name)
        for at in range(self._count - 1, 0, -1):
            with suppress(FileNotFoundError):
                self._numbered(name, at - 1).rename(self._numbered(name, at))
        if self._count == 1:
            newest.unlink()

    def _prune(self) -> None:
        names = self._names()
        if len(names) < MAX_NODES:
            return
        written: list[tuple[int, str]] = []
        for name in names:
            with suppress(OSError):
                written.append((self._numbered(name, 0).stat().st_mtime_ns, name))
        for _, name in sorted(written)[: len(names) - MAX_NODES + 1]:
            for at in range(self._count + 1):
                with suppress(FileNotFoundError):
                    self._numbered(name, at).unlink()

    def _files(self, key: Key) -> list[Path]:
        return [self._numbered(node_file_name(*key), at) for at in range(self._count + 1)]

    def _numbered(self, name: str, at: int) -> Path:
        return self._folder / (f"{name}.log.{at}" if at else f"{name}.log")

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_trouble(trouble)


def _base(entry: str) -> str:
    return entry.rpartition(".log")[0]


def _write_whole(fd: int, data: bytes, size: int) -> None:
    """Write all of ``data`` behind the ``size`` bytes of the file. Raises OSError, and nothing is written then."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(fd, size)
        raise
