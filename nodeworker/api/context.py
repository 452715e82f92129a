"""What a plugin can do: send frames, publish and ask on the event bus, log, read its configuration.

A context belongs to one node. Everything but ``send`` and ``loan`` may be used from any thread of the plugin. Where the
messages go is the :class:`Host`'s affair: the daemon, or the one process that runs the whole flow. This file is longer
than 400 lines because it is what authors read: each call has its documentation here, and few lines of code.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec

from chronetix.nodeworker.api import codec
from chronetix.nodeworker.api.errors import RequestFailed, shown
from chronetix.nodeworker.api.message import Message
from chronetix.nodeworker.api.outputs import Notes, Origin, Outputs
from chronetix.protocol import cbor
from chronetix.protocol.content.natural import is_scalar
from chronetix.protocol.content.plain import plain
from chronetix.protocol.errors import error
from chronetix.protocol.messages import MAX_FRAME, Configure, Envelope, Port
from chronetix.shm import Batch, Frame, Loan, Step, WouldBlock

Level = Literal["debug", "info", "warning", "error", "critical"]
Outcome = Literal["passed", "dead-letter", "dropped"]


MAX_MESSAGE = MAX_FRAME - 1024
"""Bytes of a bus message's envelope and payload: what carries them takes some too."""

MAX_TOPIC = 1024
"""Characters; the daemon keeps no longer ones."""

Done = Callable[[Message | RequestFailed], Any]
"""Gets the end of a request."""


class Host(Protocol):
    """Where a context's messages go. ``grace_s``: how much longer than asked to wait for its word that time is up."""

    grace_s: float

    def publish(self, envelope: dict[str, Any], payload: bytes) -> None:
        """To every subscriber of the envelope's topic."""

    def subscribe(self, topic: str) -> None:
        """From now on messages of ``topic`` come to this node."""

    def unsubscribe(self, topic: str) -> None:
        """The opposite."""

    def request(self, envelope: dict[str, Any], payload: bytes, timeout_ns: int) -> Message:
        """Wait for the reply. Raises RequestFailed."""

    def ask(self, envelope: dict[str, Any], payload: bytes, timeout_ns: int, done: Done) -> Callable[[], None]:
        """As :meth:`request` without waiting: ``done`` gets the end, at most once, from any thread. What is returned
        has to be called when the end is known or not wanted any more."""

    def log(self, level: Level, message: str, fields: dict[str, Any]) -> None:
        """One structured log record."""

    def frame_failed(self, route: str, seq: int, attempts: int, error: str, message: str, outcome: Outcome) -> None:
        """A frame made the plugin raise ``error`` and passed in the end, or was set aside after ``attempts``."""


class Logger:
    """``ctx.log``: structured log records of the node, a message and any fields. ``chronetixctl logs`` shows them."""

    __slots__ = ("_host",)

    def __init__(self, host: Host) -> None:
        self._host = host

    def debug(self, message: str, /, **fields: Any) -> None:
        """Log what helps the author of the plugin."""
        self._host.log("debug", str(message), _loggable(fields))

    def info(self, message: str, /, **fields: Any) -> None:
        """Log what the operator of the flow wants to know."""
        self._host.log("info", str(message), _loggable(fields))

    def warning(self, message: str, /, **fields: Any) -> None:
        """Log what may need a look."""
        self._host.log("warning", str(message), _loggable(fields))

    def error(self, message: str, /, **fields: Any) -> None:
        """Log a failure after which the node goes on."""
        self._host.log("error", str(message), _loggable(fields))


def _loggable(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as they can travel; what cannot is shown by its repr, because a log call must not raise."""
    result = {}
    for key, value in fields.items():
        try:
            result[key] = plain(value)
        except Exception:  # of whatever the value itself raises, too
            result[key] = str(value) if is_scalar(value) else shown(value)
    return result


class ReadOnly(dict[str, Any]):
    """A dict that nobody changes. It can be dumped (``json.dumps(ctx.params)``) and pickled; a copy of it is a dict of
    its own."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("this is what the flow says, and is not changed by a plugin: change a copy, dict(…)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def copy(self) -> dict[str, Any]:
        """A dict of its own."""
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}

    def __reduce__(self) -> Any:
        return ReadOnly, (dict(self),)


