"""What is remembered of exits: bounded, through damage and full disks, and whether memory was the cause."""

from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetixd.core.death import KEPT, MAX_STDERR, ExitRecord, HeldFrames, last_lines, out_of_memory
from chronetixd.core.reason import explain
from chronetixd.core.worker import Exit
from chronetixd.records import exits as module
from chronetixd.records.exits import ExitRecords
from chronetixd.workers import sandbox


def death(number: int, flow: str = "f", node: str = "n", **more: Any) -> ExitRecord:
    return ExitRecord(flow=flow, node=node, incarnation=number, unix_ns=number, pid=number, code=1, **more)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def deaths(tmp_path: Path, told: list[str]) -> ExitRecords:
    return ExitRecords(tmp_path / "deaths", told.append, told.append)


def again(tmp_path: Path, told: list[str]) -> ExitRecords:
    """What the next daemon finds."""
    return ExitRecords(tmp_path / "deaths", told.append, told.append)


def test_the_last_ones_of_each_node_are_there_for_the_next_daemon(
    deaths: ExitRecords, tmp_path: Path, told: list[str]
) -> None:
    held = [HeldFrames(route="r", count=2, sequences=[4, 5])]
    for number in range(KEPT + 5):
        deaths.add(death(number, stderr=[f"line {number}"], held=held))
    deaths.add(death(1, node="other"))
    kept = again(tmp_path, told).of("f", "n")
    assert [each.pid for each in kept] == list(range(5, KEPT + 5))
    assert kept[-1] == death(KEPT + 4, stderr=[f"line {KEPT + 4}"], held=held)
    assert [each.pid for each in again(tmp_path, told).of("f", "other")] == [1]
    assert again(tmp_path, told).of("g", "n") == []
    assert told == []


@given(st.lists(st.tuples(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300)), max_size=5))
def test_any_names_have_files_of_their_own(names: list[tuple[str, str]]) -> None:
    deaths = ExitRecords(Path("/nowhere/deaths"), lambda _: None)
    files = {deaths._file(flow, node) for flow, node in set(names)}
    assert len(files) == len(set(names))
    assert all(file.parent == Path("/nowhere/deaths") and len(file.name.encode()) <= 255 for file in files)


def test_a_damaged_file_counts_as_far_as_it_is_sound(deaths: ExitRecords, tmp_path: Path, told: list[str]) -> None:
    for number in range(3):
        deaths.add(death(number))
    (file,) = (tmp_path / "deaths").iterdir()
    whole = file.read_bytes()
    third = len(whole) // 3
    file.write_bytes(whole[: 2 * third] + bytes([whole[2 * third] ^ 1]) + whole[2 * third + 1 :])
    assert [each.pid for each in again(tmp_path, told).of("f", "n")] == [0, 1]
    assert len(told) == 1
    assert "damaged" in told[0]


