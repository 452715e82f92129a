"""A whole life of a worker, played with itself: what only a first time costs is then paid.

The launcher rehearses before it forks anything: types are worked out, method caches filled, bytecode specialised,
and every worker shares that. A spare rehearses once more, for itself: the pages that a worker writes to are then its
own already. Nothing is left: no descriptor, no thread, no module, no entry in ``sys.path``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from typing import Any

import msgspec

from chronetix.nodeworker.memory.wiring import build
from chronetix.nodeworker.process import worker
from chronetix.protocol.framing import encode, message_types
from chronetix.protocol.messages import Configure, Drain, Link, Port, Start, ToWorker, Welcome, WireMessage

PLUGIN = "chronetix.nodeworker.process.rehearsal_plugin"
"""Imported anew each time, as a plugin is."""


def rehearse(rounds: int = 1) -> None:
    """Live ``rounds`` lives. The process has as many threads afterwards as before."""
    for kind in message_types(ToWorker).values():
        with contextlib.suppress(msgspec.ValidationError):
            msgspec.convert({}, kind)
    path, before = sys.path[:], len(_threads())
    for _ in range(rounds):
        _live()
        _wire()
    sys.path[:] = path
    _await_end_of_threads(before)


def _live() -> None:
    """From hello to finished; everything that the daemon would say lies in the socket from the beginning."""
    ours, theirs = socket.socketpair()
    with ours:
        for message in _script():
            ours.sendall(encode(message))
        if worker.Worker(theirs).run() != worker.OK:
            raise RuntimeError("a rehearsed worker failed; its traceback is above")
    sys.modules.pop(PLUGIN, None)


def _script() -> list[WireMessage]:
    configure = Configure(
        flow="rehearsal",
        node="node",
        plugin_id="rehearsal",
        version="1",
        kind="Python",
        uri=f"python://{PLUGIN}:Idle",
        base_dir=os.path.dirname(__file__),
    )
    return [Welcome(protocol=1, daemon=""), configure, Link(), Start(), Drain()]


def _wire() -> None:
    """Make and give back the memory of a node with an input and an output, whose peers do not exist."""
    ports: dict[str, Any] = {"inputs": [_port("in")], "outputs": [_port("out")]}
    wiring = build(msgspec.structs.replace(_script()[1], **ports), lambda *_: None, lambda _: None)  # type: ignore[arg-type]
    wiring.offer()
    wiring.close()
    wiring.bell.close()


def _port(route: str) -> Port:
    return Port(route=route, peer="peer")


def _threads() -> list[str]:
    return os.listdir("/proc/self/task")


def _await_end_of_threads(before: int) -> None:
    """A thread that has run its last line of Python still lives for a moment, and forking must not meet it."""
    while len(_threads()) > before:
        time.sleep(0.0001)
