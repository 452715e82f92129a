"""What goes on in the next image as if nothing had happened: sockets in mid-frame, pipes in mid-line, feeds; and a list
of everything that has state, with what becomes of it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.framing import MessageDecoder, encode
from chronetix.protocol.messages import Hello, Ready, Segment, Started
from chronetixd.bus import event_bus
from chronetixd.control import server
from chronetixd.core import held, router, timers, token_bucket
from chronetixd.core.flow import state as flow_state
from chronetixd.core.wiring import incarnations, links, machine, reroute, route_table, segments
from chronetixd.dataplane import taps, wiring
from chronetixd.flows import execute, registry, restart_timers, run
from chronetixd.loop import connection
from chronetixd.loop.connection import Connection, PackedConnection
from chronetixd.packing import Bag, Unbag
from chronetixd.records import audit, exits, feed, logfiles, logs
from chronetixd.records.events import Event
from chronetixd.records.feed import Feed, PackedFeed
from chronetixd.store import descriptor_names, journal, state_dir
from chronetixd.systemd import fdstore, notify
from chronetixd.workers import orphans, output, process, pump
from chronetixd.workers.output import Output, PackedOutput
from chronetixd.workers.pump import Pump

UNION = Hello | Ready | Started | Segment


class Sides:
    """A connection, and one that goes on with its socket; both tell what came."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.got: list[Any] = []
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.connection = self.made(ours)
        self.connection.start()

    def made(self, sock: socket.socket) -> Connection:
        def take(message: Any, descriptors: list[int]) -> None:
            self.got.append((message, [os.pread(fd, 9, 0) for fd in descriptors]))

        return Connection(self.loop, sock, UNION, on_message=take, on_end=self.got.append)

    def hand_over(self) -> None:
        """The next one goes on; the first is closed as by an exec, without a word."""
        bag = Bag()
        written = msgspec.msgpack.encode(self.connection.packed(bag))
        packed = msgspec.msgpack.decode(written, type=PackedConnection)
        unbag = Unbag(bag.descriptors)
        following = self.made(socket.socket(fileno=unbag.take(packed.fd)))
        following.unpack(packed, unbag)
        self.connection.close()
        self.connection = following

    def close(self) -> None:
        self.connection.close()
        self.peer.close()


@pytest.fixture
def sides(loop: Any) -> Iterator[Sides]:
    made = Sides(loop)
    yield made
    made.close()


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("test")
    os.write(fd, b"in memory")
    yield fd
    os.close(fd)


def test_a_frame_that_was_half_read_is_whole_in_the_next_image(sides: Sides, memory: int, until: Any) -> None:
    frames = encode(Segment(index=3)) + encode(Ready())
    socket.send_fds(sides.peer, [frames[:1]], [memory])
    for at in range(1, len(frames)):
        until(lambda: True)
        sides.hand_over()
        sides.peer.send(frames[at : at + 1])
    until(lambda: len(sides.got) == 2)
    assert sides.got == [(Segment(index=3), [b"in memory"]), (Ready(), [])]


def test_what_was_not_sent_yet_is_sent_by_the_next_image(sides: Sides, memory: int, until: Any) -> None:
    sides.connection.send(Started())
    sides.connection.send(Segment(index=1), [os.dup(memory)], give=True)
    sides.connection.send(Hello(protocol=[1], role="client", software="x" * 1_000_000))
    until(lambda: sides.connection.backlog < 1_000_000)
    sides.hand_over()
    decoder: MessageDecoder[Any] = MessageDecoder(UNION)
    got: list[Any] = []
    brought: list[int] = []

    def read() -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(sides.peer, 1 << 16, 9)
        except BlockingIOError:
            return False
        brought.extend(fds)
        got.extend(decoder.feed(data))
        return len(got) == 3

    until(read)
    assert [type(message) for message in got] == [Started, Segment, Hello]
    assert len(got[2].software) == 1_000_000
    assert [os.pread(fd, 9, 0) for fd in brought] == [b"in memory"]
    for fd in brought:
        os.close(fd)
    assert sides.connection.backlog == 0


def test_one_that_has_ended_is_not_read_again(sides: Sides, until: Any) -> None:
    sides.peer.close()
    until(lambda: sides.got == [None])
    sides.hand_over()
    until(lambda: True)
    assert sides.got == [None]


