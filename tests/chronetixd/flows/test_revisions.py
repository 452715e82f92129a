"""What a flow was and is to become, in the journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chronetix.protocol import cbor
from chronetix.protocol.errors import ChronetixError
from chronetixd.flows.revisions import MAX_REVISIONS, Revisions
from chronetixd.store.journal import Journal
from chronetixd.store.journal_file import StoredFlow, StoredRevision

FLOW = StoredFlow(name="f", submitted_unix_ns=1, contract=cbor.dumps({"n": 1}), bindings={}, base_dir="/f")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal", lambda _: None, lambda *_: None)
    made.open()
    yield made
    made.close()


def accepted(refusal: ChronetixError | None) -> None:
    assert refusal is None


def plan(revisions: Revisions, flow: StoredFlow, version: int) -> StoredRevision:
    """What it is to become, in the journal; raises what that is refused with."""
    told: list[tuple[StoredRevision | None, ChronetixError | None]] = []
    revisions.plan(flow, {"n": version}, {}, "/f", {}, {}, lambda *what: told.append(what))
    ((made, refusal),) = told
    if made is None:
        assert refusal is not None
        raise refusal
    return made


def apply(revisions: Revisions, flow: StoredFlow, version: int) -> StoredFlow:
    number = plan(revisions, flow, version).number
    after = revisions.committed(number, flow)
    revisions.ended(number, "done")
    return after


def test_the_first_is_the_flow_as_it_was_submitted(journal: Journal) -> None:
    journal.submitted(FLOW, accepted)
    revisions = Revisions(journal)
    assert revisions.before() is None
    after = apply(revisions, FLOW, 2)
    assert cbor.loads(after.contract) == {"n": 2}
    found = journal.recover()
    assert found.flows == (after,)
    assert [(each.number, each.outcome, each.current) for each in found.revisions] == [
        (1, "submitted", True),
        (2, "done", True),
    ]
    again = Revisions(journal, found.revisions)
    assert again.current == 2
    back = again.before()
    assert back is not None
    assert back.contract == FLOW.contract


def test_the_last_ones_are_kept_and_what_one_can_go_back_to(journal: Journal) -> None:
    flow, revisions = FLOW, Revisions(journal)
    flow = apply(revisions, flow, 2)
    for version in range(3, 40):
        number = plan(revisions, flow, version).number
        revisions.ended(number, "rolled-back", "it was late")
    kept = [each.number for each in journal.recover().revisions]
    assert len(kept) == MAX_REVISIONS
    assert kept[:2] == [1, 2], "the one that runs, and the one before it"
    assert kept[-1] == 39
    assert [each["current"] for each in revisions.described()].count(True) == 1


@pytest.mark.parametrize("committed", [False, True])
def test_one_in_whose_middle_the_daemon_has_died_is_interrupted(committed: bool, journal: Journal) -> None:
    revisions = Revisions(journal)
    number = plan(revisions, FLOW, 2).number
    if committed:
        revisions.committed(number, FLOW)
    found = Revisions(journal, journal.recover().revisions)
    assert found.interrupted() is committed
    assert found.current == (2 if committed else 1)
    assert not found.interrupted(), "it is told once"
    assert journal.recover().revisions[-1].outcome == "interrupted"


def test_a_flow_that_is_submitted_anew_has_no_past(journal: Journal) -> None:
    apply(Revisions(journal), FLOW, 2)
    journal.submitted(FLOW, accepted)
    assert journal.recover().revisions == ()


def test_what_cannot_be_written_is_not_begun(journal: Journal, tmp_path: Path) -> None:
    revisions = Revisions(journal)
    journal._opened.execute("PRAGMA query_only = ON")
    with pytest.raises(ChronetixError) as caught:
        plan(revisions, FLOW, 2)
    assert caught.value.name == "journal-unusable"
    assert list(revisions) == []
    journal._opened.execute("PRAGMA query_only = OFF")
