"""Workers that outlive their daemon: the data go on, and the next daemon gets them back."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chronetix.protocol.errors import error
from chronetix.protocol.messages import HANDOVER, REATTACH, Hello, Reattach, Reattached
from chronetixctl.conformance.check import PROTOCOL, Level, check
from chronetixctl.conformance.forms import EVERY, Failed, Form
from chronetixctl.conformance.rig import Rig

WORKERS = (PROTOCOL, "Workers")
TOKEN = "the kit's own token"


@contextmanager
def _place() -> Iterator[socket.socket]:
    """Where the next daemon will listen."""
    with tempfile.TemporaryDirectory(prefix="chronetix-kit-") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(Path(folder) / "control.sock"))
        yield listener


def _survive(rig: Rig, place: socket.socket) -> None:
    """Bring it up, as a worker that is to survive, and take its daemon away."""
    rig.up(credits=4, on_daemon_loss="survive", socket=place.getsockname(), token=TOKEN)
    _flow(rig, 5)
    rig.lose_daemon()


def _flow(rig: Rig, count: int) -> None:
    """Have so many frames go through."""
    if rig.form is Form.SOURCE:
        rig.await_frames(len(rig.down0.frames) + count, expected="further frames")
        return
    for number in range(1, count + 1):
        rig.feed(rig.payload(number))
    rig.returned()


def _meet(rig: Rig, place: socket.socket) -> Reattach:
    """Listen as the next daemon, and take it in; what it says of itself."""
    place.listen()
    rig.accept(place)
    hellos = len(rig.said(Hello))
    hello = rig.await_said(Hello, "a hello to the next daemon", hellos + 1)
    if hello.role != "worker" or REATTACH not in hello.features:
        raise Failed(f"role worker and the feature {REATTACH}", f"{hello.role}, {hello.features}")
    rig.welcome([REATTACH, HANDOVER])
    message = rig.await_said(Reattach, "reattach, behind the welcome")
    found = (message.flow, message.node, message.token, message.state)
    wanted = ("conformance", "tested", TOKEN, "started")
    if found != wanted:
        raise Failed(f"flow, node, token and state {wanted}", f"{found}")
    for what, stages, ports in (
        ("outputs", message.outputs, rig.configured.outputs),
        ("inputs", message.inputs, rig.configured.inputs),
    ):
        if sorted(stage.route for stage in stages) != sorted(port.route for port in ports):
            raise Failed(f"{what} {[port.route for port in ports]}", f"{[stage.route for stage in stages]}")
    return message


@check("runs on without a daemon, and shows the next one who it is and all its memory", EVERY, Level.FULL, WORKERS)
def reattaches(rig: Rig) -> None:
    with _place() as place:
        _survive(rig, place)
        _flow(rig, 20)
        _meet(rig, place)
        reading, writing = os.pipe()
        rig.keep(reading)
        rig.say(Reattached(), descriptors=[writing, writing])
        os.close(writing)
        rig.ping(77)
        _flow(rig, 5)
        rig.close_inputs()
        rig.finished()


@check("exits with status 70 when the next daemon does not take it back", EVERY, Level.FULL, WORKERS)
def refused_back(rig: Rig) -> None:
    with _place() as place:
        _survive(rig, place)
        _meet(rig, place)
        failure = error("reattach-refused", node="tested", flow="conformance", reason="the kit says so").failure()
        rig.say(failure)
        rig.exited("exit status 70 after it was refused", (70,))


@check(
    "exits with status 70 when the daemon goes before its start, though it could survive", EVERY, Level.FULL, WORKERS
)
def lost_before_start(rig: Rig) -> None:
    with _place() as place:
        rig.begin()
        rig.plan(credits=4, on_daemon_loss="survive", socket=place.getsockname(), token=TOKEN)
        rig.greet()
        rig.offered()
        rig.link()
        rig.ready()
        rig.daemon.hang_up()
        rig.exited("exit status 70: it had not started", (70,))
