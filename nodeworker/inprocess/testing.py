"""Runs one plugin without a daemon, for unit tests: ``run(plugin, inputs=[…], params={…})``.

It is the real thing around it: inputs come as frames of a shared-memory ring, what the plugin sends is read from one,
in this process and thread. Nothing is left behind. An exception of the plugin comes out as it is.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Final

import msgspec

from chronetix.nodeworker.api import codec
from chronetix.nodeworker.api.context import Context
from chronetix.nodeworker.api.errors import Interrupted
from chronetix.nodeworker.api.message import Message
from chronetix.nodeworker.engine import children
from chronetix.nodeworker.inprocess.deployment import Deployment
from chronetix.nodeworker.inprocess.member import FlowFailed
from chronetix.protocol.messages import Configure, Port, Tick, TimerSpec
from chronetix.shm import Frame


@dataclass(slots=True)
class Published:
    """A message that the plugin has published."""

    topic: str
    """The topic."""
    value: Any
    """The payload, decoded."""
    envelope: dict[str, Any]
    """The whole envelope."""


@dataclass(slots=True)
class Logged:
    """A log record that the plugin has written."""

    level: str
    """The level: ``debug``, ``info``, ``warning`` or ``error``."""
    message: str
    """The message."""
    fields: dict[str, Any]
    """The fields of the record."""


@dataclass(slots=True)
class Run:
    """What came of a run."""

    sent: list[Any] = field(default_factory=list)
    """The frames that the plugin has sent, decoded."""
    meta: list[Any] = field(default_factory=list)
    """The metadata of each of these frames."""
    published: list[Published] = field(default_factory=list)
    """The messages that the plugin has published."""
    replies: list[Any] = field(default_factory=list)
    """The replies to ``requests``, decoded."""
    result: Any = None
    """What ``on_stop`` has returned."""
    logs: list[Logged] = field(default_factory=list)
    """The log records of the plugin."""
    failures: list[BaseException] = field(default_factory=list)
    """With ``restarts``: what the plugin has raised before it was restarted."""


PLUGIN, FEED, COLLECTOR, SCRIPT, REPLIER = "plugin", "feed", "collector", "script", "replier"

NEVER_NS = 1 << 60
"""Interval of a timer that does not tick by itself."""


def run(
    plugin: Any,
    inputs: Iterable[Any] | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    meta: Sequence[Mapping[str, Any]] = (),
    content_type: str = codec.JSON,
    input_type: str = "",
    buffer: int = 64,
    sends: bool = True,
    ticks: int = 0,
    messages: Sequence[tuple[str, Any]] = (),
    requests: Sequence[tuple[str, Any]] = (),
    replies: Mapping[str, Any] | None = None,
    publications: Sequence[str] = (),
    qos: Mapping[str, Any] | None = None,
    max_inflight: int = 1,
    handover: Any = None,
    resume_after: int = 0,
    restarts: int = 0,
) -> Run:
    """Run ``plugin`` (function, class or instance) from ``on_start`` to ``on_stop``. Raises what the plugin raises.

    * ``inputs``: values, encoded as ``input_type`` (default: ``content_type``), one frame each; None: no data input.
      ``meta``: metadata of these frames, from the first on.
    * ``sends``: whether the node has a data output (of ``content_type``); ``buffer``: credits of its routes.
    * ``ticks``: how many ticks of a timer ``tick`` it gets, first of all.
    * ``messages``, ``requests``: (topic, value) published to it, or asked of it; ``replies``: topic → value that its
      own requests get. All JSON.
    * ``publications``: what ``ctx.publish(None, …)`` publishes on.
    * ``max_inflight``: how many frames an asynchronous plugin works on at once.
    * ``handover``: the result of an earlier run, which the plugin takes over as a successor: ``ctx.handover``. Raises
      TypeError for what a worker could not hand over.
    * ``resume_after``: of a source, the number of the last item that its predecessor has sent.
    * ``restarts``: how often the plugin is made anew after it has raised, as under ``restart: transient``. Its
      successor gets the frames that were not done again, marked ``redelivered``; a source resumes; ticks, messages and
      requests are not repeated. One frame at a time: not with ``max_inflight``.
    """
    if restarts and max_inflight > 1:
        raise ValueError("restarts are for one frame at a time: leave max_inflight out")
    topics = [topic for topic, _ in (*messages, *requests)]
    incoming = _port(FEED, input_type or content_type, buffer) if inputs is not None else None
    outgoing = _port(COLLECTOR, content_type, buffer) if sends else None
    node = _node(
        PLUGIN,
        inputs=_ports(incoming),
        outputs=_ports(outgoing),
        timers=[TimerSpec(id="tick", interval_ns=NEVER_NS)] if ticks else [],
        subscriptions=list(dict.fromkeys(topics)),
        publications=list(publications),
        params=dict(params or {}),
        qos=dict(qos or {}),
        max_inflight=max_inflight,
        incarnation=int(handover is not None or resume_after > 0),
    )
    values = inputs if inputs is None or not restarts else list(inputs)
    life = _Life(node, incoming, outgoing, values, meta, resume_after, _handed_over(handover))
    script = _Script(messages, requests, [])
    outcome = Run(replies=script.replies)
    raised: BaseException | None = None
    for left in range(restarts, -1, -1):
        found = {
            PLUGIN: plugin,
            FEED: partial(_feed, () if life.inputs is None else life.inputs, life.meta),
            COLLECTOR: partial(_collect, outcome),
            SCRIPT: script,
            REPLIER: _Replier(replies or {}),
        }
        deployment = Deployment(
            [life.configure(), *_around(life, topics, replies)],
            find=lambda config, found=found: found[config.node],  # type: ignore[misc]
            on_log=lambda _node, level, text, fields: outcome.logs.append(Logged(level, text, fields)),
            on_publish=lambda envelope, payload: _note(outcome.published, envelope, payload),
            handovers={PLUGIN: life.handover},
        )
        for sequence in range(1, ticks + 1):
            deployment.post(PLUGIN, Tick(id="tick", sequence=sequence, due_ns=0))
        try:
            with _ctrl_c_ends_it():
                deployment.run(until_idle=True)
            break
        except FlowFailed as failure:
            if not left or failure.node != PLUGIN:
                raised = failure.args[2]
                break
            outcome.failures.append(failure.args[2])
            if outgoing is not None:
                deployment.settle(COLLECTOR)
            life, script, ticks = life.after(deployment), _Script((), (), script.replies), 0
        finally:
            outcome.result = deployment.results.get(PLUGIN)
            deployment.close()
    if raised is not None:  # here, where no other exception is handled, it keeps its own cause and context
        try:
            raise raised
        finally:
            del raised  # which refers to this frame
    return outcome


class CtrlC(KeyboardInterrupt, Interrupted):
    """Ctrl-C of whoever runs the test. A KeyboardInterrupt that the plugin raises itself is a failure of the plugin."""


@contextmanager
def _ctrl_c_ends_it() -> Iterator[None]:
    """In this block Ctrl-C raises CtrlC where it would raise KeyboardInterrupt, so that neither ``qos.retry`` nor
    ``restarts`` goes on."""
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before = children.handle(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        children.put_back(signal.SIGINT, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise CtrlC


def _handed_over(value: Any) -> Any:
    """``value`` as a successor gets it. Raises TypeError."""
    if isinstance(value, Run):
        value = value.result
    if isinstance(value, Mapping) and value.keys() == {"unsendable", "text"}:
        raise TypeError(f"what is left to the successor cannot be sent: {value['unsendable']}")
    try:
        return codec.result(value)
    except codec.Unsendable as reason:
        raise TypeError(f"what is left to the successor cannot be sent: {reason}") from reason


@dataclass(frozen=True, slots=True)
class _Life:
    """What one incarnation of the plugin finds: of its inputs the first ``again`` are redelivered."""

    node: Configure
    incoming: Port | None
    outgoing: Port | None
    inputs: Iterable[Any] | None
    meta: Sequence[Mapping[str, Any]]
    resume_after: int
    handover: Any
    again: int = 0

    def configure(self) -> Configure:
        """The plugin's node."""
        outputs = [msgspec.structs.replace(port, resume=self.resume_after) for port in _ports(self.outgoing)]
        return msgspec.structs.replace(self.node, outputs=outputs)

    def after(self, failed: Deployment) -> _Life:
        """The next one."""
        node = msgspec.structs.replace(self.node, incarnation=self.node.incarnation + 1)
        if self.incoming is None:
            return replace(self, node=node, resume_after=max(self.resume_after, failed.item_of(PLUGIN)), handover=None)
        counters = failed.snapshots()[FEED]
        done = counters["returned"]
        inputs = list(self.inputs or ())[done:]
        return replace(
            self, node=node, inputs=inputs, meta=self.meta[done:], again=counters["taken"] - done, handover=None
        )


