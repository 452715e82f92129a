"""Lines of workers on disk: whole, in order, within their bounds, through rotation, damage and full disks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronetixd.records import logfiles as module
from chronetixd.records.log_record import LogRecord
from chronetixd.records.logfiles import LogFiles
from chronetixd.records.logs import Logs

Make = Callable[..., LogFiles]
SETTLED_S = 60.0


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, told: list[str]) -> Iterator[Make]:
    made: list[LogFiles] = []

    def one(run: int = 1, size: int = 10_000, count: int = 3) -> LogFiles:
        made.append(LogFiles(tmp_path / "logs", run, size, count, told.append))
        return made[-1]

    yield one
    for files in made:
        files.close()


def record(number: int, node: str = "n", flow: str = "f", line: str = "", **more: Any) -> LogRecord:
    return LogRecord(
        unix_ns=number, flow=flow, node=node, stream="stdout", level="info", line=line or f"line {number}", **more
    )


def lines(files: LogFiles, flow: str | None = "f", node: str | None = None) -> list[str]:
    assert files.settle(SETTLED_S)
    return [found.line for found in files.read(flow, node)]


def test_lines_come_back_as_they_were_in_the_order_of_their_time(make: Make) -> None:
    files = make()
    files.append(record(1, "a", line="\x00 \u2028 ü \udcff".encode("utf-8", "replace").decode(), fields={"k": [1]}), 0)
    files.append(record(2, "b"), 1)
    files.append(record(3, "a"), 2)
    files.append(record(4, "a", flow="other/../flow"), 3)
    assert lines(files) == ["\x00 \u2028 ü ?", "line 2", "line 3"]
    assert lines(files, node="b") == ["line 2"]
    assert lines(files, flow="other/../flow") == ["line 4"]
    assert len(lines(files, flow=None)) == 4
    assert next(files.read("f", "a")).fields == {"k": [1]}


def test_the_next_daemon_finds_them(make: Make) -> None:
    first = make(run=1)
    first.append(record(1), 0)
    first.close()
    second = make(run=2)
    second.append(record(2), 0)
    assert lines(second) == ["line 1", "line 2"]


def test_files_rotate_and_the_oldest_goes(make: Make, tmp_path: Path) -> None:
    files = make(size=10_000, count=3)
    for number in range(1000):
        files.append(record(number, line=f"{number} ".ljust(100, "x")), number)
    kept = [int(line.split()[0]) for line in lines(files)]
    assert kept == list(range(kept[0], 1000))
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "logs").iterdir()}
    assert sorted(sizes) == ["f+n.log", "f+n.log.1", "f+n.log.2"]
    assert max(sizes.values()) <= 10_000
    assert sum(sizes.values()) > 15_000


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3000), max_size=60), st.integers(1, 4))
def test_no_length_of_line_breaks_a_file(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], count: int
) -> None:
    files = LogFiles(tmp_path_factory.mktemp("any") / "logs", 1, 4096, count, pytest.fail)
    for number, length in enumerate(lengths):
        files.append(record(number, line=f"{number}:" + "y" * length), number)
    kept = [int(line.split(":")[0]) for line in lines(files)]
    files.close()
    assert kept == list(range(len(lengths) - len(kept), len(lengths)))
    assert bool(kept) == bool(lengths)


def test_damaged_lines_are_passed_over(make: Make, tmp_path: Path) -> None:
    files = make()
    files.append(record(1), 0)
    assert lines(files) == ["line 1"]
    with open(tmp_path / "logs" / "f+n.log", "ab") as file:
        file.write(b'{"unix_ns": 1}\n\xff\xfe garbage\n{"half a li')
        file.write(b"\n" + b"z" * (module.MAX_LINE_READ + 10) + b"\n")
    files.append(record(2), 1)
    assert lines(files) == ["line 1", "line 2"]


def test_a_full_disk_is_told_once_leaves_whole_lines_and_ends(
    make: Make, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make()
    files.append(record(1), 0)
    assert lines(files) == ["line 1"]
    write = os.write

    def half(fd: int, data: Any) -> int:
        """Takes some, then nothing, as a disk does that runs full."""
        if len(data) > 10:
            return write(fd, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "write", half)
        for number in (2, 3):
            files.append(record(number), number - 1)
            assert files.settle(SETTLED_S)
    assert files.unwritten == 2
    files.append(record(4), 3)
    assert lines(files) == ["line 1", "line 4"]
    assert ["No space left" in text for text in told] == [True, False]
    assert told[-1] == ""


def test_what_a_slow_disk_does_not_take_is_counted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogFiles, "_write_all", lambda self: None)
    files = make()
    for number in range(10):
        files.append(record(number), number)
    for room, left_out in ((files._queued, 90), (files._queued - 1, 91)):
        monkeypatch.setattr(module, "MAX_QUEUED", room)
        files = make()
        for number in range(100):
            files.append(record(number), number)
        assert files.unwritten == left_out


def test_files_of_nodes_not_written_for_longest_make_room(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_NODES", 2)
    files = make()
    for number in range(4):
        files.append(record(number, f"n{number}"), number)
        assert files.settle(SETTLED_S)
        os.utime(tmp_path / "logs" / f"f+n{number}.log", ns=(number, number))
    assert sorted(file.name for file in (tmp_path / "logs").iterdir()) == ["f+n2.log", "f+n3.log"]


def test_a_forgotten_flow_leaves_no_file_and_none_at_all_can_be_kept(make: Make, tmp_path: Path) -> None:
    files = make()
    files.append(record(1), 0)
    assert lines(files) == ["line 1"]
    files.forget("f", ["n", "other"])
    assert files.settle(30)
    assert list((tmp_path / "logs").iterdir()) == []
    none = make(count=0)
    none.append(record(1), 0)
    assert not none.on
    assert list(none.read(None, None)) == []


def test_a_line_is_either_in_memory_or_among_the_older_ones(make: Make) -> None:
    before = make(run=1)
    Logs(files=before).printed("f", "n", 1, "stdout", "of the last run")
    before.close()
    files = make(run=2)
    logs = Logs(capacity=3, files=files)
    for number in range(7):
        logs.printed("f", "n", 1, "stdout", f"{number}")
    assert files.settle(SETTLED_S)
    older = [found.line for found in logs.older("f", "n")]
    assert older == ["of the last run", "0", "1", "2", "3"]
    assert [found.line for found in logs.feed.recent(lambda _: True)] == ["4", "5", "6"]
    assert type(next(logs.older(None, None))) is LogRecord