@pytest.mark.parametrize("cut", range(12))
def test_a_line_is_whole_wherever_it_was_cut(cut: int, loop: Any, until: Any) -> None:
    lines: list[str] = []
    text = b"one\ntwo\ntail"
    read, write = os.pipe()
    with closing(Pump(loop)) as first, closing(Pump(loop)) as second:
        before = Output(loop, read, lines.append, lambda: None, pump=first)
        os.write(write, text[:cut])
        until(lambda: before._stream is not None and before._stream._allowance.packed()[0] <= 16 * 2**20 - cut)
        first.halt()
        bag = Bag()
        packed = msgspec.msgpack.decode(msgspec.msgpack.encode(before.packed(bag)), type=PackedOutput)
        lines += []
        second.halt()
        after = Output(loop, Unbag(bag.descriptors).take(read), lines.append, lambda: None, pump=second)
        after.unpack(packed)
        os.close(read)
        before._fd = -1
        before._stream = None
        os.write(write, text[cut:])
        os.close(write)
        second.resume()
        until(lambda: after._fd < 0)
    assert lines == ["one", "two", "tail"]
    assert list(after.tail) == lines


PLAIN = st.none() | st.booleans() | st.text(max_size=3) | st.sampled_from([-(1 << 64), (1 << 64) - 1, 7])
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
)


@given(st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=2), max_size=5))
def test_records_are_the_same_and_are_counted_on(fields: list[dict[str, Any]]) -> None:
    before: Feed[Event] = Feed(3)
    for number, data in enumerate(fields, start=1):
        before.append(Event(sequence=number, unix_ns=number, kind="k", data=data), 10)
    after: Feed[Event] = Feed(3)
    after.unpack(msgspec.msgpack.decode(msgspec.msgpack.encode(before.packed()), type=PackedFeed), Event)
    for each in (before, after):
        each.append(Event(sequence=99, unix_ns=99, kind="k"), 10)
    assert after.numbered(lambda _: True) == before.numbered(lambda _: True)
    assert (after.appended, after.forgotten) == (before.appended, before.forgotten)


# -- everything that has state -----------------------------------------------------------------------------

