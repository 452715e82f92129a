"""Short storms over a real daemon; and tests that the storm detects what must not happen."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.chaos import invariants, plan, processes
from tests.chaos.flows import FLOWS, Promise
from tests.chaos.ledgers import Arrivals, Ledger, Requests, arrival
from tests.chaos.scenarios import ALL

ROOT = Path(__file__).parents[2]
SEED = 7


def storm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.chaos", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.timeout(1200)
def test_after_every_scenario_all_that_was_promised_still_holds() -> None:
    told = storm("--seed", str(SEED), "--steps", str(len(ALL)))
    assert told.returncode == 0, told.stdout + told.stderr
    played = {line.split()[2].rstrip(":") for line in told.stdout.splitlines() if line.startswith("step ")}
    skipped = {line.split(":")[0].strip() for line in told.stdout.splitlines() if ": skipped, " in line}
    assert played | skipped == set(ALL)
    assert skipped <= {"full-disk"}, told.stdout


def test_a_step_of_a_seed_is_the_same_wherever_it_is_played() -> None:
    steps = [plan.step(SEED, number, ALL, list(FLOWS)) for number in range(3 * len(ALL))]
    assert steps[20] == plan.step(SEED, 20, ALL, list(FLOWS))
    assert steps != [plan.step(SEED + 1, number, ALL, list(FLOWS)) for number in range(3 * len(ALL))]
    for deck in range(3):
        assert {step.scenario for step in steps[deck * len(ALL) :][: len(ALL)]} == set(ALL)
    told = storm("--seed", str(SEED), "--plan", "--steps", "5")
    assert [json.loads(line) for line in told.stdout.splitlines()] == [json.loads(step.line()) for step in steps[:5]]


def frames(*numbers: int, marked: tuple[int, ...] = (), **promise: bool) -> list[str]:
    """What is said of frames that arrive so; the positions ``marked`` are marked."""
    arrivals = Arrivals(Promise("sink", "r", **promise), restartable=False)
    arrivals.begin()
    for at, number in enumerate(numbers):
        arrivals.arrive(arrival(["F", str(at), "r", str(number), str(int(at in marked)), "0", "0", "0"]))
    return arrivals.complaints


class TestLedgers:
    def test_order_without_gaps_is_right(self) -> None:
        assert frames(1, 2, 3) == []

    def test_a_frame_that_is_lost_is_named(self) -> None:
        assert frames(1, 2, 5) == ["r: 5 follows 2: 2 are lost, the first is 3"]
        assert frames(2) == ["r: 2 follows 0: 1 are lost, the first is 1"]

    def test_a_repeated_frame_must_be_marked(self) -> None:
        assert frames(1, 2, 2, 3, marked=(2,)) == []
        assert frames(1, 2, 2, 3) == ["r: 2 came again unmarked, 2 had come"]

    def test_where_frames_may_be_dropped_only_order_counts(self) -> None:
        assert frames(1, 5, 9, gaps=True) == []
        assert frames(1, 5, 4, gaps=True) == ["r: 4 came again unmarked, 5 had come"]

    def test_round_numbers_are_set_aside_where_they_should_be(self) -> None:
        assert frames(*range(1, 10), 11, round_missing=True) == []
        assert frames(9, 10, 11, round_missing=True)[-1] == "r: 10 should have been set aside"

    def test_a_flow_that_survives_does_not_begin_anew(self) -> None:
        arrivals = Arrivals(Promise("sink", "r"), restartable=False)
        arrivals.begin()
        arrivals.begin()
        assert arrivals.complaints == ["r: the flow began anew, which survives its daemon"]

    def test_a_ledger_is_read_by_whole_lines_as_it_grows(self, tmp_path: Path) -> None:
        ledger = Ledger(tmp_path / "l")
        assert list(ledger.news()) == []
        ledger.path.write_bytes(b"B\nF 1 r")
        assert list(ledger.news()) == [["B"]]
        with ledger.path.open("ab") as file:
            file.write(b" 1 0 0 0 0\n")
        assert list(ledger.news()) == [["F", "1", "r", "1", "0", "0", "0", "0"]]


def requests(*lines: str) -> list[str]:
    followed = Requests()
    for line in lines:
        followed.line(line.split())
    return followed.complaints


class TestRequests:
    def test_each_ends_once(self) -> None:
        assert requests("Q 1-1", "R 1-1", "W 1-1", "E 1-1 reply", "Q 1-2", "E 1-2 timeout", "Q 1-3") == []

    def test_one_that_never_ends_is_named(self) -> None:
        assert requests("Q 1-1", "Q 1-2") == ["request 1-1 never ended, 1-2 was asked after it"]

    def test_whoever_dies_need_not_hear_the_end(self) -> None:
        assert requests("Q 1-1", "Q 2-1", "E 2-1 reply") == []

    @pytest.mark.parametrize(
        ("lines", "complaint"),
        [
            (("Q 1-1", "E 1-1 reply", "E 1-1 timeout"), "request 1-1 ended 2 times"),
            (("W 1-1", "W 1-1"), "the daemon ended request 1-1 2 times"),
            (("R 1-1", "R 1-1"), "request 1-1 was delivered twice"),
            (("Q 1-1", "E 1-1 another's"), "request 1-1 got the reply to another one"),
        ],
    )
    def test_nothing_happens_twice(self, lines: tuple[str, ...], complaint: str) -> None:
        assert requests(*lines) == [complaint]


def test_descriptors_beyond_the_baseline_are_told_by_kind() -> None:
    before, now = Counter({"socket": 3, "pipe": 2}), Counter({"socket": 4, "pipe": 2, "chronetix-ring": 1})
    assert invariants.compared("x", before, now) == [
        "x has 1 descriptors of chronetix-ring, it had 0",
        "x has 4 descriptors of socket, it had 3",
    ]


@pytest.mark.parametrize(("looks", "told"), [(["f", "f", ""], []), (["f"], ["x has 1 descriptors of f, it had 0"])])
def test_what_is_open_only_for_a_moment_is_passed_over_and_what_stays_is_told(
    monkeypatch: pytest.MonkeyPatch, looks: list[str], told: list[str]
) -> None:
    seen = itertools.chain(looks, itertools.repeat(looks[-1]))
    monkeypatch.setattr(processes, "descriptors", lambda _pid: Counter(next(seen)))
    assert processes.lasting(1, partial(invariants.compared, "x", Counter())) == told


def test_a_state_at_rest_has_the_fewest_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = itertools.chain(["aab", "ab", "aac"], itertools.repeat("aab"))
    monkeypatch.setattr(processes, "descriptors", lambda _pid: Counter(next(seen)))
    assert processes.steady(1) == Counter("a")


def test_zombies_of_a_process_are_seen() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.read() == b""
    seen = processes.zombies({processes.os.getpid()})
    while child.pid not in seen:
        seen = processes.zombies({processes.os.getpid()})
    child.stdout.close()
    assert child.wait() == 0
