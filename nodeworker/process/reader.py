"""The worker's IO thread: reads the control link so that the plugin's thread need not.

It answers pings, makes and maps ends of routes, ends requests; everything else goes into the mailbox, and the doorbell
is rung so that the plugin's thread looks. It never runs plugin code, hence a hung plugin can be told from a busy one.
When the link ends, or brings what must not come, the plugin's thread is told by a ``Lost`` event, and by SIGTERM in
case it waits; unless the worker is to survive the daemon: then it waits here for the next one. While the arena is
larger than at first, it also looks from time to time whether memory can be given back; while dropped messages are not
reported yet, whether the mailbox has room again.
"""

from __future__ import annotations

import _thread
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

from chronetix.nodeworker.api.errors import DaemonGone
from chronetix.nodeworker.engine.loop import Lost, Mailbox
from chronetix.nodeworker.engine.mailbox_limits import MailboxLimits
from chronetix.nodeworker.memory.arena_trim import ArenaTrim
from chronetix.nodeworker.memory.wiring import Wiring
from chronetix.nodeworker.process.link import ControlLink
from chronetix.nodeworker.process.reattach import Reattachment
from chronetix.nodeworker.process.remote import DaemonHost
from chronetix.protocol.messages import (
    Conclude,
    Detach,
    Drain,
    Drained,
    Extend,
    Leave,
    Link,
    Linked,
    MessagesDropped,
    Ping,
    Pong,
    Port,
    Reply,
    RequestFailure,
    Retract,
    Segment,
    SegmentDropped,
    SegmentMapped,
    Start,
    ToWorker,
)
from chronetix.shm import Frame, Step

ROOM_S = 0.1
"""While dropped messages are not reported yet: the pause between two looks whether the mailbox has room again."""