STATE: dict[type, tuple[set[str], set[str]]] = {
    run.FlowRun: (
        {
            "changed_unix_ns", "deliveries", "executor", "failures", "held_frames", "kept_descriptors", "last_exits",
            "machine", "reason", "restart_timers", "silent", "submitted_unix_ns", "taps", "wiring", "worker_records",
            "workers",
        },
        {
            "_busy", "_events", "_kept", "_log", "_messages", "_services", "_watchers", "flow_events", "name", "plan",
            "probes", "recovery", "rollout",
        },
    ),
    execute.Executor: (
        {"_deadline", "on_bus"},
        {"_delayed_by", "_former", "_handovers", "_run", "_services"},  # not within a roll-out
    ),
    process.WorkerProcess: (
        {
            "_connection", "_killed_with", "_leaf", "_oom_before", "_process", "_started_ns", "_stderr", "_stdout",
            "_tree", "_unlogged", "attached", "exit_pending", "fault", "features", "incarnation", "pid", "progress",
            "started_unix_ns",
        },
        {
            "_callbacks", "_cancelled", "_claims", "_launchers_lost", "_logs", "_loop", "_max_frame", "_out_of_memory",
            "_pace", "_pipes", "_request", "_sandboxes", "_spawn_again", "_unlogged_told", "_usage", "deliveries",
            "flow", "node",
        },
    ),
    connection.Connection: (
        {"_channel", "_fd", "_out", "_reading", "_sock", "_unsent", "_unwritable", "backlog"},
        {
            "_closing", "_delivered", "_flushing", "_frame_s", "_frame_timer", "_in_line", "_inspection", "_listening",
            "_loop", "_on_end", "_on_message", "_owner", "_paused", "_received", "_shares", "_taking", "_who",
            "_output_ends", "_writing", "account", "on_closed", "on_flushed", "on_partial",
        },
    ),
    output.Output: (
        {
            "_allowance", "_cutter", "_fd", "_gap", "_lost_bytes", "_lost_lines", "_reported_ns", "_stream",
            "_unhandled", "tail",
        },
        {"_loop", "_on_cut", "_on_dropped", "_on_line"},
    ),
    output.LineCutter: ({"_dropping", "_part"}, {"cut"}),
    pump.Stream: ({"_allowance", "buffered", "fd", "pieces"}, {"_pump", "_notified", "lock", "on_ready"}),
    token_bucket.TokenBucket: ({"_at", "_left"}, {"burst", "rate"}),
    wiring.FlowWiring: ({"_last", "_lines", "machine"}, {"_final", "_views"}),  # counted again at the end
    machine.WiringMachine: ({"table"}, {"incarnations", "links", "rerouting", "segments"}),
    route_table.RouteTable: (
        {"chains", "counters", "nodes", "ports"}, {"effects", "reader", "removed", "routes"},  # not within a roll-out
    ),
    segments.Segments: (set(), {"_table"}),
    links.Links: (set(), {"_table", "_segments"}),
    reroute.Rerouting: (
        set(),
        {"_former", "_leaving", "_links", "_table", "_outputs", "_segments", "lost", "nodes"},  # not within a roll-out
    ),
    incarnations.Incarnations: (set(), {"_links", "_table", "_rerouting", "_segments"}),
    flow_state.RestartState: ({"counted_exits", "groups", "parked"}, {"rules", "strategy"}),
    router.Router: (
        {"_asked", "_deadlines", "_owing", "_pending", "_serial", "_subscribed", "_topics", "_turn", "late_replies"},
        set(),
    ),
    timers.Timers: ({"_by_owner", "_heap", "missed"}, {"_order"}),
    held.HeldFramePolicy: ({"_warned"}, {"_progress", "_threshold_ns", "idle"}),
    event_bus.Bus: (
        {"_slow", "dropped", "router", "timers"}, {"_events", "_max_backlog", "_ticks", "_timeouts"},
    ),
    orphans.Orphans: (
        {"_inherited", "_killed", "_out_of_reach", "_workers", "ended", "reaped"},
        {"_announced", "_signals", "_spared", "_due", "_known", "_log", "_loop", "_next_look", "_stopped", "_turns"}
        | {"_waiting"},
    ),
    feed.Feed: ({"_records", "_size", "appended"}, {"_budget", "_capacity", "_followers"}),
    logs.Logs: ({"cut_lines", "dropped_bytes", "feed", "files"}, {"_log"}),
    logfiles.LogFiles: (
        {"_queue", "_queued", "run", "unwritten"},
        {
            "_change", "_closing", "_count", "_decoder", "_encoder", "_folder", "_forgotten", "_halted", "_max_bytes",
            "_on_trouble", "_removing", "_thread", "_trouble", "_writing",
        },
    ),
    audit.Audit: (
        {"_call", "_failing", "_owed", "feed", "lost"},
        {
            "_aside", "_encode", "_events", "_fd", "_loop", "_path", "_refusals", "_size", "_sync_timer", "_syncing",
            "limit", "reads",
        },
    ),
    exits.ExitRecords: (
        {"_owed", "_writing"},
        {"_asked", "_do", "_folder", "_lock", "_names", "_on_damage", "_on_trouble", "_trouble", "lost"},
    ),
    journal.Journal: (
        {"_pending"},
        {
            "_asked", "_awaited", "_base", "_batch", "_count", "_do", "_failures", "_later", "_on_trouble", "_post",
            "_settle", "_trouble", "_urgent", "_waiters", "given_up", "path",
        },
    ),
    descriptor_names.KeptDescriptors: ({"_kept"}, {"_flow", "_store", "_unsure"}),
    fdstore.DescriptorStore: (set(), {"_supervisor", "room"}),  # counted again
    notify.ServiceManager: ({"_waiting"}, {"_closed", "_later"}),
    taps.Taps: ({"next"}, {"_send", "_source", "_taps"}),
    restart_timers.RestartTimers: ({"_nodes", "_timers"}, {"_loop", "_on_deadline"}),
    registry.Flows: (
        {"_attach_tokens", "_revisions", "_runs", "_serial", "_stored"},
        {"_journal", "_pending", "_services", "limits", "stopping"},
    ),
    server.Server: (
        {"_everyone", "_given_to", "_inode", "_path", "_sock"},
        {"_group", "_loop", "_on_client", "_pause", "_trouble", "_watch"},
    ),
    state_dir.StateDir: ({"_fd"}, {"path"}),
}  # fmt: skip
"""What each class's objects have: what is handed over, and what is not state or begins anew."""


@pytest.mark.parametrize("kind", STATE, ids=lambda kind: kind.__name__)
def test_whoever_adds_state_says_what_becomes_of_it_in_an_upgrade(kind: type) -> None:
    handed_over, anew = STATE[kind]
    assert not handed_over & anew
    assert attributes(kind) == handed_over | anew


def attributes(kind: type) -> set[str]:
    """What ``__init__`` sets, or a dataclass has."""
    if dataclasses.is_dataclass(kind):
        return {field.name for field in dataclasses.fields(kind)}
    (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    (init,) = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    return {
        node.attr
        for node in ast.walk(init)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
