"""Launchers that die, stop or talk nonsense, whenever they do: starts go on with the next one, and nothing is left of
what one had forked and not told of."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chronetixd.linux.pidfd import Process
from chronetixd.linux.proc import children
from chronetixd.workers import launcher as launch
from chronetixd.workers.launcher import HOPELESS, Launcher, SpawnRequest
from chronetixd.workers.pool import OutputPipes, open_streams
from tests.chronetixd.conftest import without_nodeworker

PROGRAM = Path(__file__).parents[1] / "programs" / "scripted_launcher.py"
ROOT = Path(__file__).parents[3]
Run = Callable[[Coroutine[Any, Any, Any]], Any]
Until = Callable[[Callable[[], Any]], None]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """What the next launchers do; the rest of PYTHONPATH that leads to them."""
    folder = tmp_path / "scripted"
    package = without_nodeworker(folder) / "nodeworker" / "process"
    package.mkdir(parents=True)
    for each in (package.parent, package):
        (each / "__init__.py").write_text("")
    shutil.copy(PROGRAM, package / "launcher.py")
    path = f"{folder}:{ROOT}"
    monkeypatch.setenv("PYTHONPATH", path)

    def write(words: str) -> str:
        (folder / "plan").write_text(words)
        return path

    return write


class Asked:
    """Has workers started, and asks again when a launcher is lost."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.told: list[str] = []
        self.workers: list[Process] = []
        self.lost: list[str] = []
        self.hopeless: list[str] = []
        self.launcher = Launcher(
            loop,
            on_ready=lambda _pid: None,
            on_lost=self.lost.append,
            on_hopeless=self.hopeless.append,
            answer_s=2.0,
            ready_s=20.0,
        )
        self._streams: list[OutputPipes] = []

    def ask(self) -> SpawnRequest:
        streams, (control, out, err) = open_streams()
        self._streams.append(streams)
        request = SpawnRequest("w", (), {}, "", control, out, err, self._spawned, self._failed, self._lost)
        self.launcher.spawn(request)
        return request

    def _spawned(self, pid: int, pidfd: int) -> None:
        self.told.append("spawned")
        self.workers.append(Process(self.loop, pid, pidfd, lambda: None))

    def _failed(self, reason: str) -> None:
        self.told.append(reason)

    def _lost(self, _reason: str) -> None:
        self.told.append("lost")
        self.ask()

    @property
    def pids(self) -> set[int]:
        return {worker.pid for worker in self.workers} | self.launcher.pids

    def end(self, until: Until) -> None:
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
        until(lambda: all(worker.exited for worker in self.workers))
        for worker in self.workers:
            worker.reap()
        for streams in self._streams:
            streams.close()


