"""The default paths of the control socket and the state folder: pure functions of the environment and the user id.

A flag wins over ``CHRONETIX_*``, the variable over XDG, XDG over the fixed default. An empty variable counts as not
set, and so does an XDG variable that is not absolute (as the XDG base directory specification demands). This module
does not look at the disk: a caller that makes a folder in ``/tmp`` must make it with mode 0700, and must refuse a
folder that belongs to another user.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from chronetix.protocol.errors import error

SYSTEM_SOCKET = "/run/chronetix/control.sock"
"""The control socket of the machine's daemon, used by clients whose user has no daemon."""

MAX_SOCKET_PATH = 107
"""The longest path in bytes that fits into sockaddr_un with the final zero."""


def socket_path(env: Mapping[str, str], uid: int, flag: str | None = None) -> PurePosixPath:
    """Return the path of the control socket: ``flag``, $CHRONETIX_SOCKET, $XDG_RUNTIME_DIR/chronetix/control.sock, for
    root /run/chronetix/control.sock, for other users without a runtime folder /tmp/chronetix-UID/control.sock.

    Raises ChronetixError ``socket-unusable`` for a path that a socket address cannot hold.
    """
    path = _chosen(flag, env.get("CHRONETIX_SOCKET")) or runtime_dir(env, uid) / "control.sock"
    if len(str(path).encode("utf-8", "surrogateescape")) > MAX_SOCKET_PATH:
        raise error("socket-unusable", socket=str(path), reason=f"it is longer than {MAX_SOCKET_PATH} bytes")
    return path


def runtime_dir(env: Mapping[str, str], uid: int) -> PurePosixPath:
    """Return the folder of the default control socket."""
    xdg = _absolute(env.get("XDG_RUNTIME_DIR"))
    if xdg is not None:
        return xdg / "chronetix"
    return PurePosixPath("/run/chronetix") if uid == 0 else PurePosixPath(f"/tmp/chronetix-{uid}")


def state_dir(env: Mapping[str, str], uid: int, flag: str | None = None) -> PurePosixPath:
    """Return the daemon's state folder: ``flag``, $CHRONETIX_STATE_DIR, $XDG_STATE_HOME/chronetix, for root
    /var/lib/chronetix, for other users ~/.local/state/chronetix.

    Raises ChronetixError ``state-dir-unknown`` if no variable names one.
    """
    chosen = _chosen(flag, env.get("CHRONETIX_STATE_DIR"))
    if chosen is not None:
        return chosen
    xdg = _absolute(env.get("XDG_STATE_HOME"))
    if xdg is not None:
        return xdg / "chronetix"
    if uid == 0:
        return PurePosixPath("/var/lib/chronetix")
    home = _absolute(env.get("HOME"))
    if home is None:
        raise error("state-dir-unknown", uid=uid)
    return home / ".local/state/chronetix"


def _chosen(*candidates: str | None) -> PurePosixPath | None:
    return next((PurePosixPath(candidate) for candidate in candidates if candidate), None)


def _absolute(value: str | None) -> PurePosixPath | None:
    return PurePosixPath(value) if value and value.startswith("/") else None
