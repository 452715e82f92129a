"""The way in: the command ``chronetixd``, or straight on from the snapshot that the image before this one has left.

Everybody waits in the second case, so nothing is imported here that it does not need; and in the first one nothing
before Ctrl-C has its meaning.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from chronetixd import interrupt

if TYPE_CHECKING:
    from chronetixd.upgrade import exec_handoff


def main(**options: Any) -> None:
    """Run ``chronetixd``; ``options`` are click's."""
    interrupt.end_quietly()
    try:
        _run(options)
    finally:
        interrupt.end_quietly()


def _run(options: dict[str, Any]) -> None:
    from chronetixd.upgrade import exec_handoff

    told = exec_handoff.received()
    if told is None:
        from chronetixd.daemon.command import command

        command(**options)
        return
    exec_handoff.guard(told)
    try:
        gc.disable()  # nothing of what is imported and rebuilt is garbage
        run = _arrive(told)
    except BaseException as reason:
        exec_handoff.back(told, reason)
        raise
    run()


def _arrive(told: exec_handoff.ExecHandoff) -> Callable[[], None]:
    """What runs a daemon that goes on where the one before it stopped."""
    _import_structlog()
    from chronetixd.daemon import daemon
    from chronetixd.records import logs
    from chronetixd.systemd.activation import Received
    from chronetixd.upgrade.arrival import Arrival, configured_by
    from chronetixd.upgrade.snapshot import read

    snapshot = read(told.state)
    source, configured = configured_by(snapshot)
    logs.configure(configured.settings.log_level, configured.settings.log_format)
    return partial(daemon.run, configured, Received(), source, Arrival(told, snapshot))


def _import_structlog() -> None:
    """Without rich, with which it takes 30 ms longer, for tracebacks that nobody sees."""
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
