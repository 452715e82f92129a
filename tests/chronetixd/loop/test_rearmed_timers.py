"""Whatever arms itself again does so a second time, and a third, and not once more after its end.

The clock is the test's. Each timer is played through three rounds: one that is armed only once looks right in the
first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chronetix.protocol.messages import Ping, Pong
from chronetixd.core.access import Peer
from chronetixd.core.flow_messages import FlowState
from chronetixd.core.held import OldestHeldFrame
from chronetixd.core.liveness import Probe
from chronetixd.daemon import status
from chronetixd.dataplane.held_frames import FIRST_S, HeldFrameWatch, Seen
from chronetixd.flows.liveness import Probes
from chronetixd.flows.restart_timers import RestartTimers
from chronetixd.loop.alarm import Alarm
from chronetixd.records import audit as audits
from chronetixd.records.audit import SYNC_EVERY_S, Audit
from chronetixd.records.events import Events
from chronetixd.store.journal import FLUSH_S, Journal
from chronetixd.store.journal_file import StoredWorker
from chronetixd.systemd import notify
from chronetixd.systemd.watchdog import Watchdog


class Timer:
    """One that is armed."""

    def __init__(self, clock: Clock, at: float, call: Callable[[], object]) -> None:
        self._clock, self._at, self.call = clock, at, call

    def when(self) -> float:
        return self._at

    def cancel(self) -> None:
        if self in self._clock.armed:
            self._clock.armed.remove(self)


class Clock:
    """A loop in which time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.armed: list[Timer] = []
        self.readers: dict[int, Callable[[], None]] = {}

    def time(self) -> float:
        return self.now

    def call_later(self, after_s: float, call: Callable[..., object], *args: object) -> Timer:
        timer = Timer(self, self.now + after_s, lambda: call(*args))
        self.armed.append(timer)
        return timer

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        self.readers[fd] = call

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]

    def go_to(self, end: float) -> None:
        """Call what is due until then, in order."""
        while due := [timer for timer in self.armed if timer.when() <= end + 1e-9]:
            timer = min(due, key=Timer.when)
            self.armed.remove(timer)
            self.now = timer.when()
            timer.call()
        self.now = end

    @property
    def next(self) -> list[float]:
        """How long until each timer is due."""
        return [round(timer.when() - self.now, 6) for timer in self.armed]


@pytest.fixture
def clock() -> Any:
    return Clock()