def _around(life: _Life, topics: Sequence[str], replies: Mapping[str, Any] | None) -> list[Configure]:
    """The nodes that feed, ask, answer and collect."""
    nodes = []
    if life.incoming is not None:
        port = msgspec.structs.replace(_towards(life.incoming, PLUGIN), resume=life.again)
        nodes.append(_node(FEED, outputs=[port]))
    if life.outgoing is not None:
        nodes.append(_node(COLLECTOR, inputs=[_towards(life.outgoing, PLUGIN)]))
    if topics:
        nodes.append(_node(SCRIPT))
    if replies:
        nodes.append(_node(REPLIER, subscriptions=list(replies)))
    return nodes


def _node(name: str, **fields: Any) -> Configure:
    return Configure(flow="test", node=name, plugin_id=name, version="0", kind="Python", uri=f"test:{name}", **fields)


def _port(peer: str, content_type: str, buffer: int) -> Port:
    low = buffer // 2
    return Port(route=peer, peer=peer, content_type=content_type, credits=buffer, watermark=buffer, credit_low=low)


def _ports(port: Port | None) -> list[Port]:
    return [] if port is None else [port]


def _towards(port: Port, peer: str) -> Port:
    """The other end of ``port``."""
    return msgspec.structs.replace(port, peer=peer)


