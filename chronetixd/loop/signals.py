"""Signals of the process, handled in the event loop: one call for each signal that is delivered.

The loop's own add_signal_handler does not guarantee that. uvloop notes a signal both in a pipe and in a Python handler;
if another signal is read in between (SIGCHLD of a stopped worker, then SIGTERM), one SIGTERM makes two calls, and the
second one kills what the first one began to drain. Here only the Python handler makes the call, and the pipe only wakes
the loop.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any


class SignalHandlers:
    """Installs handlers that run in ``loop``, and restores the former handlers at the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._former: dict[signal.Signals, Any] = {}

    def handle(self, number: signal.Signals, then: Callable[[], None]) -> None:
        """Call ``then`` in the loop for each delivery of ``number``. Only in the main thread."""
        former = signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(then))
        self._former.setdefault(number, signal.SIG_DFL if former is None else former)

    def close(self) -> None:
        """Restore the former handlers. Idempotent."""
        while self._former:
            signal.signal(*self._former.popitem())
