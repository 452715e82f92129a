"""``audit`` shows the daemon's records, or those of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from chronetixd.records.audit import Record

ITEM = {"unix_ns": 0, "uid": 0, "gid": 0, "pid": 7, "program": "chronetixctl", "verb": "stop", "outcome": "ok"}


def test_records_are_shown_as_lines_for_people(daemon: Any, ctl: Any) -> None:
    daemon.answers["audit"] = [ITEM | {"about": {"flow": "f\x1b[2J"}, "took_ns": 2_000_000, "suppressed": 3}, {}]
    shown = ctl("audit", "--user", "root", "--verb", "stop")
    assert "root chronetixctl[7] stop flow=f\\x1b[2J: ok (2ms)" in shown.out
    assert "3 refusals before this left out" in shown.out
    assert daemon.calls == [("audit", {"uid": 0, "verb": "stop"})]


def test_a_file_is_read_without_a_daemon(ctl: Any, tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    records = [Record(unix_ns=at, uid=at % 2, gid=0, pid=7, verb="stop", outcome="ok") for at in range(6)]
    older, newer = records[:3], records[3:]
    log.with_name("audit.log.1").write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in older))
    log.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in newer) + b'{"torn')
    shown = ctl("audit", "--file", str(log), "--user", "1", "--tail", "2", "-o", "json")
    assert [json.loads(line)["unix_ns"] for line in shown.out.splitlines()] == [3, 5]


def test_a_user_that_nobody_is_and_a_file_that_is_followed_are_wrong_usage(ctl: Any, tmp_path: Path) -> None:
    (tmp_path / "audit.log").touch()
    assert ctl("audit", "--user", "no-such-user").code == 2
    assert ctl("audit", "--file", str(tmp_path / "audit.log"), "-f").code == 2


def test_a_file_without_any_record_is_no_audit_log(ctl: Any, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("nothing\nof the kind\n")
    ended = ctl("audit", "--file", str(tmp_path / "notes"))
    assert (ended.code != 0, "is no audit log" in ended.err) == (True, True)
