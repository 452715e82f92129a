"""Receives the descriptors that the service manager hands over at the start: control socket and descriptor store.

systemd's protocol: descriptors 3, 4, … are handed over; $LISTEN_FDS is their number, $LISTEN_FDNAMES their names, and
$LISTEN_PID the only process that may take them. Rules: the daemon takes them once, makes them close-on-exec, and
removes the variables, so that no child takes these numbers for descriptors of its own. The daemon never trusts that a
descriptor is what its name says.
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
"""The end of a socket's name if its unit sets no FileDescriptorName: the unit's own name."""

_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


@dataclass(slots=True)
class Received:
    """The descriptors that were handed over: the control socket, and those of the descriptor store by name. A caller
    that takes a descriptor out owns it."""

    control: socket.socket | None = None
    stored: dict[str, list[int]] = field(default_factory=dict)

    def close(self) -> None:
        """Close the descriptors that no caller has taken."""
        if self.control is not None:
            self.control.close()
        for descriptors in self.stored.values():
            for fd in descriptors:
                os.close(fd)
        self.stored.clear()


def receive(env: MutableMapping[str, str], pid: int) -> Received:
    """Take the descriptors that ``env`` says were handed to the process ``pid``, and return them. Raises ChronetixError
    ``socket-unusable`` for a control socket that is no listening Unix stream socket, and for more than one."""
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
            break  # $LISTEN_FDS names more descriptors than are open
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
