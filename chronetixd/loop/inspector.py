"""The inspector: the process that receives strangers' descriptors, so that the daemon never has one that it must not
close.

Closing a descriptor may wait as long as its maker likes: a TCP socket lingers, a FUSE file is flushed. A descriptor
that a process has received can only be closed. So this process receives strangers' descriptors: it passes harmless ones
(shared memory, a pipe without a name) on to the daemon, and ends with any other, which its end closes. It also closes
sockets whose unread bytes may bring descriptors along.

The inspector is run by its path with ``-I -S``, with the number of its socket as argument, and imports nothing of
Chronetix. It serves one owner (:mod:`chronetixd.loop.inspection`); if it has to wait, only that owner waits. One packet
is one request: a number, the count of bytes to receive (0 for a socket to be closed), and the socket. The answer: the
number, and how many descriptors come with it, or ``REFUSED``.
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
    """Return whether neither closing ``fd`` nor looking at it can wait. Only memory (memfd, tmpfs) has F_GET_SEALS."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, F_GET_SEALS)
        return True
    return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:[")  # a file's name begins with a slash


def received(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """As in :mod:`chronetix.protocol.descriptors`, which cannot be imported without site-packages."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def take_in(sock: socket.socket, size: int) -> list[int] | None:
    """Receive ``size`` bytes, which the daemon has looked at before, and return the descriptors that come with them.
    None if one of them is not harmless, or bytes or descriptors are missing."""
    room = socket.CMSG_SPACE(MAX_PER_SENDMSG * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(size, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    descriptors = received(ancillary)
    whole = len(data) == size and not flags & socket.MSG_CTRUNC
    return descriptors if whole and all(map(harmless, descriptors)) else None


def serve(line: socket.socket) -> None:
    """Answer requests until the daemon closes ``line``, or a descriptor is not harmless."""
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
