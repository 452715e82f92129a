"""What was submitted, what is wanted and which workers were born: all that a restarted daemon has to know of its past.

SQLite in WAL mode does the writing: a commit is on the disk when it returns, a torn tail is cut off, the log is
compacted. Rules:

* Nobody waits for the disk but who has to know that something is on it, and is called then. A thread writes
  (:mod:`chronetixd.loop.aside`); what comes while it does is written together, in its order, by its next commit.
* The memory of the running daemon is the truth, the journal follows it. Only a submission is refused when it cannot be
  written; everything else goes on, and what could not be written is kept, told once, and tried again by itself and with
  the next write. All statements are upserts or deletes, so that trying again is harmless.
* A disk that does not answer is waited for by submissions only; everything else goes on after PATIENCE_S.
* Rows carry a CRC-32 of their content: one that has rotted is left out and reported, never believed.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote

import msgspec
import structlog

from chronetix.protocol import cbor
from chronetix.protocol.errors import ChronetixError, error
from chronetixd.loop.aside import LAST_WORDS_S

FORMAT = 1
"""Version of the tables; a newer one is refused, as it may mean what we do not know."""

MAX_OWED = 10_000
"""Writes that are kept while the disk is full; beyond it the oldest are given up, and counted."""

FLUSH_S, RETRY_S = 0.1, 5.0
"""How long something may be owed. While writing fails it is tried again after twice as long each time, up to RETRY_S:
what the journal lacks is lost in a crash, and a disk may be full for a moment only."""

PATIENCE_S = 5.0
"""How long a disk that does not answer holds up what has to be on it first; then that goes on, as when it is full."""


class Timer(Protocol):
    """What is to be called."""

    def cancel(self) -> object:
        """It is not, any more."""


Later = Callable[[float, Callable[[], None]], Timer | None]
Do = Callable[[Callable[[], None]], object]
Then = Callable[[ChronetixError | None], None]
"""Called once it is on the disk, or with why it is refused."""

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


class StoredFlow(msgspec.Struct, frozen=True, kw_only=True):
    """A flow as it was submitted, and what became of it. ``contract`` is the CompileOutput in CBOR, unknown fields
    included: encoded once, as the row is written at each change. ``again``: it ends because the daemon does, and is to
    run anew."""

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


class StoredLife(msgspec.Struct, frozen=True, kw_only=True):
    """The last life of a node's worker. ``well``: it had finished, and ended with 0. ``started_ticks``: the start time
    of /proc/PID/stat: with the boot's id it tells this process from a later one of the same pid. ``token`` is what it
    proves itself with when it comes back."""

    flow: str
    node: str
    incarnation: int
    phase: Phase
    token: str
    boot: str
    pid: int = 0
    started_ticks: int = 0
    well: bool = False


class StoredRevision(msgspec.Struct, frozen=True, kw_only=True):
    """What a flow was, or was to become: as it was submitted, number 1, and then one for each roll-out. ``current``: it
    was the flow from then on. ``change`` is what differed from the one before, ``why`` it is not done."""

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


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the last daemon left. ``rotten`` names the rows that are not what was written."""

    flows: tuple[StoredFlow, ...]
    lives: tuple[StoredLife, ...]
    corrupt: tuple[str, ...]
    revisions: tuple[StoredRevision, ...] = ()


_Statement = tuple[str, tuple[Any, ...]]
_TRIAL: _Statement = (f"PRAGMA user_version = {FORMAT}", ())
"""Writes a page and changes nothing."""

_Row = TypeVar("_Row", StoredFlow, StoredLife, StoredRevision)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A submission: refused when it cannot be written."""

    statements: list[_Statement]
    then: Then


@dataclass(slots=True, eq=False)
class _Waiter:
    """Called once everything up to number ``upto`` is on the disk, or ``patience`` has passed."""

    upto: int
    then: Callable[[], None]
    patience: Timer | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the thread is to write: ``owed``, numbered up to ``upto``, and submissions."""

    owed: list[_Statement]
    upto: int
    asked: list[_Asked]


def _at_once(work: Callable[[], None]) -> None:
    work()


def _settled_at_once(_seconds: float) -> bool:
    return True


