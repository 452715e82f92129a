"""Signals of the process, handled in the event loop: one call for each signal that is delivered.

The loop's own add_signal_handler does not keep that promise. uvloop notes a signal in a pipe and, apart from that, in a
Python handler; if another signal is read between the two (SIGCHLD of a worker that was stopped, then SIGTERM), one
SIGTERM calls back twice, and a second SIGTERM kills what the first one began to drain. Here the Python handler alone
calls back; the pipe only wakes the loop.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any


class SignalHandlers:
    """Installs handlers that run in ``loop``, and puts back at the end what was installed before them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._former: dict[signal.Signals, Any] = {}

    def handle(self, number: signal.Signals, then: Callable[[], None]) -> None:
        """Call ``then`` in the loop for each delivery of ``number``. Only in the main thread."""
        former = signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(then))
        self._former.setdefault(number, signal.SIG_DFL if former is None else former)

    def close(self) -> None:
        """Put the former handlers back. Idempotent."""
        while self._former:
            signal.signal(*self._former.popitem())
