"""What a process inherits and cannot use is put right, and named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, os, signal, sys
{before}
from chronetixd.linux.inherited import put_right
told = put_right()
with open({result!r}, "w") as file:
    json.dump([told, [{values}]], file)
"""


@pytest.fixture
def begun_with(tmp_path: Path) -> Any:
    """Runs a process that begins with ``before``; the sentences, and the values of expressions afterwards."""

    def run(before: str, *values: str) -> tuple[list[str], list[Any]]:
        result = tmp_path / "result"
        program = PROGRAM.format(before=before, values=", ".join(values), result=str(result))
        subprocess.run([sys.executable, "-c", program], check=True)
        told, seen = json.loads(result.read_text())
        return told, seen

    return run


def test_what_is_as_usual_is_left_alone(begun_with: Any) -> None:
    told, (mask,) = begun_with("os.umask(0o027)", "os.umask(0)")
    assert (told, mask) == ([], 0o027)


def test_blocked_signals_come_through(begun_with: Any) -> None:
    told, (blocked,) = begun_with(
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP, 40])",
        "len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))",
    )
    assert blocked == 0
    assert told == ["SIGHUP, SIGTERM, signal 40 were blocked, and come through now"]


def test_ignored_signals_have_their_default_but_for_those_that_python_ignores(begun_with: Any) -> None:
    told, (ended, piped) = begun_with(
        "for each in (signal.SIGCHLD, signal.SIGUSR1): signal.signal(each, signal.SIG_IGN)",
        "[int(signal.getsignal(each)) for each in (signal.SIGCHLD, signal.SIGUSR1)]",
        "int(signal.getsignal(signal.SIGPIPE))",
    )
    assert (ended, piped) == ([0, 0], 1)
    assert told == ["SIGCHLD, SIGUSR1 were ignored, and have their default now"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_standard_stream_is_not_the_next_file_that_is_opened(number: int, begun_with: Any) -> None:
    told, (refers, opened) = begun_with(
        f"os.close({number})", f"os.readlink('/proc/self/fd/{number}')", "os.open('/dev/zero', os.O_RDONLY)"
    )
    name = ("standard input", "standard output", "standard error")[number]
    assert told == [f"{name} was closed, and is /dev/null now"]
    assert refers == "/dev/null"
    assert opened > 2


def test_a_process_that_began_without_any_stream_can_print(begun_with: Any) -> None:
    before = (
        "if len(sys.argv) == 1 and sys.stdin is not None:\n"
        "    for each in range(3): os.close(each)\n"
        "    os.execv(sys.executable, sys.orig_argv)"
    )
    told, (usable,) = begun_with(before, "[sys.stdin.read(), sys.stdout.write('x'), sys.stderr.write('x')]")
    assert len(told) == 3
    assert usable == ["", 1, 1]


@pytest.mark.parametrize(("mask", "kept"), [(0o022, True), (0o077, True), (0o002, True), (0, False), (0o777, False)])
def test_a_umask_leaves_the_owner_its_rights_and_nobody_else_the_right_to_write(
    mask: int, kept: bool, begun_with: Any
) -> None:
    told, (now,) = begun_with(f"os.umask({mask})", "os.umask(0)")
    assert now == (mask if kept else 0o022)
    assert told == ([] if kept else [f"the umask was {mask:03o}, and is 022 now"])
