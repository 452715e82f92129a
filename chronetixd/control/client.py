"""One client's connection: hello within a deadline, then calls, each ending with exactly one result or failure.

Rules: the right that a call's verb takes and the quota of its user are checked before anything else, and the call is
recorded in the audit log. Calls of one client run side by side, at most MAX_CALLS at once. A client that breaks the
protocol gets the reason, and only its own connection ends. The path of a call from the check of its right to its record
in the audit log is one file, so that no call can bypass a check.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import structlog

from chronetix.protocol import cbor, handshake
from chronetix.protocol import messages as wire
from chronetix.protocol.descriptors import MAX_WAITING
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.framing import Encoding, Work, encode
from chronetixd.control import verbs
from chronetixd.core.access import Asker, Peer, Right
from chronetixd.core.quota import QuotaGate
from chronetixd.flows.recovery import ReattachRequest
from chronetixd.linux.peer import pidfd_of
from chronetixd.loop import shares
from chronetixd.loop.connection import Connection, documents
from chronetixd.loop.inspection import Inspection, pass_rights
from chronetixd.loop.shares import ShareOwner

LINGER_S = 10.0
"""How long a client may take to read its last messages; after that the daemon frees them and the descriptor."""

MAX_CALLS = 64
"""How many calls of one client may be open at once."""

MAX_STREAM_BACKLOG = 4 * 1024 * 1024
"""Bytes of unread items above which further items are dropped (results never are)."""

MAX_BACKLOG = 64 * 1024 * 1024
"""Bytes of unread answers above which the client is disconnected."""

MAX_UNANSWERED = 256 * 1024
"""Bytes of unread answers up to which the next answer is made: a client that calls often and reads nothing gets one
answer."""

READER_FRAME, READER_ITEMS = 64 * 1024, 4096
"""Largest size in bytes and items of a frame from a client with only the right to read: no such call needs more."""

CALL_ITEMS = 4096
"""Largest number of items in a call that carries no flow."""


MAX_DESCRIPTORS = 1
"""How many descriptors may come with a client's message: one, a tap's CREDIT."""

ATTACH = "attach"
"""The verb under which the audit log has workers that attach."""

AUDITED = ("not-allowed", "quota-exceeded")
"""The errors of refused calls that are recorded in the audit log."""


Outcome = wire.Result | wire.Failure | None
"""The end of a call to be sent to the client; None if its result has been sent already."""


def not_allowed(peer: Peer, needed: Right, what: str) -> ChronetixError:
    """Return the error for a ``peer`` that lacks the right ``needed``."""
    return error("not-allowed", uid=peer.uid, what=what, right=str(needed))


class ControlClient:
    """A connection on the control socket. ``on_closed`` is called once, when the client is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        context: verbs.VerbContext,
        *,
        peer: Peer,
        right: Right,
        gate: QuotaGate,
        daemon: str,
        hello_s: float,
        frame_s: float,
        max_frame: int,
        on_closed: Callable[[ControlClient], None],
        inspection: Inspection,
    ) -> None:
        self._loop = loop
        self._context = context
        self._inspection = inspection
        self.peer = peer
        self.right = right
        self._gate = gate
        self._daemon = daemon
        self._hello_s = hello_s
        self._max_frame = max_frame
        self._on_closed = on_closed
        self._phase = handshake.Phase.HELLO
        self._returns = False
        self._features: tuple[str, ...] = ()
        """The features in the hello of a worker that reattaches (``_returns``)."""
        self._calls: dict[int, asyncio.Task[Outcome]] = {}
        self._gone = False
        self._parting: ChronetixError | None = None
        """The error with which all open calls end; None while the client is served."""
        self._closed = asyncio.Event()
        who = ShareOwner("client", peer.uid)
        self._connection = Connection(
            loop,
            sock,
            wire.ConnectingMessage,
            on_message=self._received,
            on_end=self._ended,
            max_frame=max_frame,
            frame_s=frame_s,
            inspection=inspection,
            owner=peer.uid,
            who=who,
        )
        self._who = who
        self._sock = sock
        self._since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        """When the connection was accepted."""
        self._shares = shares.of(loop)
        self._makers = self._shares.makers(who)
        self._answering = asyncio.Lock()
        """Held while an answer is made at once: the next answer is begun when enough of this one has been read."""
        self.allow(right)
        self._connection.account = self._waits
        self._connection.on_closed = self._disconnected
        self._connection.on_partial = self._partial
        self._held = 0
        self._unread = 0
        self._flushed = asyncio.Event()
        self._connection.on_flushed = self._flushed.set
        self._deadline = loop.call_later(hello_s, self._silent)
        self._connection.start()

    def allow(self, right: Right) -> None:
        """Give the client ``right`` from now on, with the limits on frames that belong to it."""
        self.right = right
        max_frame, max_items = self._limits()
        self._connection.limit(max_frame, max_items)

    def _limits(self) -> tuple[int, int]:
        if self.right > Right.READ:
            return self._max_frame, cbor.MAX_ITEMS
        return min(READER_FRAME, self._max_frame), READER_ITEMS

    def _waits(self, more: int) -> None:
        if not self._gone:
            self._unread += more
            self._gate.wait(self.peer.uid, more)

    def close(self) -> None:
        """Cancel the open calls, and close the connection after the queued messages have been sent."""
        self._leave()
        self._connection.close_after_flush()
        if not self._connection.closed:
            self._deadline.cancel()
            self._deadline = self._loop.call_later(LINGER_S, self._connection.close)

    def _disconnected(self) -> None:
        self._deadline.cancel()
        self._closed.set()

    async def farewell(self) -> None:
        """Wait for the open calls to end, send the queued messages, then close."""
        while self._calls:
            await asyncio.wait(tuple(self._calls.values()))
        self.close()
        await self._closed.wait()

    async def part(self, reason: ChronetixError) -> None:
        """End the open calls with ``reason``, or send ``reason`` by itself if none is open; then send the queued
        messages and close."""
        self._parting = reason
        if self._calls:
            for task in self._calls.values():
                task.cancel()
            await self.farewell()
        else:
            self.refuse(reason)
            await self._closed.wait()

    def abort(self) -> None:
        """Close the connection at once; queued messages are lost."""
        self._leave()
        self._connection.close()

    def _leave(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._deadline.cancel()
        if self._held:
            self._partial(0)
        self._gate.wait(self.peer.uid, -self._unread)
        for task in self._calls.values():
            task.cancel()
        self._on_closed(self)

    def refuse(self, reason: ChronetixError) -> None:
        """Send ``reason`` to the client, then close."""
        self._connection.send(reason.failure())
        self.close()

    def _silent(self) -> None:
        self._connection.drain_input()  # the daemon itself may have been stopped while the hello came
        if self._phase is handshake.Phase.HELLO and not self._gone:
            self.refuse(error("handshake-timeout", seconds=self._hello_s))

    def _partial(self, waiting: int) -> None:
        """Count the ``waiting`` bytes of an incomplete frame. Raises ChronetixError ``quota-exceeded``."""
        more, self._held = waiting - self._held, waiting
        refusal = self._gate.hold(self.peer.uid, self.right, more) if more else None
        if refusal is not None:
            raise error("quota-exceeded", what=refusal.what, limit=refusal.limit)

    def _ended(self, fault: ChronetixError | None) -> None:
        if fault is not None:
            structlog.get_logger("chronetixd.control.client").warning("a client was disconnected", reason=str(fault))
            self.refuse(fault)
        else:
            self.abort()

    def _received(self, message: wire.WireMessage, descriptors: list[int]) -> None:
        self._phase = handshake.advance(self._phase, message)
        self._gate.work(self.peer.uid, self._connection.cost, time.monotonic_ns())
        match message:
            case wire.Hello():
                self._hello(message)
            case wire.Reattach() if self._returns:
                self._reattach(message, descriptors)
            case wire.Call() if not self._returns:
                self._call(message, descriptors)
            case wire.Cancel(id=number):
                task = self._calls.get(number)
                if task is not None:
                    task.cancel()
            case _:
                raise error("unexpected-message", type=type(message).__name__, when="from a client")

    def _hello(self, hello: wire.Hello) -> None:
        self._deadline.cancel()
        returns = hello.role == "worker" and wire.REATTACH in hello.features
        attaches = hello.role == "worker" and bool(hello.attach) and not returns
        roles = ("worker",) if returns or attaches else ("client",)
        features = wire.WORKER_FEATURES if returns or attaches else ()
        reply = handshake.answer(
            hello, daemon=self._daemon, roles=roles, features=features, max_frame=self._limits()[0]
        )
        if attaches and isinstance(reply, wire.Welcome):
            self._attach(hello)
            return
        if isinstance(reply, wire.Welcome):
            self._connection.pass_rights(MAX_WAITING if returns else MAX_DESCRIPTORS)
        self._connection.send(reply)
        if isinstance(reply, wire.Failure):
            self._phase = handshake.Phase.REFUSED
            self.close()
        elif returns:
            self._returns = True
            self._features = tuple(hello.features)

    def _attach(self, hello: wire.Hello) -> None:
        """Hand the connection of a worker that attaches to its flow, which welcomes it and owns it from now on. Every
        attempt is in the audit log, refused ones at the pace of refusals."""
        about = {"name": hello.attach}
        try:
            if self.right < Right.OPERATE:
                raise not_allowed(self.peer, Right.OPERATE, "attach a worker")
            flow, node = self._context.flows.find_attachable(hello, self.peer)
            pidfd = self._pidfd(hello.attach)
        except ChronetixError as reason:
            self._context.audit.refused(self.peer, ATTACH, reason.name, about)
            self._phase = handshake.Phase.REFUSED
            self.refuse(reason)
            return
        began_ns = time.monotonic_ns()
        number = self._context.audit.begun(self.peer, ATTACH, {**about, "flow": flow.name, "nodes": [node]})
        pass_rights(self._sock, True)
        flow.attach(node, hello, self._connection.hand_over(), self.peer.pid, pidfd)
        self._context.audit.ended(self.peer, ATTACH, number, "ok", time.monotonic_ns() - began_ns)
        self._leave()

    def _pidfd(self, name: str) -> int:
        """Return a pidfd of the client's process. Raises ChronetixError ``attach-refused``."""
        try:
            return pidfd_of(self._sock, self.peer, self._since_ns)
        except OSError as reason:
            raise error("attach-refused", name=name, reason=reason.strerror or str(reason)) from None

    def _reattach(self, message: wire.Reattach, descriptors: list[int]) -> None:
        """Hand the connection of a worker that outlived an earlier daemon to its flow, which owns it from now on."""
        sock = self._connection.hand_over()
        try:
            self._context.flows.reattach(ReattachRequest(message, descriptors, sock, self.peer.pid, self._features))
        except (ChronetixError, OSError) as reason:
            structlog.get_logger("chronetixd.control.client").warning("a worker may not reattach", reason=str(reason))
            if not isinstance(reason, ChronetixError):
                reason = error("reattach-refused", flow=message.flow, node=message.node, reason=str(reason))
            with suppress(OSError):
                sock.send(encode(reason.failure()))
            self._inspection.close(self.peer.uid, sock)
        self._leave()

    def _call(self, call: wire.Call, descriptors: list[int]) -> None:
        if call.id in self._calls:
            raise error("malformed-message", type="call", reason=f"call {call.id} is already open")
        try:
            recorded = self._check(call)
        except ChronetixError as reason:
            if reason.name in AUDITED:
                self._context.audit.refused(self.peer, call.verb, reason.name, call.args)
            self._send(reason.failure(call.id))
            return
        brought = [*descriptors]
        descriptors.clear()
        number = self._context.audit.begun(self.peer, call.verb, call.args) if recorded else 0
        call_cost = self._connection.cost
        emit = _Items(self, call.id, brought)
        task = self._loop.create_task(self._run(call, emit))
        self._calls[call.id] = task
        task.add_done_callback(partial(self._done, call, call_cost, emit, number, time.monotonic_ns()))

    def _check(self, call: wire.Call) -> bool:
        """Check the call's quota, right and arguments, and return whether the audit log records it. Raises
        ChronetixError when it must not begin."""
        refusal = self._gate.call(self.peer.uid, self.right, time.monotonic_ns())
        if refusal is not None:
            raise error("quota-exceeded", what=refusal.what, limit=refusal.limit)
        if len(self._calls) >= MAX_CALLS:
            raise error("quota-exceeded", what="another call", limit=MAX_CALLS)
        verb = verbs.find(call.verb)
        if self.right < verb.right:
            raise not_allowed(self.peer, verb.right, f"ask for {call.verb}")
        if call.descriptors != verb.descriptors:
            reason = f"{verb.descriptors} descriptors must come along, not {call.descriptors}"
            raise error("bad-argument", argument="descriptors", verb=call.verb, reason=reason)
        if self._connection.items > CALL_ITEMS and not verb.carries_flow:
            reason = f"they are more than {CALL_ITEMS} items"
            raise error("bad-argument", argument="args", verb=call.verb, reason=reason)
        if verb.streams:
            refusal = self._gate.stream(self.peer.uid, self.right)
            if refusal is not None:
                raise error("quota-exceeded", what=refusal.what, limit=refusal.limit)
        return verb.right > Right.READ or self._context.audit.reads

    async def _run(self, call: wire.Call, emit: _Items) -> Outcome:
        """Run the call and return its end; None if its result has been sent already."""
        try:
            if not verbs.find(call.verb).at_once:
                return wire.Result(id=call.id, value=await verbs.call(self._context, call.verb, call.args, emit))
            async with self._answering:
                await self._room(MAX_UNANSWERED)
                async with self._makers:
                    self._refuse_unread()
                    value = await verbs.call(self._context, call.verb, call.args, emit)
                    await self._answer(wire.Result(id=call.id, value=value))
                return None
        except ChronetixError as reason:
            return reason.failure(call.id)
        except MemoryError:
            return error("internal", what=call.verb, reason="memory has run out").failure(call.id)
        except Exception as reason:
            structlog.get_logger("chronetixd.control.client").exception("a call failed", verb=call.verb)
            return error("internal", what=call.verb, reason=repr(reason)).failure(call.id)

    def _refuse_unread(self) -> None:
        """Raise ChronetixError ``quota-exceeded`` if too many answers to this user's clients wait to be read."""
        refusal = self._gate.unread(self.peer.uid, self.right)
        if refusal is not None:
            raise error("quota-exceeded", what=refusal.what, limit=refusal.limit)

    async def _answer(self, result: wire.Result) -> None:
        """Encode the result, a large one in turns with other work, and queue it. Raises ChronetixError."""
        encoding = Encoding(result)
        if not encoding.step(self._shares.at_once()):
            ended = self._loop.create_future()

            def step(work: Work) -> bool:
                try:
                    more = not ended.done() and not encoding.step(work)
                except Exception as reason:
                    ended.set_exception(reason)
                    return False
                if not more and not ended.done():
                    ended.set_result(None)
                return more

            self._shares.join(self._who, step)
            await ended
        self._connection.send_frame(encoding.take())

    def _done(
        self, call: wire.Call, cost: int, emit: _Items, number: int, began_ns: int, task: asyncio.Task[Outcome]
    ) -> None:
        """Clean up after a call and send its end. A cancelled call may never have begun, so the clean-up that every
        call needs happens here. ``number`` is that of the call in the audit log, 0 for none."""
        del self._calls[call.id]
        for descriptor in emit.descriptors:
            os.close(descriptor)
        if self._streams(call):
            self._gate.streamed(self.peer.uid)
        if cost > shares.WORTH:
            self._shares.discard(documents(call))
        try:
            end = self._cut_off(call, emit) if task.cancelled() else task.result()
            if number:
                outcome = end.name if isinstance(end, wire.Failure) else "ok"
                self._context.audit.ended(self.peer, call.verb, number, outcome, time.monotonic_ns() - began_ns)
            if end is not None:
                self._send(end)
        except MemoryError:
            self.abort()

    @staticmethod
    def _streams(call: wire.Call) -> bool:
        return verbs.find(call.verb).streams

    def _cut_off(self, call: wire.Call, emit: _Items) -> wire.Failure:
        if self._parting is None:
            return error("cancelled", what=call.verb).failure(call.id)
        end = self._parting.failure(call.id)
        return msgspec.structs.replace(end, details={**end.details, **emit.goes_on})

    def _item(self, id: int, value: Any) -> bool:
        if self._connection.backlog > MAX_STREAM_BACKLOG or self._gate.unread(self.peer.uid, self.right):
            return False
        self._send(wire.Item(id=id, value=value))
        return True

    async def _room(self, most: int = MAX_STREAM_BACKLOG // 2) -> None:
        """Wait until at most ``most`` bytes of answers are unread by the client."""
        while self._connection.backlog > (MAX_UNANSWERED if self._gate.unread(self.peer.uid, self.right) else most):
            self._flushed.clear()
            await self._flushed.wait()

    def _send(self, message: wire.WireMessage) -> None:
        try:
            self._connection.send(message)
        except ChronetixError as reason:
            if isinstance(message, wire.Result):
                self._connection.send(reason.failure(message.id))
            else:
                raise
        if self._connection.backlog > MAX_BACKLOG:
            structlog.get_logger("chronetixd.control.client").warning("a slow client was disconnected")
            self.abort()


class _Items:
    """Sends the items of one call; see :class:`chronetixd.control.verbs.base.Emit`."""

    goes_on: dict[str, Any]

    def __init__(self, client: ControlClient, id: int, descriptors: list[int]) -> None:
        self._client = client
        self._id = id
        self.descriptors = descriptors
        self.pid = client.peer.pid
        self.asker = Asker(client.peer.uid, client.right)
        self.goes_on = {}

    def __call__(self, value: Any) -> bool:
        return self._client._item(self._id, value)

    def give(self, value: Any, descriptors: Sequence[int]) -> None:
        item = wire.Item(id=self._id, value=value, descriptors=len(descriptors))
        self._client._connection.send(item, descriptors, give=True)

    async def room(self) -> None:
        await self._client._room()
