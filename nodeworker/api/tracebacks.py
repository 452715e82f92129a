"""Tracebacks as the author of a plugin wants them: frames of the plugin, without those of this package and of the
importer."""

from __future__ import annotations

import os
import traceback

import chronetix

FULL = "CHRONETIX_TRACEBACK"
"""Set this variable to ``full`` for all frames."""

_PARTS = ("nodeworker", "protocol", "shm")
_HOMES = tuple(
    each + os.sep
    for part in _PARTS
    for home in chronetix.__path__
    for each in {os.path.join(home, part), os.path.realpath(os.path.join(home, part))}
)


def is_users(file: str) -> bool:
    """``file`` is neither this package's nor the importer's."""
    return not file.startswith((*_HOMES, "<frozen importlib", "<frozen runpy"))


def told(reason: BaseException) -> str:
    """The traceback of ``reason``. Where a plugin has a part in it the frames of this package are left out, and
    counted."""
    shown = traceback.TracebackException.from_exception(reason)
    left_out = 0 if os.environ.get(FULL) == "full" else _fold(shown)
    note = f"({left_out} frames of chronetix are not shown: {FULL}=full shows them)\n" if left_out else ""
    return "".join(shown.format()) + note


def _fold(shown: traceback.TracebackException) -> int:
    """How many were left out, here and in what it was raised from."""
    users = [frame for frame in shown.stack if is_users(frame.filename)]
    left_out = len(shown.stack) - len(users) if users else 0
    if users:
        shown.stack[:] = users
    further = [shown.__cause__, shown.__context__, *(shown.exceptions or ())]
    return left_out + sum(_fold(each) for each in further if each is not None)
