"""From the hello to the exit status: the messages that every worker sends, and when."""

from __future__ import annotations

import signal
import time

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Drain, Fault, Finished, Offer, Ready, Start, Started
from chronetixctl.conformance.check import PROTOCOL, Level, check
from chronetixctl.conformance.conversation import QUIET_S
from chronetixctl.conformance.forge import CLOSED, word
from chronetixctl.conformance.forms import EVERY, SENDS, TAKES, Failed, Form
from chronetixctl.conformance.rig import Rig

HANDSHAKE = (PROTOCOL, "Handshake")
WORKERS = (PROTOCOL, "Workers")

DAEMON_GONE = 70
"""Exit status of a worker whose control socket has ended."""

TERMINATE_S = 2.0
"""Between SIGTERM and SIGKILL, as a daemon does it by default."""


@check("comes up: hello, offer, ready, started, each when it is due", EVERY, Level.MINIMAL, WORKERS)
def comes_up(rig: Rig) -> None:
    rig.up()


@check("says hello first, and nothing more before the welcome", EVERY, Level.MINIMAL, HANDSHAKE)
def hello_first(rig: Rig) -> None:
    rig.begin()
    rig.quiet(lambda: len(rig.heard) > 1, "nothing behind the hello before the welcome has come")


@check("ends by itself when the daemon refuses its protocol versions", EVERY, Level.MINIMAL, HANDSHAKE)
def refused_versions(rig: Rig) -> None:
    hello = rig.begin()
    rig.say(error("version-unsupported", offered=list(hello.protocol), supported=[99]).failure())
    rig.daemon.hang_up()
    rig.failed_orderly("an exit status above 0 after the daemon's refusal")


@check("offers exactly the memory of its ports, with headers that fit them", EVERY, Level.MINIMAL, WORKERS)
def exact_offer(rig: Rig) -> None:
    rig.begin()
    rig.plan(credits=5)
    rig.greet()
    rig.offered()


@check("takes the defaults for what the daemon leaves out of a port", EVERY, Level.MINIMAL, WORKERS)
def default_ports(rig: Rig) -> None:
    rig.begin()
    rig.plan(credits=64)
    rig.daemon.reshape = _without_defaults
    rig.greet()
    rig.daemon.reshape = None
    rig.offered()
    rig.link()
    rig.ready()


def _without_defaults(message: dict[str, object]) -> dict[str, object]:
    for ports in (message.get("inputs"), message.get("outputs")):
        if isinstance(ports, list):
            ports[:] = [{"route": port["route"], "peer": port["peer"]} for port in ports]
    return message


@check("is not ready before its routes are linked", EVERY, Level.MINIMAL, WORKERS)
def ready_after_link(rig: Rig) -> None:
    rig.begin()
    rig.plan()
    rig.greet()
    rig.offered()
    rig.quiet(lambda: bool(rig.said(Ready)), "no ready before a link")
    rig.link()
    rig.ready()


@check("starts when it is told to, and not before", EVERY, Level.MINIMAL, WORKERS)
def started_after_start(rig: Rig) -> None:
    rig.begin()
    rig.plan()
    rig.greet()
    rig.offered()
    rig.link()
    rig.ready()
    rig.quiet(lambda: bool(rig.said(Started)), "no started before start")
    if any(down.frames for down in rig.downstreams):
        raise Failed("no frame before start", f"{len(rig.down0.frames)} frames")
    rig.say(Start())
    rig.await_said(Started, "started")


@check("answers each ping, before its start and while it waits", EVERY, Level.USUAL, WORKERS)
def pongs(rig: Rig) -> None:
    rig.begin()
    rig.plan()
    rig.greet()
    rig.offered()
    rig.link()
    rig.ready()
    rig.ping(7)
    rig.start()
    for number in (8, 1 << 40):
        rig.ping(number)


@check(
    "ends when its inputs have: everything returned, outputs closed, finished, status 0", TAKES, Level.MINIMAL, WORKERS
)
def ends_with_inputs(rig: Rig) -> None:
    rig.up()
    for number in range(1, 11):
        rig.feed(rig.payload(number))
    rig.close_inputs()
    rig.until(lambda: bool(rig.said(Finished)), "finished, when the inputs have ended")
    _all_is_done(rig)
    rig.finished()


@check("ends though no frame came before the end of its inputs", TAKES, Level.MINIMAL, WORKERS)
def ends_without_a_frame(rig: Rig) -> None:
    rig.up()
    rig.close_inputs()
    rig.finished()


def _all_is_done(rig: Rig) -> None:
    """Raises Failed if it said finished although something was left to do."""
    rig.take_frames()
    for up in rig.honest:
        if up.outstanding:
            raise Failed("finished after every frame was returned", f"{up.outstanding} frames are out")
    for down in rig.downstreams:
        if not down.ended:
            raise Failed("finished after every output was closed", f"{down.port.route} is open")


@check(
    "drains: takes what was sent to it before, and ends without waiting for the inputs' end",
    TAKES,
    Level.MINIMAL,
    WORKERS,
)
def drains(rig: Rig) -> None:
    rig.up()
    for number in range(1, 11):
        rig.feed(rig.payload(number))
    rig.say(Drain())
    rig.until(lambda: bool(rig.said(Finished)), "finished, after drain")
    _all_is_done(rig)
    rig.finished()
    offer, descriptors = rig.offers[0]
    if not word(descriptors[len(offer.rings)], CLOSED):
        raise Failed("an input that has not ended is left: CREDIT.closed is 1", "it is 0")


