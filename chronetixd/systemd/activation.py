"""Descriptors that the supervisor hands over at the start: the control socket, and what was kept in its store.

systemd's protocol: descriptors 3, 4, … of which $LISTEN_FDS tells the number and $LISTEN_FDNAMES the names, meant for
the process $LISTEN_PID alone. Rules: they are taken once, made close-on-exec, and the variables are removed, so that
nobody who is started later takes numbers of ours for his. Nothing of it is trusted to be what its name says.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass, field

from chronetix.protocol.errors import error

FIRST = 3
CONTROL = "control"
"""FileDescriptorName of the control socket in chronetixd.socket."""

FOREIGN = ".socket"
"""How the name of a socket ends whose unit gives it none."""

_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


@dataclass(slots=True)
class Received:
    """What was handed over: the control socket, and by its name whatever the store kept. Who takes it owns it."""

    control: socket.socket | None = None
    stored: dict[str, list[int]] = field(default_factory=dict)

    def close(self) -> None:
        """Close what nobody took."""
        if self.control is not None:
            self.control.close()
        for descriptors in self.stored.values():
            for fd in descriptors:
                os.close(fd)
        self.stored.clear()


def receive(env: MutableMapping[str, str], pid: int) -> Received:
    """Take what ``env`` says was handed to the process ``pid``. Raises ChronetixError ``socket-unusable`` for a control
    socket that is no listening Unix stream socket, or for two."""
    told = {name: env.pop(name) for name in _VARIABLES if name in env}
    count = told.get("LISTEN_FDS", "")
    if told.get("LISTEN_PID") != str(pid) or not count.isdecimal():
        return Received()
    names = told.get("LISTEN_FDNAMES", "").split(":")
    received = Received()
    sockets = []
    for at in range(int(count)):
        fd, name = FIRST + at, names[at] if at < len(names) else "unknown"
        try:
            os.set_inheritable(fd, False)
        except OSError:
            break  # told of more than there are
        if name == CONTROL or name.endswith(FOREIGN):
            sockets.append(fd)
        else:
            received.stored.setdefault(name, []).append(fd)
    if len(sockets) > 1:
        raise _unfit(sockets[1], "the socket unit has more than one ListenStream=; one is enough")
    if sockets:
        received.control = _listening(sockets[0])
    return received


def _listening(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        raise _unfit(fd, "it is no socket") from None
    stream = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
    if not stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise _unfit(fd, "it is no Unix stream socket that is listened on (ListenStream= with a path, Accept=no)")
    if not isinstance(sock.getsockname(), str) or not sock.getsockname():
        sock.detach()
        raise _unfit(fd, "it has no path in the file system")
    return sock


def _unfit(fd: int, reason: str) -> Exception:
    return error("socket-unusable", socket=f"descriptor {fd} of the supervisor", reason=reason)