class Context:
    """What a plugin gets as ``ctx``: its configuration, its routes, and ways to send, publish, ask and log.

    ``send``, ``send_many``, ``loan`` and ``request`` are called from the plugin's own thread, everything else from any
    thread.
    """

    awaited = False
    """Whether ``send``, ``loan`` and ``request`` are awaited, because the plugin is asynchronous."""

    __slots__ = (
        "_config",
        "_corr_ids",
        "_host",
        "_outputs",
        "_resume",
        "_step",
        "_wake",
        "annotations",
        "features",
        "flow",
        "handover",
        "incarnation",
        "log",
        "node",
        "params",
        "qos",
        "stopping",
    )

    def __init__(self, config: Configure, outputs: Outputs, host: Host, step: Step) -> None:
        self._config = config
        self._outputs = outputs
        self._host = host
        self._step = step
        self._wake: Callable[[], None] = _asleep
        self._corr_ids = itertools.count(1)
        self.flow = config.flow
        """Name of the flow."""
        self.node = config.node
        """Name of the node."""
        self.incarnation = config.incarnation
        """How often the node was restarted or replaced; 0 in its first worker."""
        self.handover: Any = None
        """The result of the worker that this one replaces, from ``on_start`` on; None if it replaces none."""
        self.params: Mapping[str, Any] = ReadOnly(config.params)
        """Parameters of the node in the flow file: a dict that refuses changes."""
        self.qos: Mapping[str, Any] = ReadOnly(config.qos)
        """Quality of service of the node in the flow file."""
        self.features: Mapping[str, Any] = ReadOnly(config.features)
        """Features of the node in the flow file."""
        self.annotations: Mapping[str, Any] = ReadOnly(config.annotations)
        """Annotations of the node in the flow file."""
        self.log = Logger(host)
        """Writes log records: see ``ctx.log`` below."""
        self.stopping = False
        """Whether the node was told to end: a callback that takes long should then return."""
        self._resume = _resume(config)

    def finish(self) -> None:
        """Say that this node has done its work and wants no more input. From any thread; idempotent.

        The present callback goes on to its end, and what it returns is sent. Then a source and all inputs are closed,
        ``on_stop`` is called, and the outputs end in order. The node has finished and is not restarted. Frames that
        were sent to it and not taken are counted as ``unread``; a node that sends to nobody else ends as well. Every
        other early end is a failure: an exception, and ``sys.exit(0)`` too. A source may also just return.
        """
        self._step.finishing = True
        self._wake()

    def woken_by(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called when the plugin wants to finish: whoever runs the node may sleep."""
        self._wake = wake
        if self._step.finishing:
            wake()

    def told(self, config: Configure) -> None:
        """The worker was told anew what its routes are."""
        self._config = config

    def connected(self, config: Configure) -> None:
        """Its life begins with these routes: it does not matter to ``resume_after`` which ones it gets later."""
        self._config = config
        self.incarnation = config.incarnation
        self._resume = _resume(config)

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The node's incoming data routes."""
        return tuple({port.route: port for port in self._config.inputs}.values())

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The node's outgoing data routes."""
        return tuple(self._config.outputs)

    @property
    def resume_after(self) -> int:
        """The number of the last item that all outputs of a restarted or replaced source have got, else 0.

        Items are numbered from 1. For a source that reads this property the numbering goes on after that item, so it
        should go on there, too. For one that does not, the numbering begins anew with item 1, and the frames that it
        repeats are marked ``redelivered``.
        """
        self._step.item = max(self._step.item, self._resume)
        return self._resume

    @property
    def publications(self) -> tuple[str, ...]:
        """The topics of the node's outgoing control routes and of its declared publications."""
        return tuple(self._config.publications)

    @property
    def high(self) -> bool:
        """Whether the outstanding frames of some output have reached its watermark, because its consumer is slower than
        this node."""
        return self._outputs.high

    def send(
        self,
        data: Any,
        *,
        to: str | None = None,
        timeout: float | None = None,
        meta: Mapping[str, Any] | None = None,
        stamp_ns: int = 0,
    ) -> None:
        """Send one frame to every output, or to the routes that ``to`` names: a route, a topic or a node.

        ``data`` is encoded by each route's content type. ``meta``, a dict of what CBOR carries, and ``stamp_ns``, a
        time of the sender's own in ns, travel with the frame: the receiver reads ``frame.meta`` and
        ``frame.stamp_ns``. ``timeout`` is how many seconds to wait for credit: None waits for ever, 0 does not wait.

        All routes get the frame, or none. Raises WouldBlock when there is no credit in time, RouteClosed when a
        consumer has closed its route, FrameTooLarge for a frame that can never fit the node's memory, ChronetixError
        ``payload-unencodable`` for a value that the content type cannot carry, ValueError for an unknown ``to``.
        """
        step = self._step
        doing, step.doing = step.doing, None
        try:
            origin, wait_ns = self._origin(doing), nanoseconds(timeout) if step.interrupt is None else 0
            if meta is None and not stamp_ns:
                self._outputs.sender(to)(data, wait_ns, origin)
            else:
                self._outputs.send_noted(to, data, Notes(stamp_ns, meta), wait_ns, origin)
            self._sent(origin)
        except WouldBlock:
            if step.interrupt is not None:
                raise step.interrupt from None
            raise
        finally:
            step.doing = doing

    def send_many(self, data: Any, size: int, *, to: str | None = None, timeout: float | None = None) -> int:
        """Send each ``size`` bytes of ``data`` as a frame, many in one step, and return how many were sent.

        ``data`` is bytes-like, for example a numpy array. The records are sent as they are; on a route that carries
        anything but bytes (application/octet-stream) each of them is checked first. Each record counts as an item of a
        source. Without ``timeout`` all records are sent; with one, as many as found credit in time. Raises ValueError
        if ``data`` is no whole number of records, and what :meth:`send` raises; with a ``timeout`` only when no record
        was sent.
        """
        step = self._step
        doing, step.doing = step.doing, None
        try:
            outlet, sent, rest = self._outputs.records_outlet(to, data, size), 0, data
            while True:
                origin, wait_ns = self._origin(doing), nanoseconds(timeout) if step.interrupt is None else 0
                gone = outlet.send_many(rest, size, wait_ns, origin)
                sent += gone
                if isinstance(origin, int):
                    step.item += gone
                with memoryview(data) as view:
                    if timeout is not None or sent * size >= view.nbytes:
                        return sent
                    rest = view.tobytes()[sent * size :]
        except WouldBlock:
            if step.interrupt is not None:
                raise step.interrupt from None
            raise
        finally:
            step.doing = doing

    def loan(self, nbytes: int, *, to: str | None = None, timeout: float | None = None) -> Loan:
        """Return ``nbytes`` of shared memory in which to write a frame: ``with ctx.loan(n) as room: …`` sends it.

        The bytes are sent as they are and not checked, so they have to be of the outputs' content type. Raises what
        :meth:`send` raises.
        """
        step = self._step
        doing, step.doing = step.doing, None
        try:
            origin, wait_ns = self._origin(doing), nanoseconds(timeout) if step.interrupt is None else 0
            loan = self._outputs.outlet(to).loan(nbytes, wait_ns, origin)
            self._sent(origin)
            return loan
        except WouldBlock:
            if step.interrupt is not None:
                raise step.interrupt from None
            raise
        finally:
            step.doing = doing

    def _origin(self, doing: Any) -> Origin:
        """What a frame that is sent now is made from."""
        if isinstance(doing, Frame | Batch):
            return doing
        return self._step.item + 1 if doing is not None and doing is self._step.source else None

    def _sent(self, origin: Origin) -> None:
        if isinstance(origin, int):
            self._step.item = origin

    def publish(self, topic: str | None, data: Any, **envelope: Any) -> None:
        """Publish ``data`` on the event bus: on ``topic``, or with None on each of ``ctx.publications``.

        ``data`` is encoded by the keyword ``content_type``, JSON by default. Other keywords (``priority``, ``headers``,
        ``deadline_ns`` …) go into the envelope. Raises ValueError when None is given and the node has no publications,
        for an empty topic, and for an envelope that cannot be sent; ChronetixError ``payload-unencodable`` for a value
        that the content type cannot carry, ``frame-not-sendable`` for more than a message takes (16 MiB).
        """
        topics = self.publications if topic is None else (topic,)
        if not topics:
            raise ValueError(f"node {self.node!r} has no control route to publish on: name a topic")
        for name in topics:
            head, payload = self._message(name, data, envelope)
            self._host.publish(head, payload)

    def subscribe(self, topic: str) -> None:
        """From now on ``on_message`` gets the messages of exactly this topic. Raises ValueError for what is no
        topic."""
        check_topic(topic)
        self._host.subscribe(topic)

    def unsubscribe(self, topic: str) -> None:
        """From now on ``on_message`` gets no more messages of this topic."""
        self._host.unsubscribe(topic)

    def request(self, topic: str, data: Any = None, timeout: float = 5.0, **envelope: Any) -> Message:
        """Send a request to one subscriber of ``topic``, wait up to ``timeout`` seconds for the reply and return it.

        ``data`` and keywords are as in :meth:`publish`. Raises RequestFailed with the reason ``timeout``,
        ``no-subscriber`` or ``peer-gone``.
        """
        head, payload = self._asking(topic, data, envelope)
        step = self._step
        doing, step.doing = step.doing, None
        try:
            if step.interrupt is not None:
                raise step.interrupt
            return self._host.request(head, payload, nanoseconds(timeout))
        finally:
            step.doing = doing

    def _asking(self, topic: str, data: Any, extra: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        corr_id = f"{self.node}-{os.getpid()}-{next(self._corr_ids)}"
        return self._message(topic, data, {**extra, "corr_id": corr_id})

    def _message(self, topic: str, data: Any, extra: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        head = {"topic": topic, "src": self.node, "content_type": codec.JSON, **extra}
        check_topic(head["topic"])
        try:
            msgspec.convert(head, Envelope)
            room = MAX_MESSAGE - len(cbor.dumps(head))
        except (msgspec.ValidationError, cbor.CborError) as reason:
            raise ValueError(f"the envelope for {topic!r} is not valid: {reason}") from None
        head["content_type"] = codec.canonical(head["content_type"])
        payload = codec.of(head["content_type"]).encode(data, topic)
        if len(payload) > room:
            text = f"{len(payload)} bytes on {topic!r}, and a message has room for {room}: send them over a data route"
            raise error("frame-not-sendable", type="publish", reason=text)
        return head, payload


def _asleep() -> None:
    """Nobody runs the node yet, and whoever will looks."""


def _resume(config: Configure) -> int:
    """The last item that all outputs had got when a worker was told of them."""
    return min((port.resume for port in config.outputs), default=0)


def check_topic(topic: Any) -> None:
    """Raise ValueError for what the daemon takes for no topic."""
    if not isinstance(topic, str) or not topic:
        raise ValueError(f"a topic is text with at least one character, not {topic!r}")
    if len(topic) > MAX_TOPIC:
        raise ValueError(f"a topic has at most {MAX_TOPIC} characters, not {len(topic)}")
    try:
        topic.encode()
    except UnicodeEncodeError as reason:
        raise ValueError(f"a topic is text that UTF-8 can hold: {reason}") from None


def nanoseconds(seconds: float | None) -> int:
    """A time-out as the layers below take it: -1 for none."""
    return -1 if seconds is None or seconds == float("inf") else max(0, int(seconds * 1e9))
