"""Repairs what a process inherits from its parent, before anything depends on it.

A daemon may be started by cron, by a script in the background, by another daemon, or by a program that blocks signals.
Some inherited properties harm the daemon and its plugins: signals that are blocked or ignored, standard streams that
are closed (the next file that is opened would get the number of one), a umask that makes files unreadable, or writable
for everybody. Other properties, such as limits on resources, are the operator's choice; ``chronetixctl doctor`` shows
them. This module imports only the standard library.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable

UMASK = 0o022
"""The umask that replaces one that takes away the owner's rights, or that lets everybody write."""

KEPT_IGNORED = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""Signals that Python itself ignores, and whose default it restores in the programs that it starts."""


def put_right() -> list[str]:
    """Repair inherited streams, signals and umask, and return a sentence for each repair. Call this first, in the only
    thread."""
    return [*_standard_streams(), *_signals(), *_umask()]


def _standard_streams() -> list[str]:
    told = []
    for number, name in enumerate(("standard input", "standard output", "standard error")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this stream's
            assert opened == number
            os.set_inheritable(opened, True)
            told.append(f"{name} was closed, and is /dev/null now")
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    return told


def _signals() -> list[str]:
    told = []
    if blocked := signal.pthread_sigmask(signal.SIG_SETMASK, ()):
        told.append(f"{_names(blocked)} were blocked, and come through now")
    ignored = {number for number in signal.valid_signals() - KEPT_IGNORED if signal.getsignal(number) is signal.SIG_IGN}
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    if ignored:
        told.append(f"{_names(ignored)} were ignored, and have their default now")
    return told


def _umask() -> list[str]:
    mask = os.umask(UMASK)
    if not mask & 0o700 and mask & 0o002:
        os.umask(mask)
        return []
    return [f"the umask was {mask:03o}, and is {UMASK:03o} now"]


def _names(numbers: Iterable[int]) -> str:
    return ", ".join(sorted(getattr(number, "name", f"signal {number}") for number in numbers))
