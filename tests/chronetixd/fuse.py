"""A file system of one file whose server never answers a flush: closing the file waits for ever, in any process.

Spoken to the kernel directly (/dev/fuse, protocol 7), so that no library is needed; root only.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FORGET, FLUSH, INTERRUPT = 2, 25, 36
_libc = ctypes.CDLL(None, use_errno=True)
_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
FOLDER, FILE = 1, 2


def _attr(node: int) -> bytes:
    """struct fuse_attr."""
    mode = 0o40755 if node == FOLDER else 0o100666
    return struct.pack("<QQQQQQIIIIIIIIII", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class Server:
    """Answers everything but what ``silent`` names. ``asked`` is set when that comes first."""

    def __init__(self, silent: int) -> None:
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._silent = silent
        self.asked = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        os.close(self.fd)

    def _serve(self) -> None:
        with suppress(OSError):  # ENODEV: it was unmounted
            while True:
                request = os.read(self.fd, 1 << 18)
                _, code, unique, node, *_ = _IN.unpack_from(request)
                if code == self._silent:
                    self.asked.set()
                elif code not in (FORGET, INTERRUPT):
                    body = self._body(code, node)
                    os.write(self.fd, _OUT.pack(_OUT.size + len(body), 0, unique) + body)

    @staticmethod
    def _body(code: int, node: int) -> bytes:
        match code:
            case 26:  # INIT
                return struct.pack("<IIIIHHIIHHI7I", 7, 31, 65536, 0, 12, 9, 65536, 1, 0, 0, 0, *[0] * 7)
            case 1:  # LOOKUP
                return struct.pack("<QQQQII", FILE, 0, 0, 0, 0, 0) + _attr(FILE)
            case 3:  # GETATTR
                return struct.pack("<QII", 0, 0, 0) + _attr(node)
            case 14:  # OPEN
                return struct.pack("<QII", 1, 0, 0)
        return b""


@contextmanager
def file_that_waits(folder: Path, silent: int = FLUSH) -> Iterator[tuple[Path, Server]]:
    """The path of a file whose close waits (for ``silent``) until this context ends."""
    server = Server(silent)
    options = f"fd={server.fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    folder.mkdir()
    if _libc.mount(b"slow", str(folder).encode(), b"fuse", 0, options) != 0:
        os.close(server.fd)
        raise OSError(ctypes.get_errno(), "FUSE cannot be mounted here")
    server.start()
    try:
        yield folder / "file", server
    finally:
        _abort(folder)
        _libc.umount2(str(folder).encode(), 2)  # MNT_DETACH
        server.join()


def sent_by_a_child(path: Path, sock: socket.socket, data: bytes, count: int) -> int:
    """A process that opens ``path``, sends it along with ``data``, and then waits in its close."""
    child = os.fork()
    if child == 0:
        try:
            fd = os.open(path, os.O_RDONLY)
            socket.send_fds(sock, [data], [fd] * count)
            os.close(fd)
        finally:
            os._exit(0)
    return child


def _abort(folder: Path) -> None:
    """Whoever waits for the server gets an error now."""
    device = os.minor(os.stat(folder).st_dev)
    connections = Path("/sys/fs/fuse/connections")
    if not (connections / str(device)).exists():
        _libc.mount(b"fusectl", str(connections).encode(), b"fusectl", 0, b"")
    (connections / str(device) / "abort").write_text("1")
