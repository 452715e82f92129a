"""The weather that a storm makes reaches a program, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.weather import Weather

ROOT = Path(__file__).parents[2]


@pytest.fixture
def weather(tmp_path: Path) -> Iterator[Weather]:
    made = Weather(tmp_path)
    yield made
    made.close()


def below(weather: Weather, program: str) -> str:
    """Return what ``program`` prints, or the last line of its error."""
    environment = os.environ | weather.environment | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    return ended.stdout.strip() if ended.returncode == 0 else ended.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("days", [-20_000, -1, 1, 10_000])
def test_the_wall_clock_steps_and_no_other(weather: Weather, days: int) -> None:
    clocks = "import time; print(time.time_ns(), time.monotonic_ns())"
    weather.step_clock(days * 86_400_000_000_000)
    before = time.time_ns(), time.monotonic_ns()
    wall, steady = map(int, below(weather, clocks).split())
    after = time.time_ns(), time.monotonic_ns()
    assert before[0] <= wall - days * 86_400_000_000_000 <= after[0]
    assert before[1] <= steady <= after[1]
    assert weather.clock_read
    weather.step_clock(0)
    assert before[0] <= int(below(weather, clocks).split()[0]) <= time.time_ns()


def test_shared_memory_is_refused_and_whoever_asked_is_told_of_what(weather: Weather) -> None:
    make = "from chronetix import shm; shm.Arena(1 << 20, first=1 << 16); print('made')"
    assert below(weather, make) == "made"
    assert weather.refused == 0
    weather.refuse_memory(1)
    assert below(weather, make).startswith("MemoryError: cannot reserve 65536 bytes of shared memory")
    assert weather.refused
    weather.refuse_memory(0)
    assert below(weather, make) == "made"
