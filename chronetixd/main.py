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
    if told is not None:
        gc.disable()  # nothing of what is imported and rebuilt is garbage
        sys.modules["rich"] = None  # type: ignore[assignment]  # structlog takes 30 ms longer with it
        try:
            import structlog  # noqa: F401
        finally:
            del sys.modules["rich"]
        from chronetixd.upgrade.arrival import arrive

        arrive(told)
        return
    from chronetixd.command import command

    command(**options)
