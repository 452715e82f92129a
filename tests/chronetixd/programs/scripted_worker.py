"""A worker that speaks the protocol by itself and does what its first argument says, well or badly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import Any

from chronetix.protocol.descriptors import Channel, pieces
from chronetix.protocol.messages import (
    Configure,
    Drain,
    Fault,
    Finished,
    Hello,
    Link,
    Log,
    Offer,
    Publish,
    Ready,
    Start,
    Started,
    ToWorker,
)

SOCK = socket.socket(fileno=int(os.environ["CHRONETIX_FD"]))
CHANNEL: Channel[Any] = Channel(ToWorker)
INBOX: list[Any] = []
A_DESCRIPTOR = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def send(message: Any, *descriptors: int) -> None:
    for data, fds in pieces(message, descriptors):
        socket.send_fds(SOCK, [data], list(fds))


def wait_for(kind: type) -> Any:
    """The next message of ``kind``; the daemon's end ends us."""
    while True:
        while INBOX:
            message = INBOX.pop(0)
            if isinstance(message, kind):
                return message
        data, descriptors, _, _ = socket.recv_fds(SOCK, 1 << 16, 64)
        if not data:
            sys.exit(70)
        INBOX.extend(message for message, _ in CHANNEL.feed(data, descriptors))


def until(stage: str) -> Configure:
    """A good worker up to ``stage``: hello, offer, ready or started."""
    send(Hello(protocol=[1], role="worker", pid=os.getpid()))
    config: Configure = wait_for(Configure)
    if stage == "hello":
        return config
    send(Offer())
    if stage == "offer":
        return config
    wait_for(Link)
    send(Ready())
    wait_for(Start)
    if stage == "start":
        return config
    send(Started())
    return config


def finish(result: Any = None) -> None:
    send(Finished(result=result))
    sys.exit(0)


def good() -> None:
    config = until("started")
    wait_for(Drain)
    finish({"node": config.node, "flow": os.environ["CHRONETIX_FLOW"], "env": os.environ["CHRONETIX_NODE"]})


def at_once() -> None:
    until("started")
    finish("done")


def exits_with_3() -> None:
    until("started")
    print("about to leave", file=sys.stderr)
    sys.exit(3)


def exits_0_early() -> None:
    until("started")
    sys.exit(0)


def faults() -> None:
    until("started")
    send(Fault(phase="frame", error="ValueError", message="no such thing", traceback="Traceback"))
    sys.exit(1)


def faults_and_lingers() -> None:
    until("started")
    send(Fault(phase="frame", error="ValueError", message="no such thing"))
    signal.pause()


def never_says_hello() -> None:
    signal.pause()


def never_offers() -> None:
    until("hello")
    signal.pause()


def speaks_99() -> None:
    send(Hello(protocol=[99], role="worker"))
    signal.pause()


def comes_as_a_client() -> None:
    send(Hello(protocol=[1], role="client"))
    signal.pause()


def garbage() -> None:
    until("started")
    SOCK.sendall(b"\x00\x00\x00\x03abc")
    signal.pause()


def oversized() -> None:
    until("started")
    SOCK.sendall(b"\xff\xff\xff\xff")
    signal.pause()


def half_a_frame() -> None:
    until("started")
    SOCK.sendall(b"\x00\x00\x01\x00abc")
    sys.exit(0)


def finishes_too_early() -> None:
    until("hello")
    send(Finished())
    signal.pause()


def offers_twice() -> None:
    until("started")
    send(Offer())
    signal.pause()


def offers_a_pipe() -> None:
    until("hello")
    socket.send_fds(SOCK, [pieces(Offer())[0].data], [os.pipe()[0]])
    signal.pause()


def offers_what_it_has_not() -> None:
    until("hello")
    send(Offer(rings=["nobody's"]), A_DESCRIPTOR)
    signal.pause()


def sends_descriptors_too_many() -> None:
    until("started")
    socket.send_fds(SOCK, [pieces(Log(level="info", message="x"))[0].data], [A_DESCRIPTOR])
    signal.pause()


def publishes_nonsense() -> None:
    until("started")
    send(Publish(envelope={"priority": "high"}, payload=b""))
    signal.pause()


def closes_its_socket() -> None:
    until("started")
    SOCK.close()
    signal.pause()


def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    until("started")
    while True:
        signal.pause()


def leaves_a_child() -> None:
    until("started")
    child = subprocess.Popen(["sleep", "1000"])
    send(Log(level="info", message="child", fields={"pid": child.pid}))
    wait_for(Drain)
    finish(child.pid)


def with_descendants(*kinds: Any) -> None:
    """Starts, tells the pid of each descendant and finishes with them. Each one is there when it is told."""
    until("started")
    pids = []
    for kind in kinds:
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(read)
            kind(write)
            os._exit(0)
        os.close(write)
        told = os.read(read, 16)
        os.close(read)
        pids.append(int(told))
        os.waitpid(-1, os.WNOHANG)
    send(Log(level="info", message="descendants", fields={"pids": pids}))
    wait_for(Drain)
    finish(pids)


def _tell(write: int) -> None:
    os.write(write, b"%d" % os.getpid())
    os.close(write)


def _linger(write: int) -> None:
    """Deaf to SIGTERM, for ever."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _tell(write)
    while True:
        signal.pause()


def _twice(write: int) -> None:
    """Forks twice with a session in between, as daemons do, and keeps what it inherited."""
    os.setsid()
    if os.fork() == 0:
        _linger(write)
    os._exit(0)


def _without_a_trace(write: int) -> None:
    """As daemons should do it: a session, no descriptor, no environment, another folder, another program."""
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        _tell(write)
        os.closerange(0, 256)
        os.execve("/bin/sleep", ["sleep", "100000"], {})
    os._exit(0)


def _as_nobody(write: int) -> None:
    os.setsid()
    os.setgid(65534)
    os.setuid(65534)
    _linger(write)


def _stopped(write: int) -> None:
    os.setsid()
    _tell(write)
    os.kill(os.getpid(), signal.SIGSTOP)


def _with_children(write: int) -> None:
    os.setsid()
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            while True:
                signal.pause()
    _linger(write)


def _hydra(write: int) -> None:
    """Each generation makes a session and the next one, and ends: never the same pid for long."""
    os.setsid()
    _tell(write)
    while True:
        if os.fork() != 0:
            os._exit(0)
        os.setsid()


def daemonises() -> None:
    with_descendants(_linger, _twice, _stopped, _with_children)


def daemonises_well() -> None:
    with_descendants(_without_a_trace)


def shares_memory() -> None:
    """Shared memory of multiprocessing, which its resource tracker removes, and a child that keeps that from ending.
    Dies of SIGKILL alone."""
    from multiprocessing import resource_tracker, shared_memory

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    until("started")
    memory = shared_memory.SharedMemory(create=True, size=1)
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    send(Log(level="info", message="descendants", fields={"pids": [tracker, child], "memory": memory.name}))
    wait_for(Drain)
    os.kill(os.getpid(), signal.SIGKILL)


def becomes_nobody() -> None:
    with_descendants(_as_nobody)


def breeds() -> None:
    with_descendants(_hydra)


def leaves_a_dying_child() -> None:
    """Its grandchild ends while it lives on."""

    def dies(write: int) -> None:
        if os.fork() == 0:
            _tell(write)
            signal.pause()
        os._exit(0)

    with_descendants(dies)


def chatters() -> None:
    until("started")
    for number in range(2000):
        print("line", number)
    print("x" * 100_000)
    print("last words", file=sys.stderr)
    sys.stdout.flush()
    finish()


globals()[sys.argv[1]]()
