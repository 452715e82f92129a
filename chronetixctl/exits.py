"""Exit codes of chronetixctl, and the exit code for each error. They are part of the interface: scripts rely on
them."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_RUNNING: Final = 3
NOT_ALLOWED: Final = 4
UNREACHABLE: Final = 5
TIMEOUT: Final = 124
INTERRUPTED: Final = 130

MEANINGS: Final[dict[int, str]] = {
    OK: "ok",
    FAILED: "failed",
    USAGE: "wrong usage",
    NOT_RUNNING: "no such flow, or it is not running",
    NOT_ALLOWED: "not allowed",
    UNREACHABLE: "the daemon cannot be reached",
    TIMEOUT: "timed out",
    INTERRUPTED: "interrupted",
}

_BY_NAME: Final[dict[str, int]] = {
    "flow-not-found": NOT_RUNNING,
    "flow-not-running": NOT_RUNNING,
    "daemon-unreachable": UNREACHABLE,
    "connection-lost": UNREACHABLE,
    "connection-cut": UNREACHABLE,
    "daemon-stopping": UNREACHABLE,
    "daemon-upgrading": UNREACHABLE,
    "timed-out": TIMEOUT,
    "cancelled": INTERRUPTED,
}


def exit_code(code: int, name: str) -> int:
    """Return the exit code for the error of the catalogue with this code and name."""
    if 4000 <= code < 5000:
        return NOT_ALLOWED
    return _BY_NAME.get(name, FAILED)
