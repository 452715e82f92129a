"""The journal: flows with the state that is wanted for them, revisions and workers, as a restarted daemon needs them.

SQLite in WAL mode writes it: a commit is on the disk when it returns, an incomplete tail is cut off, the log is
compacted. Rules:

* A thread writes (:mod:`chronetixd.loop.aside`). Writes that come during a commit are written together, in their order,
  by the next commit. Only a caller that has to know that a write is on the disk waits for it; it is called back then.
* The memory of the running daemon is the truth, and the journal follows it. Only a submission or a planned roll-out is
  refused when it cannot be written. Other writes that fail are kept, reported once, and tried again later and with the
  next write, which is harmless (:mod:`chronetixd.store.journal_file`).
* Only submissions and planned roll-outs wait for a disk that does not answer; everything else goes on after PATIENCE_S.

This file is longer than 400 lines because each write and its end change three things together: the statements that are
not on the disk, the thread's batch, and the callers that wait.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import structlog

from chronetix.protocol.errors import ChronetixError, error
from chronetixd.loop.aside import LAST_WORDS_S
from chronetixd.store.journal_file import (
    TRIAL,
    Recovered,
    Statement,
    StoredFlow,
    StoredRevision,
    StoredWorker,
    check_format,
    forget_history,
    open_file,
    put_flow,
    put_revision,
    put_worker,
    read,
    transaction,
)

MAX_PENDING = 10_000
"""How many writes are kept while the disk is full; beyond it the oldest are dropped and counted."""

FLUSH_S, RETRY_S = 0.1, 5.0
"""How long a write may wait. While writing fails, it is tried again after twice the time each time, up to RETRY_S,
because a crash loses the writes that the journal lacks, and a disk may be full only for a moment."""

PATIENCE_S = 5.0
"""How long a disk that does not answer holds up a step that waits for a write; then the step goes on, as when the disk
is full."""


class ScheduledCall(Protocol):
    """A call that is scheduled for later."""

    def cancel(self) -> object:
        """Cancel the call."""


Later = Callable[[float, Callable[[], None]], ScheduledCall | None]
Do = Callable[[Callable[[], None]], object]
Then = Callable[[ChronetixError | None], None]
"""Called with None once a write is on the disk, or with the error with which it is refused."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A submission or planned roll-out, which is refused when it cannot be written."""

    statements: list[Statement]
    then: Then


