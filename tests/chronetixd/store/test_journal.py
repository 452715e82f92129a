"""The journal: what was written is there again, whatever happened to the process, the disk and the file."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixd.store.journal import FLUSH_S, MAX_PENDING, PATIENCE_S, RETRY_S, Journal
from chronetixd.store.journal_file import StoredFlow, StoredWorker

Open = Callable[[], Journal]


@pytest.fixture
def told() -> list[str]:
    """What the journal said of its troubles."""
    return []


@pytest.fixture
def opened(tmp_path: Path, told: list[str]) -> Iterator[Open]:
    """Opens the one journal of this test, as often as it likes."""
    made: list[Journal] = []

    def open_it() -> Journal:
        journal = Journal(tmp_path / "journal", told.append, never)
        journal.open()
        made.append(journal)
        return journal

    yield open_it
    for journal in made:
        journal.close()


def submit(journal: Journal, flow: StoredFlow) -> None:
    """Submit it; raises what it is refused with."""
    refusals: list[ChronetixError | None] = []
    journal.submitted(flow, refusals.append)
    (refusal,) = refusals
    if refusal is not None:
        raise refusal


def never(seconds: float, call: Callable[[], None]) -> None:
    """For a journal whose owner flushes it."""


def flow(name: str = "squares", **fields: object) -> StoredFlow:
    plain = StoredFlow(name=name, submitted_unix_ns=1, contract=b"\xa0", bindings={"a": "b"}, base_dir="/f")
    return msgspec.structs.replace(plain, **fields)


def life(node: str = "sink", incarnation: int = 0, **fields: object) -> StoredWorker:
    plain = StoredWorker(flow="squares", node=node, incarnation=incarnation, phase="intended", token="t", boot="b")
    return msgspec.structs.replace(plain, **fields)


class TestWhatWasWritten:
    def test_a_new_journal_is_empty(self, opened: Open) -> None:
        found = opened().recover()
        assert (found.flows, found.workers, found.corrupt) == ((), (), ())

    def test_flows_come_back_in_the_order_of_submission(self, opened: Open) -> None:
        journal = opened()
        submit(journal, flow("later", submitted_unix_ns=2))
        submit(journal, flow("first"))
        journal.close()
        assert opened().recover().flows == (flow("first"), flow("later", submitted_unix_ns=2))

    def test_only_the_owner_can_read_it(self, opened: Open) -> None:
        assert opened().path.stat().st_mode & 0o777 == 0o600

    def test_a_change_replaces_what_was_there(self, opened: Open) -> None:
        journal = opened()
        submit(journal, flow())
        journal.flow(flow(wanted="stopped", state="stopped", reason="it ended"))
        assert opened().recover().flows == (flow(wanted="stopped", state="stopped", reason="it ended"),)

    def test_a_flow_that_takes_an_old_ones_name_has_none_of_its_lives(self, opened: Open) -> None:
        journal = opened()
        submit(journal, flow())
        journal.workers([life()])
        submit(journal, flow(submitted_unix_ns=5))
        assert opened().recover().workers == ()

    def test_a_forgotten_flow_is_gone_with_its_lives(self, opened: Open) -> None:
        journal = opened()
        submit(journal, flow())
        journal.workers([life(), life("map", 3)])
        journal.forgotten("squares")
        found = opened().recover()
        assert (found.flows, found.workers) == ((), ())

    def test_of_each_node_the_last_life_counts(self, opened: Open) -> None:
        journal = opened()
        journal.workers([life(), life("map")])
        journal.workers([life(phase="gone", pid=7)])
        journal.workers([life(incarnation=1)])
        assert set(opened().recover().workers) == {life("map"), life(incarnation=1)}

    def test_what_may_come_soon_is_written_with_the_next_write(self, opened: Open) -> None:
        journal = opened()
        journal.soon(life(phase="born", pid=9, started_ticks=3))
        assert opened().recover().workers == ()
        journal.flow(flow())
        assert opened().recover().workers == (life(phase="born", pid=9, started_ticks=3),)

    def test_what_is_owed_is_written_at_the_end(self, opened: Open) -> None:
        journal = opened()
        journal.soon(life())
        assert journal.pending == 1
        journal.close()
        assert opened().recover().workers == (life(),)


class TestKilled:
    PROGRAM = """
import os, signal, sys
from pathlib import Path
from chronetixd.store.journal import Journal
from chronetixd.store.journal_file import StoredFlow, StoredWorker
journal = Journal(Path(sys.argv[1]), print, lambda seconds, call: None)
journal.open()
flow = StoredFlow(name="f", submitted_unix_ns=1, contract=b"", bindings={}, base_dir="")
journal.submitted(flow, lambda trouble: print(trouble, flush=True))
n = 0
while True:
    n += 1
    journal.workers([StoredWorker(flow="f", node=f"{node}{n}", incarnation=n, phase="intended", token="t", boot="b")
                   for node in ("a", "b", "c")])
    os.write(1, b"%d\\n" % n)
