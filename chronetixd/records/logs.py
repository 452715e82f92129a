"""Logs: the lines that workers print and log, in a bounded ring for clients and in files; and the daemon's own log.

The daemon writes its own log to stderr, as text on a terminal and else as JSON lines; every record has ``pid``, and
``flow`` and ``node`` where they apply. Lines that plugins log through their context also go to the daemon's own log;
lines that they print go there only at level debug.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any, Literal, TextIO

import structlog

from chronetix.protocol.json_text import json_text
from chronetix.protocol.messages import LogLevel
from chronetixd.packing import Packed
from chronetixd.records.feed import Feed, PackedFeed
from chronetixd.records.log_record import CUT, LINES_A_SECOND, MAX_LINE, LogRecord
from chronetixd.records.logfiles import LogFiles
from chronetixd.records.standard_error import ERROR, UnblockedStream

LOG_CAPACITY = 10_000
"""How many lines of all workers together are kept in memory."""

LOG_BUDGET = 32 * 1024 * 1024
"""How many bytes these lines may take together; usually they take 1 MB."""

LEVELS = ("debug", "info", "warning", "error", "critical")


class PackedLogs(Packed, frozen=True):
    """The workers' lines in a snapshot. ``run`` and ``unwritten``: see LogFiles; ``waiting`` are lines that are in no
    file yet."""

    feed: PackedFeed
    cut_lines: int
    dropped_bytes: int
    run: int
    unwritten: int
    waiting: list[tuple[tuple[str, str], bytes]]


class Logs:
    """The workers' lines. ``cut_lines`` counts lines that were longer than allowed, ``dropped_bytes`` the bytes that
    were printed too fast."""

    def __init__(self, capacity: int = LOG_CAPACITY, budget: int = LOG_BUDGET, files: LogFiles | None = None) -> None:
        """Keep lines in memory, and also write every line to ``files`` if given."""
        self.files = files
        self.feed: Feed[LogRecord] = Feed(capacity, budget)
        self.cut_lines = 0
        self.dropped_bytes = 0
        self._log = structlog.get_logger("chronetixd.worker")

    def printed(self, flow: str, node: str, pid: int, stream: Literal["stdout", "stderr"], line: str) -> None:
        """Record that a worker printed ``line`` to ``stream``."""
        level: LogLevel = "info" if stream == "stdout" else "warning"
        record = LogRecord(unix_ns=time.time_ns(), flow=flow, node=node, stream=stream, level=level, line=line)
        self._keep(record)
        self._log.debug(line, flow=flow, node=node, pid=pid, stream=stream)

    def dropped(self, flow: str, node: str, stream: str, size: int, lines: int) -> None:
        """Record that ``size`` bytes of ``stream``, with ``lines`` whole lines, are lost because they were printed too
        fast."""
        self.dropped_bytes += size
        text = f"{size} bytes of {stream} are left out here: they came faster than {LINES_A_SECOND} lines a second"
        self._keep(
            LogRecord(
                unix_ns=time.time_ns(),
                flow=flow,
                node=node,
                stream="daemon",
                level="warning",
                line=text,
                fields={"lost_bytes": size, "lost_lines": lines, "stream": stream},
            )
        )

    def losses(self) -> dict[str, int]:
        """Return how many lines were cut, how many bytes were dropped and how many lines are in no file, since the
        daemon's start."""
        unwritten = self.files.unwritten if self.files is not None else 0
        return {"cut_lines": self.cut_lines, "dropped_bytes": self.dropped_bytes, "lines_not_in_files": unwritten}

    def packed(self) -> PackedLogs:
        """Return the lines for a snapshot."""
        assert self.files is not None
        unwritten, waiting = self.files.packed()
        return PackedLogs(
            feed=self.feed.packed(),
            cut_lines=self.cut_lines,
            dropped_bytes=self.dropped_bytes,
            run=self.files.run,
            unwritten=unwritten,
            waiting=waiting,
        )

    def unpack(self, packed: PackedLogs) -> None:
        """Take over the lines of a snapshot. Raises ValueError."""
        self.feed.unpack(packed.feed, LogRecord)
        self.cut_lines, self.dropped_bytes = packed.cut_lines, packed.dropped_bytes
        if self.files is not None:
            self.files.unpack(packed.run, packed.unwritten, packed.waiting)

    def older(self, flow: str | None, node: str | None) -> Iterator[LogRecord]:
        """Return the lines of a flow or a node, or of all, that are in files and not, or no longer, in memory."""
        if self.files is None:
            return iter(())
        run, first = self.files.run, self.feed.forgotten
        return (
            LogRecord(**{name: getattr(record, name) for name in LogRecord.__struct_fields__})
            for record in self.files.read(flow, node)
            if record.run != run or record.seq < first
        )

    def _keep(self, record: LogRecord, size: int = 0) -> None:
        if self.files is not None:
            self.files.append(record, self.feed.appended)
        self.feed.append(record, len(record.line) + size)

    def logged(
        self, flow: str, node: str, pid: int, level: LogLevel, line: str, unix_ns: int, fields: dict[str, Any]
    ) -> None:
        """Record that a plugin logged ``line`` with ``fields``. A line that is too long is cut; fields that are too
        long are left out."""
        at = unix_ns or time.time_ns()
        size = len(repr(fields))
        if len(line) > MAX_LINE or size > MAX_LINE:
            self.cut_lines += 1
            line = line[:MAX_LINE] + CUT if len(line) > MAX_LINE else line
            fields = fields if size <= MAX_LINE else {"left_out": f"fields of {size} characters"}
        record = LogRecord(unix_ns=at, flow=flow, node=node, stream="log", level=level, line=line, fields=fields)
        self._keep(record, size)
        # As one keyword: a plugin may choose any names for its fields, also "exception" or "method_name".
        getattr(self._log, level)(line, flow=flow, node=node, pid=pid, **({"fields": fields} if fields else {}))


_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
"""Without the values of variables: they hold payloads and tokens."""


def configure(level: str, fmt: Literal["auto", "console", "json"], stream: TextIO | None = None) -> None:
    """Set up the daemon's own log on ``stream`` (stderr). ``auto``: console on a terminal, else JSON."""
    out = stream or _standard_error()
    console = fmt == "console" or (fmt == "auto" and out.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=out.isatty() and not os.environ.get("NO_COLOR"))
        if console
        else structlog.processors.JSONRenderer(serializer=_json)
    )
    structlog.configure(
        processors=[
            _with_pid,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if console else [_TRACEBACKS]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=lambda *_: _Lines(out),
        cache_logger_on_first_use=False,
    )


@cache
def _standard_error() -> UnblockedStream:
    """One for the process: what waits in it outlives another configuration."""
    return UnblockedStream(ERROR)


def _json(record: Any, **_: Any) -> str:
    return json_text(record)


class _Lines:
    """Writes records to ``stream``. A record is lost if the stream's reader has gone or the disk is full, because flows
    must run on without a log. A record reports how many were lost once the stream is read again."""

    def __init__(self, stream: TextIO | UnblockedStream) -> None:
        self._stream = stream

    def _write(self, record: str) -> None:
        with suppress(OSError):
            self._stream.write(record + "\n")
            self._stream.flush()
        if isinstance(self._stream, UnblockedStream) and (lost := self._stream.take_lost()):
            structlog.get_logger("chronetixd").warning("log lines were lost: standard error was not read", lines=lost)

    debug = info = warning = error = critical = exception = _write


def _with_pid(_logger: Any, _method: str, record: Any) -> Any:
    record.setdefault("pid", os.getpid())
    return record
