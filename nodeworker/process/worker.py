"""A worker process from its control socket to its exit code: hello, wiring, plugin, loop, end.

Exit codes: 0 finished, 1 the plugin or the wiring failed (a Fault was sent), 70 the daemon is gone, 143 told to stop by
SIGTERM before the inputs had ended; a plugin that calls ``sys.exit`` with something else than 0 ends with that. In each
case the interpreter's own end follows (``engine.ending``), in time, or it is a fault of phase ``end``.
SIGTERM and SIGINT interrupt a wait at once and a callback never: it is finished first, unless the signal comes a
second time.

A child that the plugin forks is no worker (``engine.children``): it says nothing to the daemon or the peers, and ends
where the plugin was called.

The socket, its reader, the memory, the node and its loop are modules of their own. What is here is the order in which
they begin and end, and which exit code each way out has; both are one table, however it is cut.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeVar

import msgspec

from chronetix.nodeworker import _clone
from chronetix.nodeworker.api.errors import DaemonGone, Interrupted, said, sendable
from chronetix.nodeworker.api.outputs import Outputs
from chronetix.nodeworker.api.tracebacks import told
from chronetix.nodeworker.engine import children, ending
from chronetix.nodeworker.engine.load import load
from chronetix.nodeworker.engine.loop import Emptied, Event, Loop, Lost, Mailbox
from chronetix.nodeworker.engine.node import Node
from chronetix.nodeworker.memory.wiring import NO_HUGEPAGES, Wiring, build
from chronetix.nodeworker.process import native_threads
from chronetix.nodeworker.process.link import ControlLink
from chronetix.nodeworker.process.reader import Reader
from chronetix.nodeworker.process.reattach import Reattachment
from chronetix.nodeworker.process.remote import DaemonHost
from chronetix.nodeworker.process.streams import ForeignStreams
from chronetix.protocol.errors import ChronetixError, error, from_failure
from chronetix.protocol.framing import encode, type_of
from chronetix.protocol.handshake import concluded
from chronetix.protocol.messages import (
    ACCUSE,
    HANDOVER,
    PROTOCOL_VERSIONS,
    SHARED_PROCESS,
    Accuse,
    Assign,
    Configure,
    Drain,
    Drained,
    Extend,
    Failure,
    Fault,
    Finished,
    GaveUp,
    Hello,
    Link,
    Ping,
    Pong,
    Ready,
    Reattach,
    Segment,
    SegmentDropped,
    Start,
    Started,
    ToWorker,
    WireMessage,
)
from chronetix.shm import Doorbell, PeerFault

if TYPE_CHECKING:
    from chronetix.nodeworker.process.async_worker import AsyncRun

M = TypeVar("M", Link, Configure)

FD_VARIABLE = "CHRONETIX_FD"
"""Environment variable with the number of the inherited control socket."""

OK, FAILED, DAEMON_GONE, TERMINATED = 0, 1, 70, 143

HURRY = 0.75
"""Of the time between SIGTERM and SIGKILL: how much of it may have passed before what hangs at the end is told."""

Life = Literal["starting", "started"]

AS_IT_IS = Assign(name="")
"""The place of a program that was executed where it belongs."""

SPARE = Assign(name="spare")
"""The place of a worker that does not know its own yet."""

MESSAGE_LIMIT = 4 * 1024
"""Characters of a failure's message that are sent."""

TRACEBACK_LIMIT = 64 * 1024
"""Characters of a traceback that are sent; the end, where the cause is, is kept."""


class Runs(Protocol):
    """What runs a node, in this thread: :class:`Loop`, or its asynchronous like."""

    def start(self) -> None:
        """``on_start``."""

    def run(self) -> None:
        """Until the node has nothing more to do."""

    def stop(self) -> Any:
        """``on_stop`` and the end of the outputs; the node's result."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A worker in a process that the daemon has not started: what it says in its hello, and where it has connected.
    ``shared``: the process does more than this and its signals are not the worker's."""

    name: str
    token: str
    socket: str
    shared: bool

    @property
    def features(self) -> list[str]:
        """What it says in its hello."""
        return [SHARED_PROCESS] if self.shared else []


