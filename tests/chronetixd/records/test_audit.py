"""The audit log keeps every record that the disk takes, counts those it does not take, and stays within its bounds."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chronetixd.core.access import Peer
from chronetixd.records import audit as audits
from chronetixd.records.audit import FILE, FILES, REFUSAL_BURST, Audit, files, tail
from chronetixd.records.events import Events

ANN = Peer(pid=42, uid=1001, gid=100, program="chronetixctl")
BOB = Peer(pid=43, uid=1002, gid=100)


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def audit(loop: Any, tmp_path: Path, events: Events) -> Iterator[Audit]:
    opened = Audit(loop, tmp_path, 1 << 20, events)
    opened.open()
    yield opened
    opened.close()


def kinds(events: Events) -> list[str]:
    return [event.kind for event in events.feed.recent(lambda _: True)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_a_call_has_two_lines_that_say_who_what_and_how_it_ended(audit: Audit, tmp_path: Path) -> None:
    number = audit.begun(ANN, "submit", {"flow": {"name": "f", "manifests": []}, "base_dir": "/srv", "wait": "running"})
    began, *none = lines(tmp_path)
    assert none == []
    audit.ended(ANN, "submit", number, "flow-invalid", 5000)
    assert {key: began[key] for key in ("uid", "gid", "pid", "program", "verb", "outcome")} == {
        "uid": 1001,
        "gid": 100,
        "pid": 42,
        "program": "chronetixctl",
        "verb": "submit",
        "outcome": "begun",
    }
    assert began["about"] == {"base_dir": "/srv", "name": "f"}
    ended = lines(tmp_path)[1]
    assert (ended["call"], ended["outcome"], ended["took_ns"]) == (began["call"], "flow-invalid", 5000)


def test_nobody_else_can_read_it(audit: Audit, tmp_path: Path) -> None:
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_what_a_client_sends_is_cut_and_cannot_make_lines(audit: Audit, tmp_path: Path) -> None:
    audit.begun(ANN, "x" * 10_000, {"flow": "a\nb" * 10_000})
    (line,) = lines(tmp_path)
    assert (len(line["verb"]), len(line["about"]["flow"])) == (audits.MAX_TEXT, audits.MAX_TEXT)


def test_the_next_daemon_has_the_last_records_at_hand(audit: Audit, loop: Any, tmp_path: Path, events: Events) -> None:
    audit.begun(ANN, "stop", {"flow": "f"})
    audit.close()
    again = Audit(loop, tmp_path, 1 << 20, events)
    again.open()
    again.begun(BOB, "stop", {"flow": "g"})
    again.close()
    assert [record.uid for record in again.feed.recent(lambda _: True)] == [1001, 1002]
    assert [record.uid for record in tail(tmp_path / FILE, 10)] == [1001, 1002]


def test_a_line_that_a_crash_tore_spoils_no_other(loop: Any, tmp_path: Path, events: Events) -> None:
    whole = Audit(loop, tmp_path, 1 << 20, events)
    whole.open()
    whole.begun(ANN, "stop", {})
    whole.close()
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"unix_ns": 1, "uid"')
    again = Audit(loop, tmp_path, 1 << 20, events)
    again.open()
    again.begun(BOB, "stop", {})
    again.close()
    assert [record.uid for record in tail(tmp_path / FILE, 10)] == [1001, 1002]


def test_it_takes_no_more_of_the_disk_than_allowed_and_keeps_the_newest(
    loop: Any, tmp_path: Path, events: Events
) -> None:
    audit = Audit(loop, tmp_path, 64 * 1024, events)
    audit.open()
    for _ in range(1000):
        audit.begun(ANN, "stop", {"flow": "f" * 200})
    audit.close()
    kept = files(tmp_path / FILE)
    assert len(kept) == FILES
    assert sum(path.stat().st_size for path in kept) <= 64 * 1024
    numbers = [record.call for record in tail(tmp_path / FILE, 10_000)]
    assert numbers == list(range(numbers[0], 1001))


class Full:
    """A disk that takes ``room`` more bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write = os.write
        monkeypatch.setattr(audits.os, "write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        taken = self._write(fd, data[: self.room])
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_full_disk_stops_nothing_and_is_told(
    room: int, audit: Audit, events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit.begun(ANN, "stop", {})
    disk = Full(monkeypatch, room)
    for _ in range(3):
        audit.begun(ANN, "stop", {})
    assert audit.lost == 3
    assert kinds(events) == ["audit-lost"]
    disk.room = 1 << 20
    audit.begun(BOB, "stop", {})
    assert kinds(events) == ["audit-lost", "audit-resumed"]
    assert [(line["uid"], line.get("lost", 0)) for line in lines(tmp_path)] == [(1001, 0), (1002, 3)]


def test_a_disk_that_is_full_while_files_are_rotated_loses_no_written_record(
    loop: Any, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit(loop, tmp_path, 64 * 1024, events)
    audit.open()
    opened = os.open

    def full(path: Any, *args: Any) -> int:
        raise OSError(28, "No space left on device")

    while not (tmp_path / f"{FILE}.1").exists():
        with monkeypatch.context() as patched:
            patched.setattr(audits.os, "open", full)
            audit.begun(ANN, "stop", {"flow": "f" * 200})
    assert os.open is opened
    written = audit.begun(ANN, "stop", {}) - 2
    assert kinds(events) == ["audit-lost", "audit-resumed"]
    audit.close()
    assert [record.call for record in tail(tmp_path / FILE, 10_000)] == [*range(1, written + 1), written + 2]


def test_refusals_of_one_user_cannot_push_out_what_others_did(audit: Audit, tmp_path: Path) -> None:
    for _ in range(1000):
        audit.refused(BOB, "connect", "not-allowed")
    audit.refused(ANN, "connect", "not-allowed")
    told = [line["uid"] for line in lines(tmp_path)]
    assert REFUSAL_BURST <= told.count(1002) < 100
    assert told[-1] == 1001


def test_refusals_that_were_left_out_are_counted(audit: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0]
    monkeypatch.setattr(audits.time, "monotonic_ns", lambda: now[0])
    for _ in range(25):
        audit.refused(BOB, "connect", "not-allowed")
    now[0] = 2_000_000_000
    audit.refused(BOB, "connect", "not-allowed")
    assert lines(tmp_path)[-1]["suppressed"] == 5


def test_refusals_of_many_users_cost_bounded_memory(audit: Audit) -> None:
    for uid in range(3 * audits.MAX_REFUSED_USERS):
        audit.refused(Peer(pid=1, uid=uid, gid=0), "connect", "not-allowed")
    assert len(audit._refusals) <= audits.MAX_REFUSED_USERS + 1


def test_a_symlink_in_its_place_is_not_followed(loop: Any, tmp_path: Path, events: Events) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(Exception, match="state_dir"):
        Audit(loop, tmp_path, 1 << 20, events).open()
    assert (tmp_path / "precious").read_text() == "mine"


def test_records_are_synced_without_the_loop_waiting_for_it(
    audit: Audit, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(audits, "SYNC_EVERY_S", 0)
    monkeypatch.setattr(audits.os, "fdatasync", synced.append)

    async def turns() -> None:
        audit.begun(ANN, "stop", {})
        while not synced or audit._syncing:
            await asyncio.sleep(0)

    run(turns())
    assert len(synced) == 1
