"""What /proc says of workers: what is cheap is as it is now, what is not is looked at after the answer."""

from __future__ import annotations

from pathlib import Path

from chronetixd.control.views import GONE, REFRESHED, Figures


def process(proc: Path, pid: int, private_kib: int) -> None:
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"{pid} (a b) S " + " ".join(str(number) for number in range(4, 53)))
    (folder / "smaps_rollup").write_text(f"00-ff ---p [rollup]\nPrivate_Clean: 0 kB\nPrivate_Dirty: {private_kib} kB\n")


def test_what_is_private_is_looked_at_when_it_is_asked_for_first_and_then_after_the_answer(tmp_path: Path) -> None:
    figures = Figures(tmp_path)
    process(tmp_path, 7, 100)
    assert figures.of([7])[7]["unique_bytes"] == 102_400
    process(tmp_path, 7, 200)
    assert figures.of([7])[7]["unique_bytes"] == 102_400
    figures.refresh([7])
    assert figures.of([7])[7]["unique_bytes"] == 204_800


def test_many_are_looked_at_in_turn(tmp_path: Path) -> None:
    figures, pids = Figures(tmp_path), range(1, 2 * REFRESHED + 1)
    for private in (100, 200):
        for pid in pids:
            process(tmp_path, pid, private)
        figures.of(pids)
    for done in (REFRESHED, 2 * REFRESHED):
        figures.refresh(pids)
        assert sum(each["unique_bytes"] == 204_800 for each in figures.of(pids).values()) == done


def test_one_that_is_gone_has_nothing_and_is_not_remembered(tmp_path: Path) -> None:
    figures = Figures(tmp_path)
    process(tmp_path, 7, 100)
    figures.of([7])
    (tmp_path / "7" / "stat").unlink()
    figures.refresh([7])
    assert figures.of([7]) == {7: GONE}