"""

    def test_after_kill_9_everything_that_was_acknowledged_is_there_and_nothing_is_half(self, opened: Open) -> None:
        path = opened().path
        with subprocess.Popen([sys.executable, "-c", self.PROGRAM, path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"None\n"
            for _ in range(40):
                acknowledged = int(process.stdout.readline())
            process.kill()
            acknowledged = max([acknowledged, *map(int, process.stdout.read().splitlines())])
        lives = opened().recover().workers
        by_incarnation = {n: sorted(each.node[0] for each in lives if each.incarnation == n) for n in range(1, 10_000)}
        assert all(by_incarnation[n] == ["a", "b", "c"] for n in range(1, acknowledged + 1))
        assert all(nodes in ([], ["a", "b", "c"]) for nodes in by_incarnation.values())

    @pytest.mark.parametrize("cut", [1, 100, 4000, 5000])
    def test_a_torn_tail_is_cut_off(self, opened: Open, tmp_path: Path, told: list[str], cut: int) -> None:
        journal = opened()
        submit(journal, flow())
        journal.workers([life()])
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("journal", "journal-wal"):
            (copy / name).write_bytes((tmp_path / name).read_bytes())
        os.truncate(copy / "journal-wal", (copy / "journal-wal").stat().st_size - cut)
        survivor = Journal(copy / "journal", told.append, never)
        survivor.open()
        found = survivor.recover()
        survivor.close()
        assert found.flows in ((), (flow(),))
        assert found.workers == ()
        assert found.corrupt == ()
        assert told == []


class TestDamaged:
    def test_a_file_that_is_no_journal_is_put_aside_and_told(
        self, tmp_path: Path, opened: Open, told: list[str]
    ) -> None:
        (tmp_path / "journal").write_bytes(b"no journal at all " * 400)
        assert opened().recover().flows == ()
        assert len(told) == 1
        assert "damaged" in told[0]
        assert len(list(tmp_path.glob("journal.damaged-*"))) == 1

    def test_a_folder_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ChronetixError, match="unable to open") as caught:
            Journal(tmp_path / "nowhere" / "journal", pytest.fail, never).open()
        assert caught.value.name == "journal-unusable"


class TestDiskFull:
    """``max_page_count`` makes SQLite answer exactly as it does on a full disk."""

    @staticmethod
    def fill(journal: Journal) -> None:
        (pages,) = journal._opened.execute("PRAGMA page_count").fetchone()
        journal._opened.execute(f"PRAGMA max_page_count = {pages}")

    @staticmethod
    def make_room(journal: Journal) -> None:
        journal._opened.execute("PRAGMA max_page_count = 1000000")

    BIG = b"x" * 50_000

    def test_a_submission_is_refused_and_leaves_nothing(self, opened: Open, told: list[str]) -> None:
        journal = opened()
        self.fill(journal)
        with pytest.raises(ChronetixError, match="full"):
            submit(journal, flow(contract=self.BIG))
        assert len(told) == 1
        self.make_room(journal)
        journal.flush()
        assert opened().recover().flows == ()

    def test_a_change_goes_on_is_told_once_and_is_written_when_there_is_room(
        self, opened: Open, told: list[str]
    ) -> None:
        journal = opened()
        submit(journal, flow())
        self.fill(journal)
        journal.flow(flow(contract=self.BIG, state="running"))
        journal.flow(flow(contract=self.BIG, state="stopped"))
        assert [("full" in line) for line in told] == [True]
        assert journal.pending == 2
        self.make_room(journal)
        journal.workers([life()])
        assert told[1:] == [""]
        found = opened().recover()
        assert [each.state for each in found.flows] == ["stopped"]
        assert found.workers == (life(),)

    def test_it_tries_again_by_itself_soon_and_then_less_and_less_often(self, tmp_path: Path, told: list[str]) -> None:
        calls: list[tuple[float, Callable[[], None]]] = []
        journal = Journal(tmp_path / "journal", told.append, lambda seconds, call: calls.append((seconds, call)))
        journal.open()
        self.fill(journal)
        journal.flow(flow(contract=self.BIG))
        waited = []
        for _ in range(8):
            seconds, call = calls.pop()
            waited.append(seconds)
            call()
        assert waited == [0.2, 0.4, 0.8, 1.6, 3.2, RETRY_S, RETRY_S, RETRY_S]
        assert "full" in journal.trouble
        self.make_room(journal)
        calls.pop()[1]()
        assert (journal.pending, journal.trouble, told[1:], calls) == (0, "", [""], [])
        journal.soon(life())
        assert calls.pop()[0] == FLUSH_S
        journal.close()

    def test_where_only_a_submission_was_refused_it_lacks_nothing_and_soon_says_so(
        self, tmp_path: Path, told: list[str]
    ) -> None:
        calls: list[Callable[[], None]] = []
        journal = Journal(tmp_path / "journal", told.append, lambda _, call: calls.append(call))
        journal.open()
        self.fill(journal)
        with pytest.raises(ChronetixError, match="full"):
            submit(journal, flow(contract=self.BIG))
        assert journal.trouble
        calls.pop()()
        assert (journal.trouble, told[1:], calls) == ("", [""], [])
        journal.close()

    def test_it_is_not_complete_before_a_trial_was_written(self, tmp_path: Path, told: list[str]) -> None:
        calls: list[Callable[[], None]] = []
        journal = Journal(tmp_path / "journal", told.append, lambda _, call: calls.append(call))
        journal.open()
        with closing(sqlite3.connect(journal.path, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            with pytest.raises(ChronetixError, match="locked"):
                submit(journal, flow())
            calls.pop()()
            assert ("locked" in journal.trouble, len(told)) == (True, 1)
            lock.execute("ROLLBACK")
        calls.pop()()
        assert (journal.trouble, told[1:], calls) == ("", [""], [])
        journal.close()

    def test_what_is_owed_is_bounded_and_what_is_given_up_is_counted(self, opened: Open) -> None:
        journal = opened()
        for n in range(MAX_PENDING + 5):
            journal.soon(life(f"n{n}"))
        assert (journal.pending, journal.given_up) == (MAX_PENDING, 5)


class Disk:
    """A disk that answers when the test says so, and the loop's later and soon."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> DiskTimer:
        """The loop's."""
        self.timers.append((seconds, call))
        return DiskTimer(self, (seconds, call))

    def answer(self) -> None:
        """One batch is written, or fails."""
        self.work.pop(0)()

    def settle(self, _seconds: float) -> bool:
        """All that is to be done is."""
        while self.work:
            self.answer()
        return True

    def pass_time(self) -> None:
        """All timers are due."""
        due, self.timers = self.timers, []
        for _, call in due:
            call()