class Reader:
    """Reads ``link`` until it ends. ``on_drain`` and ``on_inputs`` are called from its thread as soon as the word is
    there."""

    def __init__(
        self,
        link: ControlLink[ToWorker],
        mailbox: Mailbox,
        wiring: Wiring,
        host: DaemonHost,
        step: Step,
        on_drain: Callable[[], None],
        on_inputs: Callable[[list[Port]], None],
        reattachment: Reattachment | None = None,
        wake: Callable[[BaseException], None] | None = None,
    ) -> None:
        """``wake`` is called from the reader's thread when the link has ended, to end what the plugin's thread waits
        for; by default that is a SIGTERM for this process."""
        self._link = link
        self._mailbox = mailbox
        self._intake = MailboxLimits(mailbox)
        self._wiring = wiring
        self._host = host
        self._step = step
        self._on_drain = on_drain
        self._on_inputs = on_inputs
        self._reattachment = reattachment
        self._wake = wake or _terminate
        self._giving = ArenaTrim(wiring.arena) if wiring.arena is not None else None
        self._seen = (-1, 0)
        self._running = _thread.allocate_lock()
        self._ending = False

    def start(self) -> None:
        """Begin to read, in a thread of its own. Without ``threading.Thread``, which waits until its thread runs.
        Raises RuntimeError when there may be no more threads,
        OSError when descriptors have run out."""
        self._link.make_stoppable()
        self._running.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            self._running.release()
            raise

    def _run(self) -> None:
        try:
            reason = self._read()
            while self._survives() and isinstance(reason, DaemonGone) and not self._ending:
                self._host.abandon()
                try:
                    if self._reattachment is None or not self._reattachment.wait():
                        return
                except DaemonGone as refused:
                    reason = refused
                    break
                reason = self._read()
            self._lost(reason)
        finally:
            self._running.release()

    def _survives(self) -> bool:
        return self._reattachment is not None and self._reattachment.armed

    def _read(self) -> BaseException:
        """Until it ends; why."""
        try:
            while True:
                self._await()
                self._take(*self._link.receive())
        except EOFError:
            return DaemonGone("the daemon closed the control connection")
        except OSError as reason:
            return DaemonGone(f"the control connection broke: {reason}")
        except Exception as reason:
            return reason

    def _await(self) -> None:
        """Until there is something to receive, giving memory back when that is due, and reporting dropped messages when
        there is room again."""
        while (left := self._next_look()) is not None:
            if left > 0 and self._link.wait(left):
                return
            if self._giving is not None and self._giving.left(time.monotonic()) == 0:
                self._giving.look(time.monotonic())
            self._tell_dropped()

    def _next_look(self) -> float | None:
        """Seconds until something is to be looked for; None if nothing is."""
        left = self._giving.left(time.monotonic()) if self._giving is not None else None
        if not self._intake.owes:
            return left
        return ROOM_S if left is None else min(left, ROOM_S)

    def end(self) -> None:
        """The worker is done: stop reading, quietly, wait for the thread, and report what was dropped last; the link
        stays. From the plugin's thread."""
        self._ending = True
        if self._reattachment is not None:
            self._reattachment.give_up()
        self._link.stop_receiving()
        with self._running:
            pass
        with suppress(OSError):  # the daemon is gone
            self._tell_dropped(last=True)
        if self._reattachment is not None:
            self._reattachment.close()

    def _take(self, message: ToWorker, descriptors: list[int]) -> None:
        if isinstance(message, Ping):
            self._link.send(self._pong(message))
        elif isinstance(message, Segment):
            self._link.send(self._wiring.map_segment(message, descriptors[0]))
        elif isinstance(message, SegmentMapped):
            self._wiring.confirm(message)
        elif isinstance(message, SegmentDropped):
            self._drop(message)
        elif isinstance(message, Detach):
            self._wiring.detach(message)
        elif isinstance(message, Retract):
            self._wiring.retract(message)
        elif isinstance(message, Extend):
            self._extend(message)
        elif isinstance(message, Drained):
            self._wiring.drained(message)
        elif isinstance(message, Conclude):
            self._wiring.conclude(message)
        elif isinstance(message, Link):
            self._link.send(Linked(routes=self._wiring.link(message, descriptors)))
        elif isinstance(message, Reply | RequestFailure):
            self._host.resolve(message)
        else:
            if isinstance(message, Drain | Leave):
                self._on_drain()
            elif isinstance(message, Start) and self._reattachment is not None:
                self._reattachment.arm()
            self._post(message)

    def _extend(self, message: Extend) -> None:
        """Inputs and taps at once; other outputs are the plugin's thread's, between two frames."""
        if message.leave or any(not port.tap_of for port in message.outputs):
            self._post(message)
            return
        self._on_inputs(message.inputs)
        self._link.send(*self._wiring.extend(message))

    def _drop(self, message: SegmentDropped) -> None:
        if not message.route:
            self._wiring.forget(message)
            return
        answer = self._wiring.drop_segment(message)
        if answer is not None:
            self._link.send(answer)

    def _post(self, message: ToWorker) -> None:
        """Into the mailbox, if there is room."""
        if self._intake.put(message):
            self._wiring.bell.ring()
        self._tell_dropped()

    def _tell_dropped(self, *, last: bool = False) -> None:
        """The daemon counts what was dropped, and the node's log says how many."""
        if not self._intake.owes:
            return
        for topic, count in self._intake.report(last=last).items():
            self._link.send(MessagesDropped(topic=topic, count=count))
        dropped = self._intake.account(last=last)
        if dropped:
            self._host.log(
                "warning", "messages came faster than on_message took them; some were dropped", {"dropped": dropped}
            )

    def _pong(self, ping: Ping) -> Pong:
        """``busy_ns`` counts from the first ping that found the plugin in its present step: a lower bound that costs
        the plugin's thread no look at the clock."""
        count, now = self._step.count, time.monotonic_ns()
        doing = self._step.doing
        if doing is None:
            self._seen = (-1, now)
            return Pong(id=ping.id, progress=count)
        if self._seen[0] != count:
            self._seen = (count, now)
        return Pong(id=ping.id, progress=count, busy_ns=max(1, now - self._seen[1]), doing=_name(doing))

    def _lost(self, reason: BaseException) -> None:
        if self._ending:
            return
        self._host.abandon()
        self._on_drain()
        self._mailbox.append(Lost(reason))
        self._wiring.bell.ring()
        self._wake(reason)


def _terminate(_reason: BaseException) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _name(doing: Any) -> str:
    """The callback that a step is about: ``Step.doing`` is its frame, its function, or a source's iterator. Runs none
    of the plugin's code."""
    if isinstance(doing, Frame):
        return f"on_frame (route {doing.route}, seq {doing.seq})"
    return doing.__name__ if isinstance(doing, FunctionType | MethodType) else "produce"
