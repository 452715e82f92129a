"""From one image of the daemon to the next, in the same process: exec, and back to the old image if the new one fails.

This module imports little, and only from the standard library: it must work where the rest of an installation does not,
and every import lengthens the pause. Rules:

* Signals are blocked from before the exec until the new image has its handlers: no signal is lost, and none kills.
* An image that is not ready within LIMIT_S is interrupted, and the old one is executed as if the new one had failed.
* The old image is executed only once: if it fails too, the daemon ends with both reasons.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

VARIABLE = "CHRONETIX_UPGRADE"
LIMIT_S = 20.0
BLOCKED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
    signal.SIGALRM,
)


class Image(NamedTuple):
    """What is executed: ``program`` with ``argv``, whose first item is the program's name."""

    program: str
    argv: Sequence[str]


class ExecHandoff(NamedTuple):
    """What the next image is told. ``state`` is the snapshot's descriptor. ``back`` is the image that takes over if
    this one fails; None if this is the old image already. ``failed`` is the reason why the new image has failed."""

    state: int
    back: Image | None
    failed: str = ""


def own_image() -> Image:
    """Return the program and arguments with which this process was started."""
    return Image(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def received() -> ExecHandoff | None:
    """Take the handoff out of the environment; None for a daemon that starts anew. Raises ValueError for a value that
    is none."""
    text = os.environ.pop(VARIABLE, "")
    if not text:
        return None
    try:
        told = json.loads(text)
        back = told["back"]
        return ExecHandoff(int(told["state"]), Image(*back) if back is not None else None, str(told["failed"]))
    except (ValueError, TypeError, KeyError) as reason:
        raise ValueError(f"{VARIABLE} was not set by a chronetixd: {reason!r}") from None


def leave(image: Image, handoff: ExecHandoff, descriptors: Iterable[int]) -> None:
    """Execute ``image``, which inherits ``descriptors``. Returns only by raising OSError, and then nothing has
    changed."""
    left = [handoff.state, *descriptors]
    held = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    for fd in left:
        os.set_inheritable(fd, True)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        _execute(image, handoff)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for fd in left:
            os.set_inheritable(fd, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _execute(image: Image, handoff: ExecHandoff) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(image.program, list(image.argv), {**os.environ, VARIABLE: json.dumps(handoff._asdict())})


def guard(handoff: ExecHandoff) -> None:
    """From now on the time limit leads back to the old image."""
    signal.signal(signal.SIGALRM, lambda *_: fall_back(handoff, f"it was not ready within {LIMIT_S:g} s"))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))


def fall_back(handoff: ExecHandoff, reason: str) -> None:
    """Execute the old image, which can still rebuild everything. Returns if there is none."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    if handoff.back is None:
        return
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    _execute(handoff.back, ExecHandoff(handoff.state, None, reason))


def arrived() -> None:
    """Everything is rebuilt and signals have their handlers: disarm the time limit and unblock signals."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)


def back(handoff: ExecHandoff, reason: BaseException) -> None:
    """Execute the old image because of ``reason``. Returns if this is the old image; then it ends with ``reason``."""
    import traceback  # only needed after a failure

    with suppress(OSError):
        traceback.print_exception(reason)
    fall_back(handoff, f"{type(reason).__name__}: {reason}")