@check("ends also when drain comes right behind start", EVERY, Level.USUAL, WORKERS)
def drained_at_start(rig: Rig) -> None:
    rig.begin()
    rig.plan(credits=4)
    rig.greet()
    rig.offered()
    rig.link()
    rig.ready()
    rig.say(Start(), Drain())
    rig.finished()


@check(
    "stops when it is drained: no further frame, outputs closed, finished, status 0",
    (Form.SOURCE,),
    Level.MINIMAL,
    WORKERS,
)
def stops(rig: Rig) -> None:
    rig.up()
    rig.await_frames(3)
    rig.say(Drain())
    rig.until(lambda: bool(rig.said(Finished)), "finished, after drain")
    _all_is_done(rig)
    rig.finished()


@check("stops also while it waits for a credit", (Form.SOURCE,), Level.USUAL, WORKERS)
def stops_without_credit(rig: Rig) -> None:
    rig.up(credits=4, held=0)
    rig.await_frames(4)
    rig.say(Drain())
    rig.down0.hold = False
    rig.down0.release()
    rig.finished()


@check("exits with status 70 when the daemon is gone, wherever it is in its life", EVERY, Level.MINIMAL, WORKERS)
def daemon_gone(rig: Rig) -> None:
    rig.up()
    rig.daemon.hang_up()
    rig.exited(f"exit status {DAEMON_GONE} when the control socket has ended", (DAEMON_GONE,))


@check("exits with status 70 when the daemon goes before the welcome", EVERY, Level.USUAL, WORKERS)
def daemon_gone_early(rig: Rig) -> None:
    rig.begin()
    rig.daemon.hang_up()
    rig.exited(f"exit status {DAEMON_GONE} when the control socket has ended", (DAEMON_GONE,))


@check("exits with status 70 when the daemon goes before the link", EVERY, Level.USUAL, WORKERS)
def daemon_gone_before_link(rig: Rig) -> None:
    rig.begin()
    rig.plan()
    rig.greet()
    rig.offered()
    rig.daemon.hang_up()
    rig.exited(f"exit status {DAEMON_GONE} when the control socket has ended", (DAEMON_GONE,))


@check("ends within 2 s of SIGTERM, and neither closes nor leaves a route", EVERY, Level.MINIMAL, WORKERS)
def sigterm(rig: Rig) -> None:
    rig.up()
    rig.program.signal(signal.SIGTERM)
    rig.exited("its end within 2 s of SIGTERM", limit_s=max(TERMINATE_S, rig.subject.timeout_s))
    _nothing_closed(rig)
    if rig.said(Finished):
        raise Failed("no finished from a worker that was told to go", "finished")


@check("ends within 2 s of SIGTERM also while no credit comes back", SENDS, Level.USUAL, WORKERS)
def stop_time_out(rig: Rig) -> None:
    rig.up(credits=4, untaken=0)
    if rig.form is Form.MAP:
        for number in range(1, 9):
            rig.feed(rig.payload(number))
    rig.until(rig.down0.full, "as many frames on the output as it has credits")
    rig.say(Drain())
    rig.quiet(lambda: bool(rig.said(Finished)), "no finished while frames wait for a credit")
    rig.program.signal(signal.SIGTERM)
    rig.exited("its end within 2 s of SIGTERM", limit_s=max(TERMINATE_S, rig.subject.timeout_s))


def _nothing_closed(rig: Rig) -> None:
    offer, descriptors = rig.offers[0]
    for name, descriptor in zip((*offer.rings, *offer.credits), descriptors, strict=False):
        if word(descriptor, CLOSED):
            raise Failed("routes left open: the daemon decides whether a successor follows", f"{name} is closed")


@check("goes on when nobody reads its stdout and stderr any more", EVERY, Level.USUAL, WORKERS)
def outlives_stdout(rig: Rig) -> None:
    rig.program.close_streams()
    rig.up(credits=4)
    if rig.form is Form.SOURCE:
        rig.await_frames(20)
    else:
        for number in range(1, 21):
            rig.feed(rig.payload(number))
        rig.returned()
    rig.close_inputs()
    rig.finished()


@check(
    "does nothing while nothing comes: nobody polls", EVERY, Level.USUAL, ("shm/SPEC.md", "7 Wake-up"), mandatory=False
)
def sleeps(rig: Rig) -> None:
    rig.up(credits=4, held=0 if rig.form.outputs else None)
    if rig.form is Form.SOURCE:
        rig.await_frames(4)
    rig.quiet(lambda: False, "it goes on")
    before, begun = rig.program.cpu_s(), time.monotonic()
    rig.quiet(lambda: False, "it goes on", 4 * QUIET_S)
    used, passed = rig.program.cpu_s() - before, time.monotonic() - begun
    if used > passed / 10:
        raise Failed("less than a tenth of a processor while it waits", f"{used:.2f} s in {passed:.2f} s")


@check("tells why it fails: a fault, then an exit status above 0", EVERY, Level.USUAL, WORKERS)
def tells_faults(rig: Rig) -> None:
    rig.begin()
    rig.plan()
    rig.greet()
    rig.offered()
    memory = rig.forge.memory(4096)
    rig.link(changed={"ring": memory.fd, "credit": memory.fd})
    rig.until(lambda: bool(rig.said(Fault)), "a fault: the peer's memory has no header", may_end=True)
    if rig.said(Fault)[0].phase != "wiring":
        raise Failed("a fault of phase wiring", rig.seen())
    rig.failed_orderly("an exit status above 0 after the fault")


@check("does not offer before it is configured", EVERY, Level.USUAL, WORKERS)
def offer_after_configure(rig: Rig) -> None:
    rig.begin()
    rig.plan()
    rig.welcome()
    rig.quiet(lambda: bool(rig.said(Offer)), "no offer before configure")
    rig.configure()
    rig.offered()
