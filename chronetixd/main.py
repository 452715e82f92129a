"""The entry point: runs the command ``chronetixd``, or resumes from the snapshot that the image before this one left.

Rules: while a daemon resumes, its clients and workers wait, so this module imports only what resuming needs; in a
normal start nothing is imported before Ctrl-C is set to end the process quietly.
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
    """Run ``chronetixd``; ``options`` are passed to click's command."""
    interrupt.end_quietly()
    try:
        _run(options)
    finally:
        interrupt.end_quietly()


def _run(options: dict[str, Any]) -> None:
    from chronetixd.upgrade import exec_handoff

    told = exec_handoff.received()
    if told is None:
        import_structlog()
        from chronetixd.daemon.command import command

        command(**options)
        return
    exec_handoff.guard(told)
    try:
        gc.disable()  # importing and rebuilding make no garbage
        run = _arrive(told)
    except BaseException as reason:
        exec_handoff.back(told, reason)
        raise
    run()


def _arrive(told: exec_handoff.ExecHandoff) -> Callable[[], None]:
    """Rebuild the daemon from the snapshot and return the function that runs it. Raises what rebuilding raises."""
    import_structlog()
    from chronetixd.daemon import daemon
    from chronetixd.records import logs
    from chronetixd.systemd.activation import Received
    from chronetixd.upgrade.arrival import Arrival, configured_by
    from chronetixd.upgrade.snapshot import read

    snapshot = read(told.state)
    source, configured = configured_by(snapshot)
    logs.configure(configured.settings.log_level, configured.settings.log_format)
    return partial(daemon.run, configured, Received(), source, Arrival(told, snapshot))


def import_structlog() -> None:
    """Import structlog without rich: 70 modules less, and tracebacks on a terminal do not show the values of variables,
    which hold payloads and tokens."""
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
