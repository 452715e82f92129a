"""The inspector: the process that takes peers' descriptors in, so that the daemon never has one it must not close.

Closing a descriptor may wait for whoever made it: a TCP socket lingers, a FUSE file is flushed, and that for as long as
its maker likes. Nothing can take back a descriptor that a process has once received but closing it. So strangers'
descriptors are received here: what is harmless (shared memory, a pipe without a name) goes on to the
daemon, with anything else this process ends, and its end closes it. Sockets whose unread bytes may bring descriptors
along are closed here, too.

Run by its path with ``-I -S``, the number of its socket as argument; imports nothing of ours. It serves one owner
(:mod:`chronetixd.loop.inspection`), who alone waits when it has to. Packets, one a request: number and bytes to
receive, 0 for a socket to be closed, with the socket; the answer: number and how many descriptors come with it, or
``REFUSED``.
"""

import array
import contextlib
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Sequence

REQUEST = struct.Struct("<QI")
ANSWER = struct.Struct("<Qi")
REFUSED = -1
MAX_PER_SENDMSG = 253
F_GET_SEALS = 1034


def harmless(fd: int) -> bool:
    """Closing ``fd``, and asking after it, waits for nobody. F_GET_SEALS is known by memory only (memfd, tmpfs)."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, F_GET_SEALS)
        return True
    return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:[")  # a file's name begins with a slash


def received(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """As in :mod:`chronetix.protocol.descriptors`, which is not there without site-packages."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def take_in(sock: socket.socket, size: int) -> list[int] | None:
    """Receive ``size`` bytes, which the daemon has looked at already, and what comes with them; None if any of it is
    not harmless, or not all of it is there."""
    room = socket.CMSG_SPACE(MAX_PER_SENDMSG * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(size, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    descriptors = received(ancillary)
    whole = len(data) == size and not flags & socket.MSG_CTRUNC
    return descriptors if whole and all(map(harmless, descriptors)) else None


def serve(line: socket.socket) -> None:
    """Answer until the daemon closes ``line``, or something is not harmless."""
    while True:
        request, ancillary, _, _ = line.recvmsg(REQUEST.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        if not request:
            return
        number, size = REQUEST.unpack(request)
        (fd,) = received(ancillary)
        if size == 0:
            os.close(fd)
            line.send(ANSWER.pack(number, 0))
            continue
        with socket.socket(fileno=fd) as sock:
            descriptors = take_in(sock, size)
            if descriptors is None:
                line.send(ANSWER.pack(number, REFUSED))
                os._exit(0)
            answer = ANSWER.pack(number, len(descriptors))
            socket.send_fds(line, [answer], descriptors)
            for each in descriptors:
                os.close(each)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(socket.socket(fileno=int(sys.argv[1])))
