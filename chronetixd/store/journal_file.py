"""The file of the journal: its tables, the records in them, the statements that write them, and reading them back.

Each record is one row: its keys, the record in CBOR, and a CRC-32 of that. All statements are upserts or deletes, so
that a statement may be executed again. A row whose checksum or content is wrong is left out and named.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from chronetix.protocol import cbor
from chronetix.protocol.errors import error

FORMAT = 1
"""Version of the tables; a journal with a newer one is refused, because this release may misread it."""

Wanted = Literal["running", "stopped"]
Phase = Literal["intended", "born", "gone"]
Outcome = Literal["submitted", "preparing", "committed", "done", "rolled-back", "ended", "interrupted"]

_TABLES = """
CREATE TABLE IF NOT EXISTS flow (name TEXT PRIMARY KEY, row BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS life (
    flow TEXT, node TEXT, row BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (flow, node)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revision (
    flow TEXT, number INTEGER, row BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (flow, number)) WITHOUT ROWID;
"""


class StoredRun(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier run of a flow: when it was submitted, and how and when it ended."""

    number: int
    submitted_unix_ns: int
    ended_unix_ns: int
    state: str
    reason: str = ""


class StoredFlow(msgspec.Struct, frozen=True, kw_only=True):
    """A flow as it was submitted, and its last state. ``contract`` is the CompileOutput in CBOR with unknown fields,
    encoded once because the row is written at each change. ``again``: the flow ends because the daemon ends, and the
    next daemon is to run it anew. ``code``: digests of the plugins' files when the flow was submitted or last changed;
    empty when an earlier release has written the row. ``attach_token``: the secret that workers which attach have to
    name; empty until it is first asked for, and the same for later runs. ``run``: how many times a flow of this name
    was submitted; ``runs``: the last of the earlier ones, oldest first."""

    name: str
    submitted_unix_ns: int
    contract: bytes
    bindings: dict[str, str]
    base_dir: str
    wanted: Wanted = "running"
    state: str = "submitted"
    reason: str = ""
    changed_unix_ns: int = 0
    again: bool = False
    code: dict[str, dict[str, str]] = {}
    run: int = 1
    runs: list[StoredRun] = []
    attach_token: str = ""


class StoredWorker(msgspec.Struct, frozen=True, kw_only=True):
    """The last worker of a node. ``well``: the worker had finished and ended with exit code 0. ``started_ticks``: the
    start time in /proc/PID/stat, which with the boot's id distinguishes the process from a later one with the same pid.
    ``token``: the secret with which the worker proves its identity when it reattaches. ``attached``: the daemon has not
    started the process."""

    flow: str
    node: str
    incarnation: int
    phase: Phase
    token: str
    boot: str
    pid: int = 0
    started_ticks: int = 0
    well: bool = False
    attached: bool = False


class StoredRevision(msgspec.Struct, frozen=True, kw_only=True):
    """A revision of a flow: number 1 as it was submitted, then one for each roll-out. ``current``: whether the flow
    became this revision. ``change`` is what differs from the revision before; ``why`` is the reason if the roll-out was
    not done. ``code``: as for :class:`StoredFlow`."""

    flow: str
    number: int
    unix_ns: int
    contract: bytes
    bindings: dict[str, str]
    base_dir: str
    outcome: Outcome
    current: bool
    change: dict[str, Any] = {}
    why: str = ""
    ended_unix_ns: int = 0
    code: dict[str, dict[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Recovered:
    """The content of the journal that the last daemon left. ``corrupt`` names the rows that are damaged."""

    flows: tuple[StoredFlow, ...]
    workers: tuple[StoredWorker, ...]
    corrupt: tuple[str, ...]
    revisions: tuple[StoredRevision, ...] = ()


Statement = tuple[str, tuple[Any, ...]]
"""Text in SQL and its values."""

TRIAL: Statement = (f"PRAGMA user_version = {FORMAT}", ())
"""A statement that writes a page and changes nothing, to try whether the disk can be written."""

_Row = TypeVar("_Row", StoredFlow, StoredWorker, StoredRevision)


@contextmanager
def transaction(base: sqlite3.Connection) -> Iterator[None]:
    """A context manager that commits its statements, or rolls all of them back when one raises."""
    base.execute("BEGIN IMMEDIATE")
    try:
        yield
        base.execute("COMMIT")
    except BaseException:
        if base.in_transaction:
            base.execute("ROLLBACK")
        raise


def open_file(path: Path) -> sqlite3.Connection:
    """Open the file, or make it with its tables. Raises sqlite3.DatabaseError for a file that is no journal, and as
    :func:`check_format`."""
    base = sqlite3.connect(path, isolation_level=None, timeout=1.0, check_same_thread=False)
    try:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = FULL")
        version = check_format(base, path)
        base.executescript(_TABLES)
        if version != FORMAT:
            base.execute(f"PRAGMA user_version = {FORMAT}")
        path.chmod(0o600)
    except BaseException:
        base.close()
        raise
    return base


def check_format(base: sqlite3.Connection, path: Path) -> int:
    """Return the format of the journal, 0 for a new file. Only reads: another daemon's journal is not changed. Raises
    ChronetixError ``journal-unusable`` for a newer format."""
    version: int
    (version,) = base.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise error("journal-unusable", path=str(path), reason=f"it has format {version}, this daemon knows {FORMAT}")
    return version


def read(base: sqlite3.Connection) -> Recovered:
    """Return the content of the file, flows in the order of submission. Raises sqlite3.DatabaseError."""
    flows = base.execute("SELECT name, row, crc FROM flow").fetchall()
    workers = base.execute("SELECT flow || '/' || node, row, crc FROM life").fetchall()
    revisions = base.execute("SELECT flow || ' ' || number, row, crc FROM revision ORDER BY flow, number").fetchall()
    corrupt: list[str] = []
    found_flows = sorted(_sound(StoredFlow, flows, corrupt), key=lambda flow: flow.submitted_unix_ns)
    found_workers, found_revisions = _sound(StoredWorker, workers, corrupt), _sound(StoredRevision, revisions, corrupt)
    return Recovered(tuple(found_flows), tuple(found_workers), tuple(corrupt), tuple(found_revisions))


def put_flow(flow: StoredFlow) -> Statement:
    """Return the statement that writes ``flow``."""
    row, crc = _packed(flow)
    return "INSERT OR REPLACE INTO flow VALUES (?, ?, ?)", (flow.name, row, crc)


def put_worker(worker: StoredWorker) -> Statement:
    """Return the statement that writes ``worker`` in the place of its predecessor."""
    row, crc = _packed(worker)
    return "INSERT OR REPLACE INTO life VALUES (?, ?, ?, ?)", (worker.flow, worker.node, row, crc)


def put_revision(revision: StoredRevision) -> Statement:
    """Return the statement that writes ``revision``."""
    row, crc = _packed(revision)
    return "INSERT OR REPLACE INTO revision VALUES (?, ?, ?, ?)", (revision.flow, revision.number, row, crc)


def forget_history(flow: str) -> list[Statement]:
    """Return the statements that delete the workers and revisions of ``flow``."""
    return [(f"DELETE FROM {table} WHERE flow = ?", (flow,)) for table in ("life", "revision")]


def _packed(record: StoredFlow | StoredWorker | StoredRevision) -> tuple[bytes, int]:
    row = cbor.dumps(msgspec.to_builtins(record, builtin_types=(bytes,)))
    return row, zlib.crc32(row)


def _sound(kind: type[_Row], rows: Iterable[tuple[str, bytes, int]], corrupt: list[str]) -> list[_Row]:
    """Return the rows whose checksum and content are right; append the names of the others to ``corrupt``."""
    found: list[_Row] = []
    for name, row, crc in rows:
        try:
            if zlib.crc32(row) != crc:
                raise cbor.CborError("its checksum is wrong")
            found.append(msgspec.convert(cbor.loads(row), kind))
        except (cbor.CborError, msgspec.ValidationError, TypeError) as reason:
            corrupt.append(f"{name}: {reason}")
    return found