def test_an_alarm_rings_for_each_time_that_is_due(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chronetixd.loop.alarm.time", SimpleNamespace(monotonic_ns=lambda: round(clock.now * 1e9)))
    due, rung = [1, 3, 7], []

    def ring() -> None:
        rung.append(clock.now)
        due.pop(0)

    alarm = Alarm(clock, lambda: due[0] * 10**9 if due else None, ring)
    alarm.rearm()
    alarm.rearm()
    assert len(clock.armed) == 1
    clock.go_to(10)
    assert (rung, clock.armed) == ([1, 3, 7], [])
    due.append(12)
    alarm.rearm()
    assert clock.next == [2]
    alarm.cancel()
    assert clock.armed == []


def test_frames_that_are_held_are_looked_at_as_long_as_something_moves(clock: Any) -> None:
    looks: list[float] = []
    moves = [1, 2, 3, 3]

    def look() -> Iterator[Seen]:
        looks.append(clock.now)
        yield None, moves[min(len(looks), len(moves)) - 1], 0

    watch = HeldFrameWatch(clock, 5.0, look, lambda _: None)
    watch.note_activity()
    assert clock.armed == []
    watch.start()
    assert clock.next == [FIRST_S]
    clock.go_to(100)
    assert looks == [1, 6, 11, 16]
    for at in (100, 200, 300):
        watch.note_activity()
        watch.note_activity()
        assert clock.next == [5]
        clock.go_to(at + 100)
    assert looks == [1, 6, 11, 16, 105, 205, 305]
    watch.note_activity()
    watch.stop()
    watch.note_activity()
    assert clock.armed == []


def test_a_look_comes_sooner_where_the_threshold_is_shorter(clock: Any) -> None:
    watch = HeldFrameWatch(clock, FIRST_S / 2, lambda: iter([(None, 0, 0)]), lambda _: None)
    watch.start()
    assert clock.next == [FIRST_S / 2]


def test_each_frame_that_is_held_is_warned_of_once_in_looks_that_go_on(clock: Any) -> None:
    warned: list[int] = []
    looks: list[int] = []

    def look() -> Iterator[Seen]:
        looks.append(1)
        count = len(looks)
        yield OldestHeldFrame("r", "n", count, 10**12, 1), count, 0

    watch = HeldFrameWatch(clock, 1.0, look, lambda held: warned.append(held.seq))
    watch.start()
    clock.go_to(3)
    assert warned == [1, 2, 3]


def test_a_probe_asks_again_and_again_while_it_is_answered(clock: Any) -> None:
    asked: list[tuple[float, int]] = []
    dead: list[str] = []

    def ask(node: str, ping: Ping) -> None:
        asked.append((clock.now, ping.id))
        if ping.id < 4:
            probes.answered(node, Pong(id=ping.id, progress=0))

    probe = Probe(limit_ns=1, period_ns=2 * 10**9, delay_ns=5 * 10**9)
    probes = Probes(clock, {"n": probe}, ask, lambda _: None, lambda node, _: dead.append(node))
    probes.start("n")
    clock.go_to(12.9)
    assert asked == [(7, 1), (9, 2), (11, 3)]
    clock.go_to(100)
    assert (asked[3:], dead, clock.armed) == ([(13, 4)], ["n"], [])
    probes.start("n")
    probes.stop("n")
    assert clock.armed == []


def test_a_node_s_restart_is_timed_as_often_as_it_is_restarted(clock: Any) -> None:
    passed: list[tuple[float, str]] = []
    timers = RestartTimers(clock, ["a", "b"], lambda node: passed.append((clock.now, node)))
    for at in (0, 10, 20):
        timers.arm("a", 9 * 10**9)
        timers.arm("a", 2 * 10**9)
        timers.arm("b", 3 * 10**9)
        clock.go_to(at + 10)
    assert passed == [(at + more, node) for at in (0, 10, 20) for more, node in ((2, "a"), (3, "b"))]
    timers.arm("a", 10**9)
    timers.restart_planned("b", ["a"], 10**9, "it failed")
    timers.restarted("a")
    assert (clock.armed, timers["a"].next_restart_unix_ns, timers["a"].last_reason) == (
        [],
        0,
        "restarted with node 'b'",
    )
    assert timers["b"].next_restart_unix_ns > time.time_ns()
    timers.arm("b", 10**9)
    timers.close()
    assert (clock.armed, timers["b"].next_restart_unix_ns) == ([], 0)


class Told:
    """A supervisor that remembers what it is told."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.lines: list[tuple[float, str, str]] = []

    def ready(self, line: str) -> None:
        self.lines.append((self._clock.now, "ready", line))

    def stopping(self, line: str) -> None:
        self.lines.append((self._clock.now, "stopping", line))

    def status(self, line: str) -> None:
        self.lines.append((self._clock.now, "status", line))

    def extend_timeout(self, seconds: float, line: str) -> None:
        self.lines.append((self._clock.now, f"extend {seconds:g}", line))


class TestStatus:
    @pytest.fixture
    def report(self, clock: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
        flows = SimpleNamespace(living=[], worker_pids=lambda: [1, 2, 3])
        spares = SimpleNamespace(ready=[1])
        told, events = Told(clock), Events()
        return SimpleNamespace(
            told=told, flows=flows, events=events, it=status.Report(clock, told, flows, spares, events)
        )

    def test_time_is_asked_for_again_and_again_until_it_is_ready(self, clock: Any, report: Any) -> None:
        report.it.starting()
        clock.go_to(16)
        assert [(at, what) for at, what, _ in report.told.lines] == [(at, "extend 15") for at in (0, 5, 10, 15)]
        report.it.ready()
        clock.go_to(100)
        assert [what for _, what, _ in report.told.lines[4:]] == ["ready"]
        report.it.stopping()
        clock.go_to(111)
        assert [(at, what) for at, what, _ in report.told.lines[5:]] == [
            (100, "stopping"),
            (100, "extend 15"),
            (105, "extend 15"),
            (110, "extend 15"),
        ]
        report.it.stop()
        report.it.stop()
        assert clock.armed == []

    def test_what_has_changed_is_said_once_a_second_each_time(self, clock: Any, report: Any) -> None:
        report.it.ready()
        flow = {state: SimpleNamespace(state=state) for state in FlowState}
        shown = []
        for living in (["RUNNING"], ["RUNNING", "RUNNING", "DRAINING"], ["RUNNING", "RUNNING", "DRAINING"], []):
            report.flows.living = [flow[FlowState[name]] for name in living]
            for _ in range(3):
                report.events.emit("flow-running", flow="f")
            assert clock.next == [1]
            clock.go_to(clock.now + 10)
            shown.append(report.told.lines[1:])
        workers = "3 workers, 1 spare"
        assert shown[-1] == [
            (1, "status", f"1 flow running, {workers}"),
            (11, "status", f"2 flows running, 1 starting or draining, {workers}"),
            (31, "status", f"0 flows running, {workers}"),
        ]
        report.it.stop()
        report.events.emit("flow-running", flow="f")
        assert clock.armed == []


def test_the_watchdog_is_fed_at_every_beat_that_the_poll_has_found(clock: Any) -> None:
    fed: list[float] = []
    watchdog = Watchdog(clock, 10, lambda: fed.append(clock.now))
    watchdog.start()
    (arrived,) = clock.readers.values()
    for beat in range(4):
        clock.go_to(beat * 10 + 5)
        assert len(clock.armed) == 1
        arrived()
        with pytest.raises(BlockingIOError):  # there was one beat, and no second
            arrived()
    assert fed == [5, 15, 25, 35]
    watchdog.stop()
    watchdog.stop()
    assert (clock.armed, clock.readers) == ([], {})


def test_records_that_come_later_are_synced_too(clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[Callable[[], None]] = []
    synced: list[float] = []
    thread = SimpleNamespace(do=work.append, post=lambda call: call(), close=lambda: None)
    monkeypatch.setattr(audits, "Aside", lambda *_: thread)
    monkeypatch.setattr(audits.os, "fdatasync", lambda _: synced.append(clock.now))
    audit = Audit(clock, tmp_path, 1 << 20, Events())
    audit.open()
    assert clock.armed == []
    for round_ in range(3):
        for _ in range(3):
            audit.begun(Peer(pid=1, uid=1, gid=1), "stop", {})
        assert clock.next == [SYNC_EVERY_S]
        clock.go_to(clock.now + SYNC_EVERY_S)
        assert (len(work), clock.armed) == (1, [])
        work.pop()()
        assert len(synced) == round_ + 1
    audit.begun(Peer(pid=1, uid=1, gid=1), "stop", {})
    clock.go_to(clock.now + SYNC_EVERY_S)
    audit.begun(Peer(pid=1, uid=1, gid=1), "stop", {})
    clock.go_to(clock.now + SYNC_EVERY_S)
    assert (len(work), clock.next) == (1, [SYNC_EVERY_S])  # a slow disk is not asked twice at once, and asked again
    work.pop()()
    clock.go_to(clock.now + SYNC_EVERY_S)
    work.pop()()
    assert (len(synced), clock.armed) == (5, [])
    audit.begun(Peer(pid=1, uid=1, gid=1), "stop", {})
    audit.close()
    work.pop()()
    assert (clock.armed, len(synced)) == ([], 6)


def test_the_journal_flushes_what_comes_later_too(clock: Any, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", lambda _: None, clock.call_later)
    journal.open()
    for incarnation in range(3):
        for node in ("a", "b"):
            journal.soon(
                StoredWorker(flow="f", node=node, incarnation=incarnation, phase="born", token="t", boot="b", pid=7)
            )
        assert (journal.pending, clock.next) == (2, [FLUSH_S])
        clock.go_to(clock.now + FLUSH_S)
        assert (journal.pending, clock.armed) == (0, [])
        journal.flush()
    journal.close()


def test_a_supervisor_that_has_much_to_read_is_told_later_as_often_as_that_is_so(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    busy, sent = True, []

    def send(message: str, descriptors: object = ()) -> None:
        if busy:
            raise BlockingIOError(11, "it has too much to read")
        sent.append(message)

    monkeypatch.setattr(notify, "send", send)
    supervisor = notify.ServiceManager(clock.call_later)
    for round_ in range(3):
        busy = True
        assert supervisor.tell(f"a={round_}")
        assert supervisor.tell(f"b={round_}")
        for _ in range(3):
            assert (supervisor.waiting, clock.next) == (2, [notify.RETRY_S])
            clock.go_to(clock.now + notify.RETRY_S)
        busy = False
        clock.go_to(clock.now + notify.RETRY_S)
        assert (supervisor.waiting, clock.armed) == (0, [])
    assert sent == [f"{name}={round_}" for round_ in range(3) for name in "ab"]
    supervisor.close()


def test_what_the_supervisor_was_not_told_is_handed_over_with_its_descriptors(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")

    def busy(message: str, descriptors: object = ()) -> None:
        raise BlockingIOError(11, "it has too much to read")

    monkeypatch.setattr(notify, "send", busy)
    before, after = notify.ServiceManager(clock.call_later), notify.ServiceManager(clock.call_later)
    read_end, write_end = os.pipe()
    assert before.tell("plain")
    assert before.tell("with one", read_end)
    given: list[int] = []
    bag = SimpleNamespace(put=lambda fd: given.append(os.dup(fd)) or 0, take=lambda at: given[at])
    packed = before.packed(bag)  # type: ignore[arg-type]
    assert packed == [("plain", -1), ("with one", 0)]
    before.close()
    after.unpack(packed, bag)  # type: ignore[arg-type]
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(
        notify, "send", lambda message, fds: told.append((message, *(os.fstat(fd).st_ino for fd in fds)))
    )
    clock.go_to(clock.now + notify.RETRY_S)
    assert told == [("plain",), ("with one", os.fstat(write_end).st_ino)]
    assert (after.waiting, clock.armed) == (0, [])
    os.close(read_end)
    os.close(write_end)