@dataclass(slots=True, eq=False)
class _Waiter:
    """A call back: ``then`` is called once everything up to number ``upto`` is on the disk, or the timer ``patience``
    has run out."""

    upto: int
    then: Callable[[], None]
    patience: ScheduledCall | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the thread writes in one go: the statements ``pending``, numbered up to ``upto``, and the submissions
    ``asked``."""

    pending: list[Statement]
    upto: int
    asked: list[_Asked]


def _at_once(work: Callable[[], None]) -> None:
    work()


def _settled_at_once(_seconds: float) -> bool:
    return True


class Journal:
    """The journal at ``path``. ``on_trouble`` is called once with the reason when writing fails, and with "" when it
    works again."""

    def __init__(
        self,
        path: Path,
        on_trouble: Callable[[str], None],
        later: Later,
        do: Do = _at_once,
        post: Do = _at_once,
        settle: Callable[[float], bool] = _settled_at_once,
    ) -> None:
        """Open no file yet. ``later`` calls a function after a number of seconds. ``do`` calls functions in a thread,
        one after another; ``post`` calls a function in the loop from that thread; ``settle`` waits for all of them, for
        at most a number of seconds. By default everything is called at once."""
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
        """How many commits have failed since the last success."""
        self._pending: list[tuple[int, Statement]] = []
        """Statements that are not on the disk yet, numbered in their order. The thread may be writing the first
        ones."""
        self._count = 0
        self._asked: list[_Asked] = []
        self._waiters: list[_Waiter] = []
        self._batch: _Batch | None = None
        """What the thread is writing."""
        self._urgent = False
        """Whether to write again as soon as the thread is free."""
        self._base: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the journal, or make it. A file that is no journal is renamed to ``*.damaged-TIME``, and ``on_trouble``
        is called. Raises ChronetixError ``journal-unusable``."""
        path = self.path
        try:
            self._base = open_file(path)
        except sqlite3.OperationalError as reason:
            raise error("journal-unusable", path=str(path), reason=str(reason)) from None
        except sqlite3.DatabaseError as reason:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(aside)
            for rest in ("-wal", "-shm"):
                path.with_name(path.name + rest).unlink(missing_ok=True)
            self._base = open_file(path)
            self._on_trouble(f"the journal was damaged ({reason}); it is kept as {aside.name}, and a new one was begun")

    def recover(self) -> Recovered:
        """Return the content of the journal, flows in the order of submission. Raises ChronetixError
        ``journal-unusable``."""
        try:
            return read(self._opened)
        except sqlite3.DatabaseError as reason:
            raise error("journal-unusable", path=str(self.path), reason=str(reason)) from None

    # -- what is written -----------------------------------------------------------------------------------

    def submitted(self, flow: StoredFlow, then: Then) -> None:
        """Write that ``flow`` is about to run, and delete an earlier flow of its name. ``then`` is called when that is
        on the disk, or with ``journal-unusable``, and the journal is unchanged then."""
        self._ask([*forget_history(flow.name), put_flow(flow)], then)

    def _ask(self, statements: list[Statement], then: Then) -> None:
        self._asked.append(_Asked(statements, then))
        self._write_now()

    def flow(self, *flows: StoredFlow) -> None:
        """Write flows whose wanted state has changed, or that have ended."""
        self._write([put_flow(flow) for flow in flows])

    def planned(self, revisions: Iterable[StoredRevision], forget: Iterable[int], then: Then) -> None:
        """Write the revisions of a flow before a roll-out begins, and delete the old revisions with the numbers
        ``forget``. ``then`` is called as for :meth:`submitted`."""
        revisions = tuple(revisions)
        old = [("DELETE FROM revision WHERE flow = ? AND number = ?", (revisions[0].flow, number)) for number in forget]
        self._ask([*old, *(put_revision(each) for each in revisions)], then)

    def revised(self, revision: StoredRevision, flow: StoredFlow | None = None) -> None:
        """Write the outcome of a roll-out; with ``flow``, also the flow as it is from now on."""
        self._write([put_revision(revision), *([put_flow(flow)] if flow is not None else [])])

    def forgotten(self, name: str) -> None:
        """Delete a flow that is no longer listed."""
        self._write([*forget_history(name), ("DELETE FROM flow WHERE name = ?", (name,))])

    def workers(self, workers: Iterable[StoredWorker]) -> None:
        """Write workers that are about to be started, or that have changed."""
        self._write([put_worker(worker) for worker in workers])

    def soon(self, record: StoredFlow | StoredWorker) -> None:
        """Write ``record`` with the next write or :meth:`flush`. For records that the next daemon can do without."""
        self._write_later([put_flow(record) if isinstance(record, StoredFlow) else put_worker(record)])

    def flush(self) -> None:
        """Write the statements that are not on the disk yet. Does nothing if there are none, or if the journal is
        closed."""
        if self._pending:
            self._write_now()

    def when_written(self, then: Callable[[], None]) -> None:
        """Call ``then`` once all writes up to now are on the disk; at once if they are. ``then`` is also called when
        the disk refuses them or does not answer for PATIENCE_S, because running flows go on."""
        if not self._pending or self._base is None:
            then()
            return
        waiter = _Waiter(self._count, then)
        self._waiters.append(waiter)
        self._write_now()
        if waiter in self._waiters:
            waiter.patience = self._later(PATIENCE_S, lambda: self._impatient(waiter))

    def settle(self, seconds: float) -> bool:
        """Write the statements that are not on the disk yet, and wait for that up to ``seconds``; return whether all
        were written. Call this only while nothing else runs. Statements that were not written in time are kept, and
        callers that wait are not called back here."""
        self.flush()
        return self._settle(seconds)

    @property
    def awaited(self) -> bool:
        """Whether a caller waits for a write to be on the disk."""
        return bool(self._waiters or self._asked or (self._batch is not None and self._batch.asked))

    def packed(self) -> list[tuple[str, list[Any]]]:
        """Return the statements that are not on the disk yet, for a snapshot; the next image passes them to
        :meth:`add_pending`."""
        return [(text, list(values)) for _, (text, values) in self._pending]

    def add_pending(self, packed: Iterable[tuple[str, Sequence[Any]]]) -> None:
        """Take over the statements that an earlier image has not written."""
        statements = [(text, tuple(values)) for text, values in packed]
        if statements:
            self._write_later(statements)

    def examine(self) -> None:
        """Check that the journal could be opened; changes nothing. Raises ChronetixError ``journal-unusable``."""
        try:
            base = sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True)
            try:
                check_format(base, self.path)
            finally:
                base.close()
        except sqlite3.Error as reason:
            raise error("journal-unusable", path=str(self.path), reason=str(reason)) from None

    @property
    def pending(self) -> int:
        """How many statements are not on the disk yet."""
        return len(self._pending)

    @property
    def trouble(self) -> str:
        """Why the journal is incomplete, as ``on_trouble`` was called with; "" if it is complete."""
        return self._trouble

    def close(self, seconds: float = LAST_WORDS_S) -> None:
        """Write the statements that are not on the disk yet and close; give up after ``seconds`` if the disk does not
        answer. Idempotent."""
        base, self._base = self._base, None
        if base is not None:
            self._do(partial(self._finish, base, [statement for _, statement in self._pending]))
            if not self._settle(seconds):
                self._tell(f"{self.path} does not answer; {self.pending} last changes may not be in it")

    # -- how -----------------------------------------------------------------------------------------------

    @property
    def _opened(self) -> sqlite3.Connection:
        assert self._base is not None, "the journal is not open"
        return self._base

    def _write(self, statements: list[Statement]) -> None:
        self._add(statements)
        self._write_now()

    def _write_later(self, statements: list[Statement]) -> None:
        self._add(statements)
        self._flush_later()

    def _add(self, statements: list[Statement]) -> None:
        self._pending += enumerate(statements, start=self._count + 1)
        self._count += len(statements)
        beyond = len(self._pending) - MAX_PENDING
        if beyond > 0:
            self.given_up += beyond
            first = len(self._batch.pending) if self._batch is not None else 0
            del self._pending[first : first + beyond]

    def _flush_later(self) -> None:
        if not self._awaited:
            self._awaited = True
            self._later(min(RETRY_S, FLUSH_S * 2.0 ** min(self._failures, 16)), self._in_time)

    def _in_time(self) -> None:
        """Write the statements that are not on the disk yet. If there are none and the last write failed, write a trial
        page to find out whether the disk can be written again."""
        self._awaited = False
        if self._pending or self._trouble:
            self._write_now()

    def _write_now(self) -> None:
        """Give all statements to the thread now, or when it is free."""
        if self._base is None:
            return
        if self._batch is not None:
            self._urgent = True
            return
        self._urgent = False
        asked, self._asked = self._asked, []
        self._batch = batch = _Batch([statement for _, statement in self._pending], self._count, asked)
        self._do(partial(self._write_batch, batch))

    def _write_batch(self, batch: _Batch) -> None:
        """Write a batch in one commit; if that fails, write the pending statements and then each submission by itself.
        Runs in the thread."""
        statements = [*batch.pending, *(each for asked in batch.asked for each in asked.statements)]
        failed = self._try(statements or [TRIAL])
        refused: list[Exception | None] = [None] * len(batch.asked)
        if failed is not None and batch.asked:
            failed = self._try(batch.pending)
            refused = [failed or self._try(asked.statements) for asked in batch.asked]
        self._post(partial(self._written, failed, refused))

    def _try(self, statements: list[Statement]) -> Exception | None:
        """Write statements and return the exception if that fails, else None: no exception ends the thread."""
        try:
            if statements:
                self._commit(statements)
        except Exception as reason:
            return reason
        return None

    def _commit(self, statements: list[Statement]) -> None:
        base = self._base
        if base is None:
            raise sqlite3.ProgrammingError("the journal is closed")
        with transaction(base):
            for text, values in statements:
                base.execute(text, values)

    def _written(self, failed: Exception | None, refused: list[Exception | None]) -> None:
        """Handle the outcome of a batch; runs in the loop."""
        batch, self._batch = self._batch, None
        assert batch is not None
        reason = failed or next((each for each in refused if each is not None), None)
        if failed is None:
            self._pending = [each for each in self._pending if each[0] > batch.upto]
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
        elif self._pending or self._trouble:
            self._flush_later()

    def _release(self, upto: int) -> None:
        """Call back all waiters whose statements are numbered up to ``upto``."""
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

    def _finish(self, base: sqlite3.Connection, pending: list[Statement]) -> None:
        """Write the last statements, compact the log and close. Runs in the thread, as its last work."""
        try:
            if pending:
                with transaction(base):
                    for text, values in pending:
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
