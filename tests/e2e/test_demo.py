"""The demo does what it promises, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for the sockets in it, wherever the tests run."""
    with tempfile.TemporaryDirectory(prefix="cx-", dir="/tmp") as name:
        yield Path(name)


def start(folder: Path) -> subprocess.Popen[str]:
    """The demo, with its private folder below ``folder``."""
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "examples.flights.demo"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def left_behind(folder: Path) -> list[str]:
    """Files below ``folder``, and processes that were started with one of them."""
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [str(path) for path in folder.iterdir()] + [command for command in commands if str(folder) in command]


def test_all_flights_arrive_and_are_counted_right(folder: Path) -> None:
    with start(folder) as demo:
        said, _ = demo.communicate()
    assert demo.returncode == 0, said
    assert "flights: yes" in said
    assert left_behind(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_in_the_middle_it_cleans_up(number: signal.Signals, folder: Path) -> None:
    with start(folder) as demo:
        assert demo.stdout is not None
        assert "is running" in demo.stdout.readline()
        demo.send_signal(number)
        demo.stdout.read()
    assert demo.returncode == 128 + number
    assert left_behind(folder) == []
