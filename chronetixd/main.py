"""The way in: the command ``chronetixd``, or straight on from the snapshot that the image before this one has left.

Everybody waits in the second case, so nothing is imported here that it does not need.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

from chronetixd.upgrade import passage


def main(**options: Any) -> None:
    """Run ``chronetixd``; ``options`` are click's."""
    told = passage.received()
    if told is None:
        from chronetixd.command import command

        command(**options)
        return
    passage.guard(told)
    try:
        gc.disable()  # nothing of what is imported and rebuilt is garbage
        _import_structlog()
        from chronetixd.upgrade.arrival import arrive
    except BaseException as reason:
        passage.fall_back(told, f"{type(reason).__name__}: {reason}")
        raise
    arrive(told)


def _import_structlog() -> None:
    """Without rich, with which it takes 30 ms longer, for tracebacks that nobody sees."""
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