def _feed(inputs: Iterable[Any], meta: Sequence[Mapping[str, Any]], ctx: Context) -> Iterator[Any]:
    """Each with its metadata, if it has some. None is a value like others here, and not nothing to send."""
    for value, notes in zip_longest(inputs, meta, fillvalue=_LEFT_OUT):
        if value is _LEFT_OUT:
            raise ValueError("there are more metadata than inputs: meta has one map for each input, from the first on")
        noted = bool(notes) and notes is not _LEFT_OUT
        if noted or value is None:
            ctx.send(value, meta=notes if noted else None)
        else:
            yield value


_LEFT_OUT: Final[Any] = object()


def _collect(outcome: Run, frame: Frame, _ctx: Context) -> None:
    outcome.sent.append(_kept(frame))
    outcome.meta.append(frame.meta)


def _kept(frame: Frame) -> Any:
    """The frame's value, not tied to shared memory any more."""
    value = frame.value()
    if isinstance(value, memoryview):
        return value.tobytes()
    if codec.canonical(frame.content_type) != codec.NPY:
        return value
    if isinstance(value, dict):
        return {
            key: item.copy(order="K") if item is not None and hasattr(item, "__array__") else item
            for key, item in value.items()
        }
    return value.copy(order="K")


def _note(published: list[Published], envelope: dict[str, Any], payload: bytes) -> None:
    if envelope.get("src") == PLUGIN:
        value = codec.of(envelope["content_type"]).decode(payload, envelope["topic"])
        published.append(Published(envelope["topic"], value, envelope))


@dataclass(frozen=True, slots=True)
class _Script:
    """Publishes and asks what the test wants."""

    messages: Sequence[tuple[str, Any]]
    requests: Sequence[tuple[str, Any]]
    replies: list[Any]

    def produce(self, ctx: Context) -> Iterator[None]:
        for topic, value in self.messages:
            ctx.publish(topic, value)
            yield None
        for topic, value in self.requests:
            self.replies.append(ctx.request(topic, value).value())
            yield None


@dataclass(frozen=True, slots=True)
class _Replier:
    """Answers the plugin's requests."""

    values: Mapping[str, Any]

    def on_message(self, message: Message) -> None:
        if message.wants_reply:
            message.reply(self.values[message.topic])