class Worker:
    """One run of one node over ``sock``. ``found`` is the plugin of a program that brings its own; ``place`` what the
    process still has to become after its hello, by default nothing, ``SPARE`` if the daemon will say. A ``guest`` has
    attached: its process, streams and signals are not the daemon's."""

    def __init__(
        self, sock: socket.socket, found: Any = None, place: Assign = AS_IT_IS, guest: Guest | None = None
    ) -> None:
        self._owner = children.Owner()
        self._guest = guest
        self._welcomed = False
        self.result: Any = None
        """What the node's ``on_stop`` has returned, once it has finished."""
        self.ended_by: BaseException | None = None
        """Of a guest: what has ended it, once it has ended otherwise."""
        self._link: ControlLink[ToWorker] = ControlLink(sock, ToWorker)
        self._found = found
        self._place = place
        self._mailbox: Mailbox = deque()
        self._node: Node | None = None
        self._wiring: Wiring | None = None
        self._reader: Reader | None = None
        self._reattachment: Reattachment | None = None
        self._life: Life = "starting"
        self._finished: Finished | None = None
        self._telling = threading.Lock()
        """Held while its life goes on: what it says of itself and what it says then are of one moment."""
        self._signals = 0
        self.stopped_by = 0
        """The signal that came last."""
        self._signalled = 0.0
        """When the first of them came."""
        self._async_run: AsyncRun | None = None
        self._closing: AsyncRun | None = None
        self._hangs = ""
        """What the plugin has left in its event loop and does not end."""
        self._interruptible = True
        self._interrupted_by: BaseException | None = None
        self._put_back: dict[signal.Signals, Any] = {}
        """The handlers of the program that was there before; for :meth:`close`."""
        self._leaving = False
        """The node has ended: SIGTERM leaves the process less time for its own end, and interrupts nothing."""
        self._accuses = False
        """The daemon knows the message by which a worker reports a peer."""
        self._ended_by: BaseException | None = None
        """Kept until the inputs are abandoned: with it go the frames that were worked on, and with these their credits,
        as if they had been done with."""

    @property
    def is_here(self) -> bool:
        """This is the worker's own process, and not a child that the plugin has forked."""
        return self._owner.is_here

    def run(self) -> int:
        """The exit code, after everything was sent. Raises nothing that a plugin or the daemon may cause."""
        try:
            return self.live()
        finally:
            self.close()

    def live(self) -> int:
        """As :meth:`run`, and the daemon can still be told what goes wrong at the very end, until :meth:`close`."""
        global _current
        if self._has_signals:
            self._put_back = catch_signals()
            _current = self
        code = FAILED
        try:
            code = self._lived()
            return FAILED if self._hangs else code
        finally:
            self._give_back(orderly=code == OK)
            if self._hangs and not isinstance(self._ended_by, DaemonGone):
                print(f"chronetix: {self._hangs}", file=sys.stderr, flush=True)
                with suppress(OSError):
                    self._say_what_hangs(self._hangs)
            self._ended_by = None

    @property
    def _has_signals(self) -> bool:
        """This process gets SIGTERM and SIGINT for the worker, and for nothing else."""
        return self._guest is None or not self._guest.shared

    def interrupt(self, reason: BaseException) -> None:
        """As a signal would, from any thread, for a worker that gets none: a wait is ended at once by ``reason``, a
        callback is finished first."""
        self._mailbox.append(Lost(reason))
        self._cut(reason)
        if self._reader is None:
            self._link.cut()

    def _cut(self, reason: BaseException) -> None:
        """End what the plugin's thread waits for: ``reason`` is in the mailbox."""
        self._interrupted_by = reason
        self._on_drain()
        if self._node is not None:
            self._node.step.interrupt = reason
        if self._async_run is not None:
            self._async_run.interrupt(reason)
        elif self._interruptible and self._wiring is not None:
            self._wiring.bell.interrupt(reason)

    def close(self) -> None:
        """Nothing more is said to the daemon, and signals are the program's own again. Idempotent."""
        global _current
        self._link.close()
        for number, handler in self._put_back.items():
            children.put_back(number, handler)
        self._put_back = {}
        if _current is self:
            _current = None

    def end(self, code: int) -> NoReturn:
        """The end of the interpreter, and with it of the process. Raises SystemExit. When a task of the plugin's has
        used up the time for that, the process exits at once."""
        if self._hangs:
            ending.flush()
            os._exit(code)
        end = ending.Shutdown(code, self._end_s, self._say_what_hangs, self._last_words, self._let_go)
        ending.signals(end, self._hurry_s)
        end.run()

    @property
    def _hurry_s(self) -> float:
        """How long the end may take after SIGTERM."""
        return HURRY * (self._node.config.terminate_ns if self._node is not None else 0) / 1e9

    @property
    def _end_s(self) -> float:
        """How long the end may take from now on."""
        limit_s = self._node.config.end_ns / 1e9 if self._node is not None else 0.0
        if self._signals:
            limit_s = min(limit_s, self._hurry_s - (time.monotonic() - self._signalled))
        return max(limit_s, 0.0)

    def _let_go(self) -> None:
        """Of the plugin: it is finalized now, and not with all that there is here."""
        self._found = None
        if self._node is not None:
            self._node.let_go()

    def _say_what_hangs(self, text: str) -> None:
        self._link.send(_hung(text))

    def _last_words(self, text: str) -> tuple[int, bytes]:
        try:
            return os.dup(self._link.fileno()), encode(_hung(text))
        except OSError:  # no daemon is there
            return -1, b""

    def _give_back(self, orderly: bool) -> None:
        """Who fails, leaves, or is told to stop at once, says nothing to the peers: whether there is a successor, the
        daemon decides."""
        if self._reader is not None:
            self._reader.end()
        if self._wiring is not None:
            if self._has_signals:
                children.ring_on(children.STOPPING, -1)
            stays = orderly and self._node is not None and not self._node.leaves
            (self._wiring.close if stays else self._wiring.abandon)()
            self._wiring.bell.close()

    def _lived(self) -> int:
        try:
            code = self._live()
            self._leaving = True
            self._end_child(None)
            return code
        except BaseException as reason:
            self._leaving = True
            self._end_child(reason)
            return self._ended(reason)

    def _end_child(self, reason: BaseException | None) -> None:
        """End this process if it is a child that the plugin has forked, which has come back to us."""
        if not self._owner.is_here:
            children.end_child(reason)

    def _ended(self, reason: BaseException) -> int:
        """The exit code of what it was ended by."""
        self._ended_by = reason
        if self._guest is not None:
            self.ended_by = reason = self._interrupted_by or reason
            if not self._welcomed:
                return FAILED
            if isinstance(reason, Interrupted):
                return DAEMON_GONE if isinstance(reason, DaemonGone) else TERMINATED
        if isinstance(reason, DaemonGone):
            print(f"chronetix worker: {reason}; stopping", file=sys.stderr)
            return DAEMON_GONE
        return TERMINATED if isinstance(reason, Interrupted) else self._report(reason)

    def _live(self) -> int:
        node = self._prepare(self._hello())
        self._await_start()
        arguments = (node, self._mailbox, self._bell, self._host.reply, self._rewire)
        result = self._run_async(arguments) if node.plugin.asynchronous else self._run(Loop(*arguments))
        with self._telling:
            self._finished = Finished(result=result)
            self._link.send(self._finished)
        self.result = result
        if self._reattachment is not None:
            self._interruptible = True
            self._reattachment.settle()
        return OK

    def _run(self, loop: Runs) -> Any:
        """From ``on_start`` to ``on_stop``; the node's result."""
        try:
            loop.start()
            with self._telling:
                self._life = "started"
                self._link.send(Started())
            loop.run()
        except Interrupted:
            self._stop_interrupting()
            loop.stop()
            raise
        self._stop_interrupting()
        return loop.stop()

    def _stop_interrupting(self) -> None:
        self._interruptible = False
        self._bell.interrupt(None)

    def _run_async(self, arguments: tuple[Any, ...]) -> Any:
        """In an event loop. Signals do not raise in it unless it hangs: it is told, and cancels what waits."""
        from chronetix.nodeworker.process.async_worker import AsyncRun  # what few plugins need, no worker should carry

        self._async_run = async_run = AsyncRun(*arguments)
        finished: Finished | None = None
        self._interruptible = False
        try:
            result = self._run(async_run)
            finished = Finished(result=result)
            return result
        finally:
            self._async_run, self._closing = None, async_run
            limit_s = self._end_s

            def blocked(what: str) -> None:
                if finished is not None:  # what hangs now is no reason to do its work again
                    with suppress(OSError):
                        self._link.send(finished)
                ending.exit_hung(ending.told(limit_s, what), self._say_what_hangs)

            what = async_run.close(limit_s, blocked)
            self._closing = None
            self._hangs = ending.told(limit_s, what) if what else ""

    def _hello(self) -> Configure:
        hello = Hello(protocol=list(PROTOCOL_VERSIONS), role="worker", features=[HANDOVER, ACCUSE], pid=os.getpid())
        if (guest := self._guest) is not None:
            features = [*hello.features, *guest.features]
            hello = msgspec.structs.replace(hello, attach=guest.name, token=guest.token, features=features)
        self._link.send(hello)
        if self._place is SPARE:
            self._place = self._await_assignment()
            _rename(self._place.name)
        if self._place is not AS_IT_IS:
            _move_to(self._place)
        self._accuses = ACCUSE in concluded(hello, self._receive()[0]).features
        self._welcomed = True
        configure, _ = self._receive()
        if not isinstance(configure, Configure):
            raise error("unexpected-message", type=type_of(configure), when="where configure is due")
        return configure

    def _await_assignment(self) -> Assign:
        """A spare's long wait. It ends quietly when it is not needed any more."""
        try:
            message, _ = self._link.receive()
        except EOFError:
            os._exit(OK)
        if not isinstance(message, Assign):
            raise error("unexpected-message", type=type_of(message), when="where assign is due")
        return message

    def _prepare(self, config: Configure) -> Node:
        """Everything up to ``Ready``; from then on the IO thread reads."""
        self._host = DaemonHost(self._link)
        self._bell = Doorbell()
        outputs = Outputs(config.outputs, (), lambda producers: self._wired.outlet(producers))
        self._node = node = Node(config, None, outputs, self._host)
        if config.standby:
            node.construct(self._load(config))
            self._link.send(Ready())
            config = self._receive_configure()
            self._wire(config)
            self._link_up()
        else:
            self._wire(config)
            found = self._load(config)
            self._link_up()
            node.construct(found)
        wiring = self._wired
        if config.on_daemon_loss == "survive":
            self._reattachment = self._survival(config)
        self._link.send(Ready())
        self._reader = Reader(
            self._link,
            self._mailbox,
            wiring,
            self._host,
            node.step,
            self._on_drain,
            node.extended,
            self._reattachment,
            None if self._has_signals else self._cut,
        )
        self._reader.start()
        return node

    def _survival(self, config: Configure) -> Reattachment:
        def describe() -> tuple[Reattach, list[int], list[WireMessage]]:
            return self._describe(config)

        if self._guest is not None:
            return Reattachment(self._guest.socket, self._link, describe, ForeignStreams(), self._guest.features)
        _clone.outlive_parent()
        return Reattachment(config.socket, self._link, describe)

    def _wire(self, config: Configure) -> None:
        """Make its ends of the routes."""
        assert self._node is not None
        node, outputs = self._node, self._node.outputs
        self._wiring = wiring = build(config, self._grow, self._drop, self._bell, self._on_emptied, self._gave_up)
        if self._has_signals:
            children.ring_on(children.STOPPING, self._bell.eventfd)
        wiring.outputs = outputs
        outputs.connect(config.outputs, list(wiring.producers.values()))
        node.connect(config, wiring.inlet())
        if wiring.lacks_hugepages(config):
            node.ctx.log.warning(NO_HUGEPAGES)

    def _load(self, config: Configure) -> Any:
        assert self._node is not None
        self._node.phase = "load"
        return load(config.uri, config.base_dir, config.kind) if self._found is None else self._found

    def _link_up(self) -> None:
        """Show its ends, and map those of the peers."""
        assert self._node is not None
        self._node.phase = "wiring"
        self._link.send(*self._wired.offer())
        self._wired.link(*self._receive_link())
        self._wired.check_linked()

    @property
    def _wired(self) -> Wiring:
        assert self._wiring is not None, "its ends of the routes were not made yet"
        return self._wiring

    def _describe(self, config: Configure) -> tuple[Reattach, list[int], list[WireMessage]]:
        """Who this is, how far it is, and all its memory: for a daemon that does not know it yet; and what it would
        know from before."""
        with self._telling:
            self._link.renew()
            life, finished = self._life, self._finished
        memory, descriptors = self._wired.inventory()
        draining = life == "started" and self._node is not None and self._node.ctx.stopping
        message = Reattach(
            flow=config.flow,
            node=config.node,
            incarnation=config.incarnation,
            token=config.token,
            state="draining" if draining else life,
            outputs=memory.outputs,
            inputs=memory.inputs,
            segments=memory.segments,
            unconfirmed=memory.unconfirmed,
            dropped=memory.dropped,
        )
        return message, descriptors, [*self._host.subscriptions(), *([finished] if finished is not None else ())]

    def _receive_link(self) -> tuple[Link, list[int]]:
        """Wait for the other ends."""
        return self._await(Link)

    def _receive_configure(self) -> Configure:
        """Stand by until it is its turn, perhaps for ever."""
        return self._await(Configure)[0]

    def _await(self, kind: type[M]) -> tuple[M, list[int]]:
        """The next message of ``kind``; messages of the bus that come before are kept for later."""
        while True:
            message, descriptors = self._receive()
            if isinstance(message, kind):
                return message, descriptors
            if isinstance(message, Drain):
                raise Interrupted("drained before it was linked")
            if isinstance(message, Ping):
                self._link.send(Pong(id=message.id, progress=0))
            else:
                self._mailbox.append(message)

    def _receive(self) -> tuple[ToWorker, list[int]]:
        try:
            message, descriptors = self._link.receive()
        except EOFError as reason:
            raise DaemonGone(str(reason)) from None
        if isinstance(message, Failure):
            raise from_failure(message)
        return message, descriptors

    def _await_start(self) -> None:
        """Sleep until ``Start`` is there; ticks and messages that come before it stay in the mailbox."""
        early: list[Event] = []
        while True:
            while self._mailbox:
                event = self._mailbox.popleft()
                if isinstance(event, Start):
                    self._mailbox.extendleft(reversed(early))
                    assert self._node is not None
                    self._node.ctx.handover = event.handover
                    return
                if isinstance(event, Lost):
                    raise event.reason
                if isinstance(event, Failure):
                    raise from_failure(event)
                if isinstance(event, Drain):
                    raise Interrupted("drained before it started")
                early.append(event)
            self._bell.wait()

    def _grow(self, index: int, descriptor: int, _size: int) -> None:
        self._link.send(Segment(index=index), [descriptor])

    def _drop(self, index: int) -> None:
        self._link.send(SegmentDropped(index=index))

    def _gave_up(self, route: str, waited_ns: int) -> None:
        self._link.send(GaveUp(route=route, waited_ns=waited_ns))

    def _on_emptied(self, route: str, epoch: int) -> None:
        """In whichever thread, perhaps within a send: it is told by the plugin's thread, from the mailbox."""
        self._mailbox.append(Emptied(route, epoch))
        self._bell.ring()

    def _rewire(self, event: Emptied | Extend) -> bool:
        """In the plugin's thread, between two frames."""
        assert self._node is not None
        node, wiring = self._node, self._wired
        if isinstance(event, Emptied):
            if wiring.stages.forget(event.route):
                node.concluded(event.route)
            self._link.send(Drained(route=event.route, epoch=event.epoch))
            return True
        if wiring.busy(event):
            return False
        ports, offer, descriptors = wiring.reroute(event, node.config.outputs, node.step.item)
        node.rerouted(ports, [wiring.producers[port.route] for port in ports])
        self._link.send(offer, descriptors)
        return True

    def _on_drain(self) -> None:
        if self._node is not None:
            self._node.ctx.stopping = True

    def on_signal(self, number: int) -> None:
        """Runs in the plugin's thread. The IO thread sends SIGTERM too, after it has put the reason into the
        mailbox."""
        if self._leaving:
            self._signals += number == signal.SIGTERM
            self._signalled = self._signalled or time.monotonic()
            return
        reason = self._mailbox[-1].reason if self._mailbox and isinstance(self._mailbox[-1], Lost) else None
        if reason is None:
            reason = Interrupted(f"stopped by {signal.Signals(number).name}")
            self._mailbox.append(Lost(reason))
        self._signals += 1
        self.stopped_by = number
        self._signalled = self._signalled or time.monotonic()
        self._on_drain()
        if self._node is not None:
            self._node.step.interrupt = reason
        hangs = False
        if self._closing is not None:
            self._closing.hurry(self._hurry_s)
        if self._async_run is not None:
            self._async_run.interrupt(reason)
            hangs = self._signals > 1
        waits = self._node is None or self._node.step.doing is None
        if hangs or (self._interruptible and (waits or self._signals > 1)):
            raise reason

    def _report(self, reason: BaseException) -> int:
        """Tell the daemon, and whoever reads stderr, what failed and in which phase."""
        phase = self._node.phase if self._node is not None else "wiring"
        code = FAILED
        if isinstance(reason, SystemExit):
            code = reason.code if isinstance(reason.code, int) and 0 < reason.code < 256 else FAILED
        if isinstance(reason, ChronetixError):
            name, message = reason.name, f"{reason.message}. {reason.hint}"
        else:
            name, message = type(reason).__name__, said(reason)
        text = sendable(told(reason))[-TRACEBACK_LIMIT:]
        if self._guest is None:  # which raises it
            print(text, end="", file=sys.stderr)
        try:
            self._accuse(reason)
            self._link.send(Fault(phase=phase, error=name, message=message[:MESSAGE_LIMIT], traceback=text))
        except OSError as gone:
            print(f"chronetix worker: the daemon is gone ({gone}); stopping", file=sys.stderr)
            return DAEMON_GONE
        return code

    def _accuse(self, reason: BaseException) -> None:
        """Tell the daemon which peer broke the rules of a route, if that is the ``reason``. Raises OSError."""
        route = reason.args[1] if isinstance(reason, PeerFault) and len(reason.args) > 1 else None
        epoch = self._wiring.epoch(route) if self._wiring is not None and route is not None else None
        if self._accuses and route is not None and epoch is not None:
            rule = sendable(str(reason.args[0]))[:MESSAGE_LIMIT]
            self._link.send(Accuse(route=route, rule=rule, epoch=epoch))