class Journal:
    """The journal in ``path``. ``on_trouble`` is told once why writing fails, and with "" when it works again."""

    def __init__(
        self,
        path: Path,
        on_trouble: Callable[[str], None],
        later: Later,
        do: Do = _at_once,
        post: Do = _at_once,
        settle: Callable[[float], bool] = _settled_at_once,
    ) -> None:
        """``later`` calls a function after so many seconds. ``do`` has a function called where it may wait for a disk,
        one after another; ``post`` calls one from there in the loop; ``settle`` waits until all of them are done, for
        so many seconds at most. By default writing is done at once."""
        self.path = path
        self._later = later
        self._do = do
        self._post = post
        self._settle = settle
        self._awaited = False
        self.given_up = 0
        self._on_trouble = on_trouble
        self._trouble = ""
        self._failures = 0
        """Commits that failed since the last one that did not."""
        self._owed: list[tuple[int, _Statement]] = []
        """Numbered in their order. The first ones may be with the thread."""
        self._count = 0
        self._asked: list[_Asked] = []
        self._waiters: list[_Waiter] = []
        self._batch: _Batch | None = None
        """What the thread is writing."""
        self._urgent = False
        """Something is to be written as soon as the thread is free."""
        self._base: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open or make it. Raises ChronetixError ``journal-unusable`` when it can be neither; a file that is no journal
        is put aside as ``*.damaged-TIME``, and ``on_trouble`` told so."""
        path = self.path
        try:
            self._base = _open(path)
        except sqlite3.OperationalError as reason:
            raise error("journal-unusable", path=str(path), reason=str(reason)) from None
        except sqlite3.DatabaseError as reason:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(aside)
            for rest in ("-wal", "-shm"):
                path.with_name(path.name + rest).unlink(missing_ok=True)
            self._base = _open(path)
            self._on_trouble(f"the journal was damaged ({reason}); it is kept as {aside.name}, and a new one was begun")

    def recover(self) -> Recovered:
        """Everything that is in it, in the order of submission. Raises ChronetixError ``journal-unusable``."""
        try:
            flows = self._opened.execute("SELECT name, row, crc FROM flow").fetchall()
            lives = self._opened.execute("SELECT flow || '/' || node, row, crc FROM life").fetchall()
            revisions = self._opened.execute(
                "SELECT flow || ' ' || number, row, crc FROM revision ORDER BY flow, number"
            ).fetchall()
        except sqlite3.DatabaseError as reason:
            raise error("journal-unusable", path=str(self.path), reason=str(reason)) from None
        corrupt: list[str] = []
        found_flows = sorted(_sound(StoredFlow, flows, corrupt), key=lambda flow: flow.submitted_unix_ns)
        found_lives, found_revisions = _sound(StoredLife, lives, corrupt), _sound(StoredRevision, revisions, corrupt)
        return Recovered(tuple(found_flows), tuple(found_lives), tuple(corrupt), tuple(found_revisions))

    # -- what is written -----------------------------------------------------------------------------------

    def submitted(self, flow: StoredFlow, then: Then) -> None:
        """``flow`` is about to run; an earlier one of its name is forgotten. ``then`` is called when that is on the
        disk, or with ``journal-unusable``, and then nothing of it is kept."""
        self._ask([*_forget_past(flow.name), _put_flow(flow)], then)

    def _ask(self, statements: list[_Statement], then: Then) -> None:
        self._asked.append(_Asked(statements, then))
        self._write_now()

    def flow(self, *flows: StoredFlow) -> None:
        """What is wanted of them has changed, or they have ended."""
        self._write([_put_flow(flow) for flow in flows])

    def planned(self, revisions: Iterable[StoredRevision], forget: Iterable[int], then: Then) -> None:
        """A flow is about to become another one; ``forget`` are numbers of old ones. ``then``: as for submissions."""
        revisions = tuple(revisions)
        old = [("DELETE FROM revision WHERE flow = ? AND number = ?", (revisions[0].flow, number)) for number in forget]
        self._ask([*old, *(_put_revision(each) for each in revisions)], then)

    def revised(self, revision: StoredRevision, flow: StoredFlow | None = None) -> None:
        """What came of it; with ``flow`` it is the flow from now on."""
        self._write([_put_revision(revision), *([_put_flow(flow)] if flow is not None else [])])

    def forgotten(self, name: str) -> None:
        """It is no longer listed."""
        self._write([*_forget_past(name), ("DELETE FROM flow WHERE name = ?", (name,))])

    def lives(self, lives: Iterable[StoredLife]) -> None:
        """These workers are about to be asked for, or have changed."""
        self._write([_put_life(life) for life in lives])

    def soon(self, record: StoredFlow | StoredLife) -> None:
        """With the next write or :meth:`flush`: for what can be found out, or done again, without the journal."""
        self._owe([_put_flow(record) if isinstance(record, StoredFlow) else _put_life(record)])

    def flush(self) -> None:
        """Write what is owed. Nothing to do, or closed, is nothing done."""
        if self._owed:
            self._write_now()

    def when_written(self, then: Callable[[], None]) -> None:
        """Call ``then`` once all that was to be written by now is on the disk: at once if it is; when the disk refuses
        it, or does not answer for PATIENCE_S, because what runs goes on."""
        if not self._owed or self._base is None:
            then()
            return
        waiter = _Waiter(self._count, then)
        self._waiters.append(waiter)
        self._write_now()
        if waiter in self._waiters:
            waiter.patience = self._later(PATIENCE_S, lambda: self._impatient(waiter))

    def settle(self, seconds: float) -> bool:
        """Write what is owed and wait for it, for so long at most; for when nothing else goes on anyway. What was not
        written by then is owed still, and so is what nobody has been told of."""
        self.flush()
        return self._settle(seconds)

    @property
    def awaited(self) -> bool:
        """Somebody waits until something is on the disk."""
        return bool(self._waiters or self._asked or (self._batch is not None and self._batch.asked))

    def packed(self) -> list[tuple[str, list[Any]]]:
        """What is owed, for a journal that goes on with it (:meth:`owe`)."""
        return [(text, list(values)) for _, (text, values) in self._owed]

    def owe(self, packed: Iterable[tuple[str, Sequence[Any]]]) -> None:
        """What another image owed is ours to write."""
        statements = [(text, tuple(values)) for text, values in packed]
        if statements:
            self._owe(statements)

    def examine(self) -> None:
        """Look whether it could be opened; changes nothing. Raises ChronetixError ``journal-unusable``."""
        try:
            base = sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True)
            try:
                _check_format(base, self.path)
            finally:
                base.close()
        except sqlite3.Error as reason:
            raise error("journal-unusable", path=str(self.path), reason=str(reason)) from None

    @property
    def owed(self) -> int:
        """Writes that are not on the disk yet."""
        return len(self._owed)

    @property
    def trouble(self) -> str:
        """What the journal lacks and why, as it was told; "" when it is complete."""
        return self._trouble

    def close(self, seconds: float = LAST_WORDS_S) -> None:
        """Write what is owed and close; gives a disk that does not answer up after so long. Idempotent."""
        base, self._base = self._base, None
        if base is not None:
            self._do(partial(self._finish, base, [statement for _, statement in self._owed]))
            if not self._settle(seconds):
                self._tell(f"{self.path} does not answer; {self.owed} last changes may not be in it")

    # -- how -----------------------------------------------------------------------------------------------

    @property
    def _opened(self) -> sqlite3.Connection:
        assert self._base is not None, "the journal is not open"
        return self._base

    def _write(self, statements: list[_Statement]) -> None:
        self._add(statements)
        self._write_now()

    def _owe(self, statements: list[_Statement]) -> None:
        self._add(statements)
        self._flush_later()

    def _add(self, statements: list[_Statement]) -> None:
        self._owed += enumerate(statements, start=self._count + 1)
        self._count += len(statements)
        beyond = len(self._owed) - MAX_OWED
        if beyond > 0:
            self.given_up += beyond
            first = len(self._batch.owed) if self._batch is not None else 0
            del self._owed[first : first + beyond]

    def _flush_later(self) -> None:
        if not self._awaited:
            self._awaited = True
            self._later(min(RETRY_S, FLUSH_S * 2.0 ** min(self._failures, 16)), self._in_time)

    def _in_time(self) -> None:
        """Write what is owed; in trouble with nothing owed, look by a trial whether the disk can be written again."""
        self._awaited = False
        if self._owed or self._trouble:
            self._write_now()

    def _write_now(self) -> None:
        """Give the thread all that there is, or have it done when it is free."""
        if self._base is None:
            return
        if self._batch is not None:
            self._urgent = True
            return
        self._urgent = False
        asked, self._asked = self._asked, []
        self._batch = batch = _Batch([statement for _, statement in self._owed], self._count, asked)
        self._do(partial(self._write_batch, batch))

    def _write_batch(self, batch: _Batch) -> None:
        """In the thread: all together, or, when that fails, what is owed and then each submission by itself."""
        statements = [*batch.owed, *(each for asked in batch.asked for each in asked.statements)]
        failed = self._try(statements or [_TRIAL])
        refused: list[Exception | None] = [None] * len(batch.asked)
        if failed is not None and batch.asked:
            failed = self._try(batch.owed)
            refused = [failed or self._try(asked.statements) for asked in batch.asked]
        self._post(partial(self._written, failed, refused))

    def _try(self, statements: list[_Statement]) -> Exception | None:
        """Why they could not be written; whatever it is, the thread goes on."""
        try:
            if statements:
                self._commit(statements)
        except Exception as reason:
            return reason
        return None

    def _commit(self, statements: list[_Statement]) -> None:
        base = self._base
        if base is None:
            raise sqlite3.ProgrammingError("the journal is closed")
        with _transaction(base):
            for text, values in statements:
                base.execute(text, values)

    def _written(self, failed: Exception | None, refused: list[Exception | None]) -> None:
        """In the loop: what came of a batch."""
        batch, self._batch = self._batch, None
        assert batch is not None
        reason = failed or next((each for each in refused if each is not None), None)
        if failed is None:
            self._owed = [each for each in self._owed if each[0] > batch.upto]
        self._failures = 0 if failed is None else self._failures + 1
        if reason is None:
            self._tell("")
        else:
            self._tell(f"{self.path} cannot be written: {reason}")
        self._release(batch.upto)
        for asked, refusal in zip(batch.asked, refused, strict=True):
            told = str(refusal)
            asked.then(error("journal-unusable", path=str(self.path), reason=told) if refusal is not None else None)
        if self._urgent or self._asked:
            self._write_now()
        elif self._owed or self._trouble:
            self._flush_later()

    def _release(self, upto: int) -> None:
        """Who waited for no more than this goes on."""
        done = [waiter for waiter in self._waiters if waiter.upto <= upto]
        self._waiters = [waiter for waiter in self._waiters if waiter.upto > upto]
        for waiter in done:
            if waiter.patience is not None:
                waiter.patience.cancel()
            waiter.then()

    def _impatient(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self._tell(f"{self.path} has not answered for {PATIENCE_S:g} s")
            waiter.then()

    def _finish(self, base: sqlite3.Connection, owed: list[_Statement]) -> None:
        """In the thread, as the last thing that it does with the journal."""
        try:
            if owed:
                with _transaction(base):
                    for text, values in owed:
                        base.execute(text, values)
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as reason:
            structlog.get_logger("chronetixd").error("the journal lacks the last changes", reason=str(reason))
        finally:
            base.close()

    def _tell(self, trouble: str) -> None:
        if self._trouble != trouble:
            self._trouble = trouble
            self._on_trouble(trouble)


@contextmanager
def _transaction(base: sqlite3.Connection) -> Iterator[None]:
    """All of it or, when anything raises, nothing."""
    base.execute("BEGIN IMMEDIATE")
    try:
        yield
        base.execute("COMMIT")
    except BaseException:
        if base.in_transaction:
            base.execute("ROLLBACK")
        raise


def _open(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, isolation_level=None, timeout=1.0, check_same_thread=False)
    try:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = FULL")
        version = _check_format(base, path)
        base.executescript(_TABLES)
        if version != FORMAT:
            base.execute(f"PRAGMA user_version = {FORMAT}")
        path.chmod(0o600)
    except BaseException:
        base.close()
        raise
    return base


def _check_format(base: sqlite3.Connection, path: Path) -> int:
    """Its format, 0 for a new one: what is open already is not written to. Raises ChronetixError."""
    version: int
    (version,) = base.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise error("journal-unusable", path=str(path), reason=f"it has format {version}, this daemon knows {FORMAT}")
    return version


def _put_flow(flow: StoredFlow) -> _Statement:
    row, crc = _packed(flow)
    return "INSERT OR REPLACE INTO flow VALUES (?, ?, ?)", (flow.name, row, crc)


def _put_life(life: StoredLife) -> _Statement:
    row, crc = _packed(life)
    return "INSERT OR REPLACE INTO life VALUES (?, ?, ?, ?)", (life.flow, life.node, row, crc)


def _put_revision(revision: StoredRevision) -> _Statement:
    row, crc = _packed(revision)
    return "INSERT OR REPLACE INTO revision VALUES (?, ?, ?, ?)", (revision.flow, revision.number, row, crc)


def _forget_past(flow: str) -> list[_Statement]:
    return [(f"DELETE FROM {table} WHERE flow = ?", (flow,)) for table in ("life", "revision")]


def _packed(record: StoredFlow | StoredLife | StoredRevision) -> tuple[bytes, int]:
    row = cbor.dumps(msgspec.to_builtins(record, builtin_types=(bytes,)))
    return row, zlib.crc32(row)


def _sound(kind: type[_Row], rows: Iterable[tuple[str, bytes, int]], corrupt: list[str]) -> list[_Row]:
    """The rows that are what was written; the names of the others go into ``rotten``."""
    found: list[_Row] = []
    for name, row, crc in rows:
        try:
            if zlib.crc32(row) != crc:
                raise cbor.CborError("its checksum is wrong")
            found.append(msgspec.convert(cbor.loads(row), kind))
        except (cbor.CborError, msgspec.ValidationError, TypeError) as reason:
            corrupt.append(f"{name}: {reason}")
    return found
