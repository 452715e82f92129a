"""Makes Ctrl-C during a program's imports and after its end exit the process without output, with the exit code 130.

A KeyboardInterrupt that is raised during an import shows a traceback, or is swallowed by code that catches exceptions
in the imported module. Nothing has to be undone at these times, so the process ends and no exception is raised. A
Ctrl-C during the interpreter's own start cannot be handled here: Python itself reports it. This module imports as
little as possible.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130


def end_quietly() -> None:
    """Make SIGINT end this process from now on. A SIGINT that is ignored, as in a shell's background jobs, stays
    ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


class Raised:
    """A context manager in which SIGINT raises KeyboardInterrupt although :func:`end_quietly` is in force, for code
    that catches it."""

    def __enter__(self) -> None:
        self._quiet = signal.getsignal(signal.SIGINT) is _end
        if self._quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        if self._quiet:
            signal.signal(signal.SIGINT, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