@dataclass(frozen=True)
class DiskTimer:
    """One that is not due yet."""

    disk: Disk
    entry: tuple[float, Callable[[], None]]

    def cancel(self) -> None:
        self.disk.timers.remove(self.entry)


class TestADiskThatTakesItsTime:
    @pytest.fixture
    def disk(self) -> Disk:
        return Disk()

    @pytest.fixture
    def journal(self, tmp_path: Path, told: list[str], disk: Disk) -> Iterator[Journal]:
        journal = Journal(
            tmp_path / "journal",
            told.append,
            disk.later,
            disk.work.append,
            settle=disk.settle,
        )
        journal.open()
        yield journal
        journal.close()

    def test_nobody_waits_but_who_submits(self, journal: Journal, disk: Disk) -> None:
        said: list[ChronetixError | None] = []
        journal.submitted(flow(), said.append)
        journal.workers([life()])
        journal.flow(flow("other"))
        assert (said, journal.awaited) == ([], True)
        disk.answer()
        assert said == [None]
        assert not journal.awaited

    def test_no_timer_is_left_when_it_is_written(self, journal: Journal, disk: Disk) -> None:
        written: list[int] = []
        journal.flow(flow())
        journal.when_written(lambda: written.append(1))
        patience = [seconds for seconds, _ in disk.timers].count(PATIENCE_S)
        disk.answer()
        assert (written, patience) == ([1], 1)
        assert PATIENCE_S not in [seconds for seconds, _ in disk.timers]

    def test_what_comes_while_it_is_busy_is_written_together_and_in_order(self, journal: Journal, disk: Disk) -> None:
        written: list[int] = []
        journal.flow(flow(state="starting"))
        for state in ("running", "draining", "stopped"):
            journal.flow(flow(state=state))
            journal.when_written(lambda: written.append(1))
        assert len(disk.work) == 1
        disk.answer()
        assert (written, len(disk.work)) == ([], 1)
        disk.answer()
        assert (written, disk.work, journal.pending) == ([1, 1, 1], [], 0)
        assert [each.state for each in journal.recover().flows] == ["stopped"]

    def test_what_waits_goes_on_after_a_while_and_a_submission_does_not(
        self, journal: Journal, disk: Disk, told: list[str]
    ) -> None:
        said: list[ChronetixError | None] = []
        went_on: list[int] = []
        journal.submitted(flow(), said.append)
        journal.workers([life()])
        journal.when_written(lambda: went_on.append(1))
        assert not went_on
        disk.pass_time()
        assert (went_on, said) == ([1], [])
        assert len(told) == 1
        assert "has not answered" in told[0]
        disk.answer()
        disk.answer()
        assert (went_on, said, told[1:]) == ([1], [None], [""])

    def test_a_submission_that_fails_takes_none_along(self, journal: Journal, disk: Disk) -> None:
        TestDiskFull.fill(journal)
        said: list[str] = []
        journal.workers([life()])
        journal.submitted(flow("big", contract=TestDiskFull.BIG), lambda refusal: said.append(f"big {refusal}"))
        journal.submitted(flow("small"), lambda refusal: said.append(f"small {refusal}"))
        disk.answer()
        disk.answer()
        assert said[0].startswith("big the journal")
        assert said[1] == "small None"
        assert [each.name for each in journal.recover().flows] == ["small"]
        TestDiskFull.make_room(journal)

    def test_what_is_under_way_is_handed_over_too(self, journal: Journal, disk: Disk) -> None:
        journal.flow(flow())
        journal.soon(life())
        assert len(journal.packed()) == 2
        disk.answer()
        assert len(journal.packed()) == 1
