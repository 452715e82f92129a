"""Ctrl-C before a program has begun, and once it has ended: the process ends, quietly, with what shells make of it.

A KeyboardInterrupt that is raised in the middle of an import comes out as a traceback, or is swallowed by whoever runs
code in there. Nothing is to be undone then, so nothing is raised. What comes before our first line, the interpreter's
own start, is not ours to catch: there Python itself says that it was interrupted. Imports as little as can be.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130


def end_quietly() -> None:
    """Have SIGINT end this process from now on; not where it is ignored, as in what a shell runs in the background."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


class Raised:
    """Within it SIGINT raises KeyboardInterrupt, where :func:`end_quietly` is in force: somebody catches it."""

    def __enter__(self) -> None:
        self._quiet = signal.getsignal(signal.SIGINT) is _end
        if self._quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        if self._quiet:
            signal.signal(signal.SIGINT, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
