"""Signals reach the loop once each, whichever thread the kernel interrupts for them."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator

import pytest
import uvloop

from chronetixd.loop.signals import SignalHandlers

TIMES = 4000
"""Of so many signals, uvloop's add_signal_handler reports some 10 twice."""


class Elsewhere:
    """A thread that sends SIGTERM to itself: the main thread may see the signal before its byte is in the pipe."""

    def __init__(self) -> None:
        self._due = threading.Semaphore(0)
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def send(self) -> None:
        self._due.release()

    def end(self) -> None:
        self._ended = True
        self._due.release()
        self._thread.join()

    def _run(self) -> None:
        while self._due.acquire() and not self._ended:
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    made = Elsewhere()
    yield made
    made.end()


async def doubled(handlers: SignalHandlers, elsewhere: Elsewhere) -> list[int]:
    """How often each of many SIGTERM was reported that came among others of another number, where not once."""
    reports: list[None] = []
    handlers.handle(signal.SIGTERM, lambda: reports.append(None))
    handlers.handle(signal.SIGCHLD, lambda: None)
    wrong = []
    for _ in range(TIMES):
        reports.clear()
        elsewhere.send()
        while not reports:
            signal.raise_signal(signal.SIGCHLD)
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        if len(reports) != 1:
            wrong.append(len(reports))
    return wrong


def test_a_signal_among_others_is_reported_once(elsewhere: Elsewhere) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        handlers = SignalHandlers(runner.get_loop())
        try:
            assert runner.run(doubled(handlers, elsewhere)) == []
        finally:
            handlers.close()


def test_what_was_installed_before_is_put_back() -> None:
    former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        handlers = SignalHandlers(runner.get_loop())
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            handlers.handle(number, lambda: None)
        assert signal.getsignal(signal.SIGTERM) is not former[0]
        handlers.close()
        handlers.close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == former
