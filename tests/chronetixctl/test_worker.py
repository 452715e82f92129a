"""``worker test``: which checks it makes, what it prints of them, and what it leaves."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[1] / "conformance"
GOOD = (sys.executable, str(HERE / "worker.py"))
PATIENT = ("--timeout", "1m", "--start-timeout", "1m")


def faulty(fault: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / "mutants.py"), fault)


def test_what_passes_is_a_line_and_the_exit_code_0(ctl: Any) -> None:
    ended = ctl("worker", "test", *PATIENT, "--profile", "sink", "--only", "comes-up", "--only", "drains", *GOOD)
    assert ended.code == 0
    lines = [line.split()[:4] for line in ended.out.splitlines()]
    assert lines[1:3] == [["minimal-sink", "sink", each, "passed"] for each in ("comes-up", "drains")]
    assert ended.out.splitlines()[-1].split() == ["minimal-sink", "2", "0", "0", "not", "all", "checked"]


def test_what_fails_shows_what_was_expected_what_came_and_where_it_is_written(ctl: Any) -> None:
    ended = ctl("worker", "test", *PATIENT, "--profile", "sink", "--only", "exact-offer", *faulty("one_credit_more"))
    assert ended.code == 1
    shown = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert "expected: credits 5 in the header of in's CREDIT" in shown
    assert "came: credits 6" in shown
    assert "see: protocol/PROTOCOL.md, Workers" in shown
    assert shown[-1] == "minimal-sink 0 1 0 not met"


def test_json_has_the_same(ctl: Any) -> None:
    chosen = ("--profile", "map", "--only", "comes-up", "--only", "origins")
    ended = ctl("worker", "test", *PATIENT, *chosen, "-o", "json", *faulty("no_origin"))
    told = json.loads(ended.out)
    assert (ended.code, told["met"], told["profile"]) == (1, False, "map")
    assert told["program"] == list(faulty("no_origin"))
    assert [(each["check"], each["as"], each["verdict"]) for each in told["checks"]] == [
        ("comes-up", "map", "passed"),
        ("origins", "map", "failed"),
    ]
    assert told["checks"][1]["section"] == "shm/SPEC.md, 3 RING"
    assert told["profiles"] == {"map": {"passed": 1, "failed": 1, "skipped": 0, "advised": 0, "met": False}}


def test_advice_is_shown_and_does_not_count(ctl: Any) -> None:
    ended = ctl("worker", "test", "--profile", "sink", "--only", "sleeps", *faulty("polls"))
    assert ended.code == 0
    assert "(advice, does not count)" in ended.out


def test_a_program_that_does_something_else_is_not_checked_for_contents(ctl: Any) -> None:
    chosen = ("--profile", "map", "--only", "echo", "--only", "frames-return", "-o", "json")
    ended = ctl("worker", "test", *PATIENT, *chosen, "--contents", "none", *faulty("appends_a_byte"))
    told = {each["check"]: each for each in json.loads(ended.out)["checks"]}
    assert ended.code == 0
    assert told["frames-return"]["verdict"] == "passed"
    assert told["echo"]["verdict"] == "skipped"
    assert "--contents none" in told["echo"]["reason"]


def test_a_program_that_parses_gets_frames_that_it_understands(ctl: Any, tmp_path: Path) -> None:
    sample, program = tmp_path / "frame.json", tmp_path / "parses.py"
    sample.write_text('{"n": 1}')
    program.write_text(
        "import chronetix\n"
        "class Parses:\n"
        "    def on_frame(self, frame, ctx):\n"
        "        assert frame.value() == {'n': 1}, frame.value()\n"
        "        assert (frame.route, frame.content_type) == ('numbers', 'application/json')\n"
        "chronetix.serve(Parses)\n"
    )
    chosen = ("--profile", "sink", "--only", "frames-return", "--only", "frame-sizes", "-o", "json")
    given = ("--sample", str(sample), "--content-type", "application/json", "--input-name", "numbers")
    ended = ctl("worker", "test", *PATIENT, *chosen, *given, sys.executable, str(program))
    told = {each["check"]: each["verdict"] for each in json.loads(ended.out)["checks"]}
    assert told == {"frames-return": "passed", "frame-sizes": "skipped"}


def test_what_does_not_come_up_is_not_checked_further(ctl: Any) -> None:
    ended = ctl("worker", "test", "--profile", "minimal-sink", "-o", "json", "/bin/true")
    first, *others = json.loads(ended.out)["checks"]
    assert (ended.code, first["verdict"], first["came"]) == (
        1,
        "failed",
        "it exited with status 0; it has sent no message",
    )
    assert {each["reason"] for each in others} == {"the program does not come up as a sink"}


def test_a_list_runs_nothing(ctl: Any) -> None:
    ended = ctl("worker", "test", "--list", "--profile", "source", "-o", "json")
    told = json.loads(ended.out)
    assert ended.code == 0
    assert {each["as"] for each in told} == {"source"}
    assert {"check": "sequence", "profile": "source"}.items() <= next(
        each for each in told if each["check"] == "sequence"
    ).items()
    table = ctl("worker", "test", "--list").out
    assert "minimal-sink" in table
    assert "reattaches" in table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "comes-upp", *GOOD), 'no check "comes-upp"; did you mean "comes-up"?'),
        (("--profile", "sink", "--only", "sequence", *GOOD), '"sequence" is none of the profile sink'),
        ((), "name the PROGRAM"),
        (("--profile", "sink", "--as", "map", *GOOD), "--as chooses forms of the profile full"),
        (("--profile", "sinc", *GOOD), "sinc"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(arguments: tuple[str, ...], words: str, ctl: Any) -> None:
    ended = ctl("worker", "test", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err


def test_a_program_that_is_not_there_is_named(ctl: Any) -> None:
    ended = ctl("worker", "test", "--only", "comes-up", "./nothing")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "./nothing cannot be started: No such file or directory\n"


def test_arguments_behind_the_program_are_its_own(ctl: Any, tmp_path: Path) -> None:
    program, seen = tmp_path / "program.py", tmp_path / "seen"
    program.write_text(f"import sys\nopen({str(seen)!r}, 'w').write(repr(sys.argv[1:]))\n")
    chosen = ("--profile", "sink", "--only", "comes-up")
    ctl("worker", "test", *PATIENT, *chosen, sys.executable, str(program), "--only", "x", "-o", "--help")
    assert seen.read_text() == "['--only', 'x', '-o', '--help']"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_a_signal_ends_the_program_and_what_it_has_started(
    number: signal.Signals, code: int, spawn: Any, tmp_path: Path
) -> None:
    program, pids = tmp_path / "program.py", tmp_path / "pids"
    os.mkfifo(pids)
    program.write_text(
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "signal.pause()\n"
    )
    running = spawn("worker", "test", *PATIENT, sys.executable, str(program))
    own, child = map(int, pids.read_text().split())
    watched = [os.pidfd_open(pid) for pid in (own, child)]
    running.send_signal(number)
    out, err = running.communicate()
    assert (running.returncode, out) == (code, "")
    assert "interrupted after 0 of" in err
    for pidfd in watched:
        assert select.select([pidfd], [], [])[0], "it has ended"
        os.close(pidfd)
