"""The journal's file: what is written comes back, damage is named, and a later release's file is left alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.errors import ChronetixError
from chronetixd.store import journal_file
from chronetixd.store.journal_file import FORMAT, Statement, StoredFlow, StoredRevision, StoredWorker

Open = Callable[[], sqlite3.Connection]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the one file of this test, as often as it is called."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(journal_file.open_file(tmp_path / "journal")))


def write(base: sqlite3.Connection, *statements: Statement) -> None:
    with journal_file.transaction(base):
        for text, values in statements:
            base.execute(text, values)


def flow(name: str, unix_ns: int = 1) -> StoredFlow:
    return StoredFlow(name=name, submitted_unix_ns=unix_ns, contract=b"\xa0", bindings={"a": "b"}, base_dir="/f")


def worker(node: str, incarnation: int = 0) -> StoredWorker:
    return StoredWorker(flow="f", node=node, incarnation=incarnation, phase="born", token="t", boot="b", pid=9)


def revision(number: int) -> StoredRevision:
    return StoredRevision(
        flow="f",
        number=number,
        unix_ns=1,
        contract=b"\xa0",
        bindings={},
        base_dir="/f",
        outcome="submitted",
        current=True,
        change={"nodes": ["a"]},
    )


@given(
    flow_=st.builds(
        StoredFlow,
        name=st.text(min_size=1, max_size=9),
        submitted_unix_ns=st.integers(0, 1 << 62),
        contract=st.binary(max_size=99),
        bindings=st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
        base_dir=st.text(max_size=9),
        wanted=st.sampled_from(["running", "stopped"]),
        reason=st.text(max_size=9),
    )
)
def test_any_flow_comes_back_as_it_was(flow_: StoredFlow, tmp_path_factory: pytest.TempPathFactory) -> None:
    with closing(journal_file.open_file(tmp_path_factory.mktemp("journal") / "journal")) as base:
        write(base, journal_file.put_flow(flow_))
        assert journal_file.read(base).flows == (flow_,)


def test_a_statement_that_is_executed_again_changes_nothing(opened: Open) -> None:
    base, put = opened(), journal_file.put_worker(worker("a"))
    write(base, put)
    write(base, put, journal_file.put_revision(revision(1)), journal_file.put_revision(revision(1)))
    found = journal_file.read(base)
    assert (found.workers, found.revisions) == ((worker("a"),), (revision(1),))


def test_the_history_of_a_flow_is_its_workers_and_revisions_and_not_the_flow(opened: Open) -> None:
    base = opened()
    write(base, journal_file.put_flow(flow("f")), journal_file.put_worker(worker("a", 3)))
    write(base, journal_file.put_revision(revision(1)))
    write(base, *journal_file.forget_history("other"))
    assert len(journal_file.read(base).workers) == 1
    write(base, *journal_file.forget_history("f"))
    found = journal_file.read(base)
    assert (found.flows, found.workers, found.revisions) == ((flow("f"),), (), ())


def test_a_transaction_that_fails_writes_nothing(opened: Open) -> None:
    base = opened()
    with pytest.raises(sqlite3.OperationalError):
        write(base, journal_file.put_flow(flow("f")), ("INSERT INTO nowhere VALUES (1)", ()))
    assert not base.in_transaction
    assert journal_file.read(base).flows == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [("row = X'A0'", "its checksum is wrong"), ("row = X'A0', crc = 81022053", "missing required field")],
)
def test_a_row_that_is_damaged_is_left_out_and_named(opened: Open, change: str, why: str) -> None:
    base = opened()
    write(base, journal_file.put_flow(flow("bad")), journal_file.put_flow(flow("good", 2)))
    base.execute(f"UPDATE flow SET {change} WHERE name = 'bad'")
    found = journal_file.read(base)
    assert found.flows == (flow("good", 2),)
    (corrupt,) = found.corrupt
    assert corrupt.startswith("bad: ")
    assert why in corrupt


def test_a_file_of_a_later_release_is_refused_and_not_changed(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    base = opened()
    base.execute("DROP TABLE revision")
    base.execute(f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(ChronetixError, match=f"it has format {FORMAT + 1}"):
        journal_file.open_file(path)
    assert base.execute("SELECT name FROM sqlite_master WHERE name = 'revision'").fetchall() == []
