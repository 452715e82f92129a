"""Plugins that do what a plugin should not."""

import subprocess
import threading


def leaves_a_writer_behind(ctx):
    """Source: a process of its own session goes on writing to our stdout until that is closed."""
    writer = subprocess.Popen(["setsid", "yes"])
    ctx.log.info("left behind", writer=writer.pid)
    return
    yield


def raises_a_long_text(ctx):
    raise ValueError("z" * ctx.params["size"])
    yield


def has_no_text(ctx):
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    raise Silent
    yield


class LongResult:
    """Source of nothing with a long result."""

    def produce(self, ctx):
        return ()

    def on_stop(self, ctx):
        return "x" * ctx.params["size"]


def logs_anything(ctx):
    """Source: field names that loggers use themselves, and a record as long as a frame allows."""
    ctx.log.error("odd", method_name="f", exception={"a": 1}, stack=3, exc_info=True)
    ctx.log.info("L" * (16 * 1024 * 1024 - 200))
    return
    yield


def prints_much(ctx):
    """Source: eight megabytes in lines."""
    for n in range(8000):
        print(f"{n} ".ljust(1000, "."))
    return
    yield


def grows_without_end(ctx):
    """Source: says again and again that its arena has a further segment."""
    from chronetix import shm
    from chronetix.protocol.messages import Segment

    arena = shm.Arena(1 << 20, first=1 << 16)
    for index in range(100, 10_000):
        ctx._host._link.send(Segment(index=index), [arena.segments[0][1]])
    yield b"never"


def sends_a_socket_that_lingers(ctx):
    """Source: says that a TCP socket whose close waits for a minute is a segment."""
    import socket
    import struct

    from chronetix.protocol.messages import Segment

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sock = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    ctx._host._link.send(Segment(index=100), [sock.fileno()])
    threading.Event().wait()  # as long as we live, with the other end
    peer.close()
    yield b"never"


def nothing(frame, ctx):
    """Sink."""