def _hung(text: str) -> Fault:
    return Fault(phase="end", error="EndTimeout", message=sendable(text)[:MESSAGE_LIMIT])


_current: Worker | None = None
"""Whom a signal concerns."""


def catch_signals() -> dict[signal.Signals, Any]:
    """Let SIGTERM and SIGINT go to the worker of this process. The handlers that were there before, to be put back; {}
    when that was done already: the launcher does it once for all, because it costs a new process much."""
    if signal.getsignal(signal.SIGTERM) is _dispatch:
        return {}
    return {number: children.handle(number, _dispatch) for number in children.STOPPING}


def _dispatch(number: int, _frame: FrameType | None) -> None:
    """A handler of the plugin's may call this one, also in a child that the plugin has forked."""
    if _current is not None and _current.is_here:
        _current.on_signal(number)
    elif number == signal.SIGTERM:
        raise SystemExit(TERMINATED)


def _rename(name: str) -> None:
    """For ps and top; the kernel keeps 15 bytes."""
    with open("/proc/self/comm", "wb", buffering=0) as comm:
        comm.write(name.encode())


def _move_to(place: Assign) -> None:
    """Raises OSError when the folder is not there."""
    native_threads.adopt(place.env)
    if "TZ" in place.env:
        time.tzset()
    sys.argv = ["chronetix-worker", place.name]
    if place.cwd:
        os.chdir(place.cwd)


def inherited_socket() -> socket.socket:
    """The control socket whose number the environment names; the variable is removed, so that no child inherits it.

    Raises RuntimeError when this process was not started as a worker.
    """
    number = os.environ.pop(FD_VARIABLE, "")
    if not number.isdigit():
        raise RuntimeError(f"{FD_VARIABLE} names no descriptor: this program is started by chronetixd, in a flow")
    sock = socket.socket(fileno=int(number))
    sock.set_inheritable(False)
    return sock


def serve(plugin: Any) -> None:
    """Make this program a worker that runs ``plugin`` (class, instance or function); for artifacts of kind Process.

    Call it from the main thread. Returns when the node has finished; raises SystemExit with the worker's exit code when
    it failed or was told to stop, RuntimeError when the program was not started by the daemon.
    """
    code = Worker(inherited_socket(), plugin).run()
    if code != OK:
        raise SystemExit(code)


def main(sock: socket.socket, place: Assign = AS_IT_IS) -> NoReturn:
    """Run the plugin that the daemon configures over ``sock``, in ``place``, and end the process: by SystemExit, for
    the interpreter's own end."""
    worker = Worker(sock, place=place)
    worker.end(worker.live())


if __name__ == "__main__":
    main(inherited_socket())