@pytest.fixture
def asked(loop: asyncio.AbstractEventLoop, run: Run, until: Until, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.setattr(launch, "FIRST_PAUSE_S", 0.01)
    made = Asked(loop)
    others = set(children(os.getpid()))
    yield made
    run(made.launcher.stop())
    assert set(children(os.getpid())) - others == {worker.pid for worker in made.workers}, "nobody else is left"
    made.end(until)


def begin(asked: Asked) -> None:
    others = set(children(os.getpid()))
    asked.launcher.start(lambda: others | asked.pids)


@pytest.mark.parametrize(
    "words",
    [
        "dies",
        "dies dies dies",
        "dies-when-asked",
        "stops-when-asked",
        "answers-garbage",
        "closes-when-asked",
        "forks-and-dies",
        "forks-and-dies dies forks-and-dies",
    ],
)
def test_whatever_becomes_of_launchers_a_start_goes_on_with_the_next(
    words: str, plan: Callable[[str], str], asked: Asked, until: Until
) -> None:
    plan(words)
    begin(asked)
    asked.ask()
    until(lambda: "spawned" in asked.told)
    assert len(asked.lost) == len(words.split())
    assert asked.told == ["lost"] * sum(word != "dies" for word in words.split()) + ["spawned"]
    assert asked.launcher.announced


def test_one_that_is_stopped_before_it_is_ready_is_replaced(
    plan: Callable[[str], str], loop: asyncio.AbstractEventLoop, until: Until, run: Run
) -> None:
    plan("stops")
    lost: list[str] = []
    launcher = Launcher(loop, on_ready=lambda _pid: None, on_lost=lost.append, ready_s=1.0)
    launcher.start(lambda: set(children(os.getpid())))
    until(lambda: lost)
    run(launcher.stop())
    assert "was not ready for 1 s, as if it were stopped" in lost[0]


def test_one_that_is_stopped_and_has_nothing_to_do_is_not_asked_and_does_not_hold_up_the_end(
    plan: Callable[[str], str], asked: Asked, until: Until
) -> None:
    plan("")
    begin(asked)
    until(lambda: asked.launcher.ready)
    os.kill(asked.launcher.pid, signal.SIGSTOP)
    assert asked.lost == []


def test_when_none_gets_ready_whoever_waits_is_told_and_later_ones_at_once(
    plan: Callable[[str], str], asked: Asked, until: Until
) -> None:
    plan("dies " * (HOPELESS + 1))
    begin(asked)
    asked.ask()
    asked.ask()
    until(lambda: len(asked.told) == 2)
    assert len(asked.lost) >= HOPELESS
    assert asked.hopeless
    for reason in (*asked.told, *asked.hopeless):
        assert "launchers in a row ended before they were ready" in reason
        assert "not today" in reason
    asked.ask()
    until(lambda: len(asked.told) == 3)
    assert asked.told[2] != "spawned"
    until(lambda: asked.launcher.ready)
    assert not asked.launcher.hopeless
    asked.ask()
    until(lambda: len(asked.told) == 4)
    assert asked.told[3] == "spawned"


def test_what_waits_can_be_withdrawn_and_what_is_under_way_cannot(
    plan: Callable[[str], str], asked: Asked, until: Until
) -> None:
    plan("")
    begin(asked)
    waiting = asked.ask()
    assert asked.launcher.withdraw(waiting)
    assert not asked.launcher.withdraw(waiting)
    until(lambda: asked.launcher.ready)
    under_way = asked.ask()
    assert not asked.launcher.withdraw(under_way)
    until(lambda: asked.told)
    assert asked.told == ["spawned"]


def test_it_can_be_held_while_it_is_stopped(plan: Callable[[str], str], asked: Asked, until: Until, run: Run) -> None:
    """What it had not answered is lost, and waits for the one after; also when nobody waits for that any more."""
    plan("stops-when-asked")
    begin(asked)
    until(lambda: asked.launcher.ready)
    asked.ask()
    with pytest.raises(TimeoutError):
        run(asyncio.wait_for(asked.launcher.hold(), 0.1))
    asked.launcher.release()
    run(asked.launcher.hold())
    assert asked.told == ["lost"]
    asked.launcher.release()
    until(lambda: "spawned" in asked.told)


class Clocked:
    """A loop whose clock, and whose timers for the launcher, are the test's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = 1000.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def time(self) -> float:
        return self.now

    def call_later(self, after_s: float, callback: Callable[..., None], *arguments: Any) -> Any:
        if isinstance(getattr(callback, "__self__", None), Launcher):
            self.due.append((after_s, partial(callback, *arguments)))
            after_s, callback, arguments = 3600.0, lambda: None, ()
        return self._loop.call_later(after_s, callback, *arguments)


def test_one_that_answers_again_and_again_is_not_taken_for_one_that_hangs(
    plan: Callable[[str], str], loop: asyncio.AbstractEventLoop, until: Until, run: Run, tmp_path: Path
) -> None:
    """A flow of many nodes takes longer to fork than one answer may take."""
    plan("answers-one-by-one")
    os.mkfifo(tmp_path / "scripted" / "fifo")
    clocked = Clocked(loop)
    asked = Asked(clocked)  # type: ignore[arg-type]
    begin(asked)
    asked.ask()
    asked.ask()
    until(lambda: len(clocked.due) == 2)
    with (tmp_path / "scripted" / "fifo").open("w", buffering=1) as answer:
        clocked.now += 1.5
        print(file=answer)
        until(lambda: asked.told == ["1"])
        clocked.now += 1.0
        clocked.due[1][1]()
        assert clocked.due[2][0] == 1.0, "it has the rest of its time"
        print(file=answer)
        until(lambda: asked.told == ["1", "2"])
    assert asked.lost == []
    run(asked.launcher.stop())
    asked.end(until)


def test_no_more_are_asked_for_at_a_time_than_it_has_use_for_and_all_come(
    plan: Callable[[str], str], asked: Asked, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "ABREAST", 2)
    plan("")
    begin(asked)
    until(lambda: asked.launcher.ready)
    requests = [asked.ask() for _ in range(5)]
    assert asked.launcher.withdraw(requests[2]), "it waits here, and not there"
    assert not asked.launcher.withdraw(requests[1])
    until(lambda: asked.told == ["spawned"] * 4)
    assert asked.launcher.announced


@pytest.mark.parametrize("fails", ["subprocess.Popen", "os.pidfd_open", "os.pipe", "socket.socketpair"])
def test_one_that_cannot_be_started_keeps_nothing_open(
    loop: asyncio.AbstractEventLoop, run: Run, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Whatever was had by then goes back (the leak check looks), and it is told, and tried again."""
    lost: list[str] = []
    launcher = Launcher(loop, on_ready=lambda _: None, on_lost=lost.append, on_hopeless=lost.append)
    before = set(os.listdir("/proc/self/fd"))

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as short:
        short.setattr(f"chronetixd.workers.launcher.{fails}", fail)
        launcher._launch()
    assert lost == ["[Errno 24] Too many open files"]
    assert set(os.listdir("/proc/self/fd")) == before
    assert launcher._retry is not None
    run(launcher.stop())