@given(st.data())
def test_no_bytes_break_it(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder, told = tmp_path_factory.mktemp("any"), list[str]()
    deaths = ExitRecords(folder / "deaths", told.append, told.append)
    deaths.add(death(1, stderr=["x"]))
    deaths.add(death(2))
    (file,) = (folder / "deaths").iterdir()
    whole = bytearray(file.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    assert len(deaths.of("f", "n")) <= 2
    deaths.add(death(3))
    assert deaths.of("f", "n")[-1] == death(3)


def test_a_full_disk_is_told_once_and_costs_no_death(
    deaths: ExitRecords, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths.add(death(0))

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", full)
        for number in range(1, KEPT + 9):
            deaths.add(death(number))
            deaths.add(death(number, node="other"))
        assert [each.pid for each in deaths.of("f", "n")] == list(range(9, KEPT + 9))
    assert len(told) == 1
    assert "No space left" in told[0]
    deaths.add(death(99))
    assert told[1:] == [""]
    after = again(tmp_path, told)
    assert after.of("f", "n")[-1].pid == 99
    assert after.of("f", "other")[-1].pid == KEPT + 8


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "deaths").write_text("")
    deaths = again(tmp_path, told)
    deaths.add(death(1))
    deaths.add(death(2))
    assert [each.pid for each in deaths.of("f", "n")] == [1, 2]
    assert sum("cannot be written" in text for text in told) == 1


def test_the_files_not_written_for_longest_make_room(
    deaths: ExitRecords, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 3)
    for number in range(6):
        deaths.add(death(number, node=f"n{number}"))
        file = deaths._file("f", f"n{number}")
        module.os.utime(file, ns=(number, number))
    assert sorted(file.name for file in (tmp_path / "deaths").iterdir()) == ["f+n3", "f+n4", "f+n5"]


def test_a_flow_that_is_forgotten_leaves_no_file(deaths: ExitRecords, tmp_path: Path) -> None:
    deaths.add(death(1))
    deaths.forget("f", ["n", "never died"])
    assert list((tmp_path / "deaths").iterdir()) == []


@pytest.mark.parametrize(
    ("exit", "sent", "own", "before", "now", "verdict"),
    [
        (Exit(code=1), "", 5, 0, 9, "no"),
        (Exit(signal="SIGSEGV"), "", None, 0, 9, "no"),
        (Exit(signal="SIGKILL"), "SIGKILL", None, 0, 9, "no"),
        (Exit(signal="SIGKILL"), "SIGTERM", 1, 0, 0, "yes"),
        (Exit(signal="SIGKILL"), "", 1, None, None, "yes"),
        (Exit(signal="SIGKILL"), "", 0, 0, 9, "no"),
        (Exit(signal="SIGKILL"), "", None, 9, 9, "no"),
        (Exit(signal="SIGKILL"), "", None, 8, 9, "suspected"),
        (Exit(signal="SIGKILL"), "", None, None, 9, "unknown"),
        (Exit(signal="SIGKILL"), "", None, 8, None, "unknown"),
    ],
)
def test_want_of_memory_is_told_from_other_kills(
    exit: Exit, sent: str, own: int | None, before: int | None, now: int | None, verdict: str
) -> None:
    assert out_of_memory(exit, sent, own, before, now) == verdict


def test_workers_that_are_born_together_share_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(sandbox.time, "monotonic", lambda: clock[0])
    (tmp_path / "vmstat").write_text("oom_kill 1\n")
    kills = sandbox.KillCount(tmp_path / "vmstat")
    assert kills.recent() == 1
    (tmp_path / "vmstat").write_text("oom_kill 2\n")
    clock[0] += sandbox.RECENT_S
    assert kills.recent() == 1
    clock[0] += sandbox.RECENT_S
    assert kills.recent() == 2
    (tmp_path / "vmstat").write_text("nothing\n")
    assert kills.now() is None
    assert kills.recent() is None


def test_an_exit_is_explained_in_one_line() -> None:
    one = [HeldFrames(route="a", count=1, sequences=[7]), HeldFrames(route="b", count=3, sequences=[1, 2, 3])]
    text = explain(Exit(signal="SIGKILL"), death(1, out_of_memory="yes", held=one))
    assert text.startswith("was killed by SIGKILL, because its memory ran out: it needs a larger")
    assert text.endswith("; it held frame 7 of route a, 3 frames (first 1) of route b")
    assert explain(Exit(code=3), death(1)) == "exited with code 3"


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ([MAX_STDERR], [MAX_STDERR]),
        ([MAX_STDERR + 1], [MAX_STDERR]),
        ([10, MAX_STDERR], [MAX_STDERR]),
        ([10, MAX_STDERR - 1], [MAX_STDERR - 1]),
        ([10, MAX_STDERR - 2], [1, MAX_STDERR - 2]),
        ([10, MAX_STDERR - 11], [10, MAX_STDERR - 11]),
        ([10, 5, MAX_STDERR - 17], [10, 5, MAX_STDERR - 17]),
    ],
)
def test_last_words_fill_their_room_with_a_line_break_after_each(lines: list[int], kept: list[int]) -> None:
    assert [len(line) for line in last_lines(["x" * length for length in lines])] == kept


@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=3 * MAX_STDERR), max_size=20))
def test_last_words_are_the_last_and_bounded(lines: list[str]) -> None:
    kept = last_lines(lines)
    assert sum(map(len, kept)) <= MAX_STDERR
    assert all(line.startswith(short) for line, short in zip(lines[len(lines) - len(kept) :], kept, strict=True))
    assert not lines or kept


def test_reading_takes_no_more_memory_than_there_is_to_read(
    deaths: ExitRecords, tmp_path: Path, told: list[str]
) -> None:
    deaths.add(death(1))
    later = again(tmp_path, told)
    tracemalloc.start()
    try:
        assert later.of("f", "n") == [death(1)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < module.MAX_FILE // 4
