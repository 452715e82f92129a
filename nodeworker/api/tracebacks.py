"""Tracebacks as the author of a plugin wants them: frames of the plugin, and of what it has called itself.

Rules: frames of this package and of the importer are left out and counted. Frames of the standard library and of uvloop
belong to whoever called them: an event loop that runs a callback is left out, a ``json.loads`` of the plugin's is not.
A plugin that has no frames of its own (a callable in C, a value that was returned and cannot be sent) leaves only the
exception. A defect of this package itself is shown whole.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import chronetix
from chronetix.nodeworker.api.errors import RequestFailed
from chronetix.protocol.errors import ChronetixError
from chronetix.shm import PeerFault, RouteClosed, WouldBlock

if TYPE_CHECKING:
    import asyncio

FULL = "CHRONETIX_TRACEBACK"
"""Set this variable to ``full`` for all frames."""


_WORDED: Final = (ChronetixError, RequestFailed, WouldBlock, RouteClosed, PeerFault)
"""Errors whose text says what a user can do; none of them is a defect of this package."""


def _places(*parts: str) -> tuple[str, ...]:
    """Where ``parts`` of this package lie, as paths of code name it."""
    found = (os.path.join(home, part) for part in parts for home in chronetix.__path__)
    return tuple(place for path in found for place in (path, os.path.realpath(path)))


_HOMES: Final = (
    *(home + os.sep for home in _places("nodeworker", "protocol", "shm")),
    "<frozen importlib",
    "<frozen runpy",
)

_CALLERS: Final = frozenset(
    _places(
        *("nodeworker/engine/loop.py", "nodeworker/engine/async_loop.py", "nodeworker/engine/awaiting.py"),
        *("nodeworker/engine/node.py", "nodeworker/engine/retry.py", "nodeworker/api/plugin.py"),
    )
)
"""Files that call plugins: what comes out of a call there is of the plugin's, also where it has left no frame."""

_LIBRARIES: Final = (sysconfig.get_path("stdlib") + os.sep, sysconfig.get_path("platstdlib") + os.sep, "<frozen ")


def is_users(file: str) -> bool:
    """``file`` belongs neither to this package nor to the importer, the standard library or uvloop."""
    return not (_is_ours(file) or _is_library(file))


def _is_ours(file: str) -> bool:
    return file.startswith(_HOMES)


def _is_library(file: str) -> bool:
    if "uvloop" + os.sep in file:
        return True
    return file.startswith(_LIBRARIES) and "-packages" + os.sep not in file


def told(reason: BaseException) -> str:
    """The traceback of ``reason``, folded as this module says."""
    shown = traceback.TracebackException.from_exception(reason)
    left_out = 0 if os.environ.get(FULL) == "full" else _fold(shown, reason)
    frames = "frame of chronetix is" if left_out == 1 else "frames of chronetix are"
    note = f"({left_out} {frames} not shown: {FULL}=full shows them)\n" if left_out else ""
    return "".join(shown.format()) + note


def log_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: as asyncio's own, with the traceback folded."""
    reason = context.get("exception")
    if reason is None:
        loop.default_exception_handler(context)
        return
    import logging  # asyncio has imported it; a worker without asyncio never needs it

    about = [f"{key}: {value!r}" for key, value in context.items() if key not in ("message", "exception")]
    logging.getLogger("asyncio").error("%s", "\n".join([str(context["message"]), *about, told(reason).rstrip()]))


def users_frame(reason: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame of the plugin's in the traceback of ``reason``."""
    frames = [each for each in traceback.extract_tb(reason.__traceback__) if is_users(each.filename)]
    return frames[-1] if frames else None


def _fold(shown: traceback.TracebackException, reason: BaseException | None) -> int:
    """Leave out what is not the plugin's, here and in what it was raised from; how many frames that was."""
    left_out = _fold_stack(shown.stack, isinstance(reason, _WORDED))
    if shown.__cause__ is not None:
        left_out += _fold(shown.__cause__, getattr(reason, "__cause__", None))
        if isinstance(reason, _WORDED) and not _has_users(shown.__cause__):
            left_out += len(shown.__cause__.stack)
            shown.__cause__ = None  # its text is a part of this one
    elif shown.__context__ is not None and not shown.__suppress_context__:
        left_out += _fold(shown.__context__, getattr(reason, "__context__", None))
    members: Sequence[BaseException | None] = getattr(reason, "exceptions", ())
    for each, member in zip(shown.exceptions or (), members, strict=False):
        left_out += _fold(each, member)
    return left_out


def _has_users(shown: traceback.TracebackException) -> bool:
    further = (shown.__cause__, shown.__context__, *(shown.exceptions or ()))
    return any(is_users(frame.filename) for frame in shown.stack) or any(_has_users(each) for each in further if each)


def _fold_stack(stack: traceback.StackSummary, worded: bool) -> int:
    kept = _own(stack) + _called_by_us(stack)
    if not (kept or worded or _is_plugins_call(stack)):
        return 0
    left_out = len(stack) - len(kept)
    stack[:] = kept
    return left_out


def _own(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """Frames of the plugin's, and of the library that these have called."""
    kept, owned = [], False
    for frame in stack:
        if not _is_library(frame.filename):
            owned = not _is_ours(frame.filename)
        if owned:
            kept.append(frame)
    return kept


def _called_by_us(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """Frames of a plugin that is a function of the standard library."""
    inner = len(stack)
    while inner and _is_library(stack[inner - 1].filename):
        inner -= 1
    return list(stack[inner:]) if inner and stack[inner - 1].filename in _CALLERS else []


def _is_plugins_call(stack: traceback.StackSummary) -> bool:
    return bool(stack) and stack[-1].filename in _CALLERS
