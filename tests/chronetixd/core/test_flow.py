"""The table of a flow's life, driven by hand and by random sequences of events."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronetixd.core import flow_messages as core
from chronetixd.core import worker as life
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow.table import NEXT, TABLE, handle
from chronetixd.core.flow_messages import EVENTS, Deadline, FlowState, StopMode, WorkerChanged
from chronetixd.core.levels import start_waves
from chronetixd.core.machine import IllegalEvent
from chronetixd.core.reason import reason
from chronetixd.core.worker import Exit, WorkerState

NODES = ("source", "left", "right", "sink")
EDGES = (("source", "left"), ("source", "right"), ("left", "sink"), ("right", "sink"))
CLEAN = life.ProcessExited(Exit(code=0))


def of(kind: type, instructions: list[Any]) -> list[Any]:
    return [each for each in instructions if isinstance(each, kind)]


def goes_as_drawn(state: FlowState, instructions: list[Any]) -> None:
    """From ``state`` the flow has entered only what the table of its states names."""
    for entered in of(core.EnterState, instructions):
        assert entered.state in NEXT[state], f"{state} to {entered.state}"
        state = entered.state


class Play:
    """A flow whose workers do what a test says; keeps all instructions."""

    def __init__(self, nodes: tuple[str, ...] = NODES, edges: tuple[tuple[str, str], ...] = EDGES) -> None:
        self.flow = FlowMachine("f", nodes, edges)
        self.all: list[Any] = []

    def do(self, event: core.FlowEvent) -> list[Any]:
        before = self.flow.state
        instructions = handle(self.flow, event, core.ClockAndChance(0, 0.5))
        self.all += instructions
        goes_as_drawn(before, instructions)
        return instructions

    def node(self, node: str, event: life.WorkerEvent) -> list[Any]:
        return self.do(WorkerChanged(node, event))

    def each(self, *events: life.WorkerEvent) -> None:
        for event in events:
            for node in self.flow.peers:
                self.node(node, event)

    def launch(self) -> Play:
        self.do(core.Validated())
        self.do(core.Launch())
        return self

    def ready(self) -> Play:
        self.launch()
        self.each(life.ProcessSpawned(7), life.Greeted(), life.Offered(), life.LinkSent(), life.BecameReady())
        return self

    def running(self) -> Play:
        self.ready()
        for wave in self.flow.waves:
            for node in wave:
                self.node(node, life.HasStarted())
        assert self.flow.state is FlowState.RUNNING
        return self


@pytest.fixture
def play() -> Play:
    return Play()


def test_the_table_has_a_cell_for_every_state_and_event() -> None:
    assert set(TABLE) == set(FlowState)
    assert {len(row) for row in TABLE.values()} == {len(EVENTS)}


def test_sinks_come_first_and_sources_in_a_wave_of_their_own() -> None:
    assert start_waves(NODES, EDGES) == (("sink", "left", "right"), ("source",))


def test_nodes_without_data_inputs_are_all_in_the_last_wave() -> None:
    assert start_waves(("a", "timer", "b"), (("a", "b"),)) == (("b",), ("timer", "a"))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_every_consumer_starts_before_its_producer(pairs: list[tuple[int, int]]) -> None:
    nodes = tuple(f"n{i}" for i in range(10))
    edges = tuple((f"n{min(p)}", f"n{max(p)}") for p in pairs if p[0] != p[1])
    waves = start_waves(nodes, edges)
    at = {node: index for index, node in enumerate(node for wave in waves for node in wave)}
    assert len(waves) <= 2
    assert sorted(at) == sorted(nodes)
    assert all(at[target] < at[source] for source, target in edges)


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        FlowMachine("f", ("a", "b"), (("a", "b"), ("b", "a")))


def test_a_flow_without_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="node"):
        FlowMachine("f", (), ())


def test_sources_start_when_everyone_else_has(play: Play) -> None:
    play.ready()
    assert play.all[-1] == core.SendStart(("sink", "left", "right"))
    assert play.node("right", life.HasStarted()) == []
    assert play.node("sink", life.HasStarted()) == []
    assert play.node("left", life.HasStarted()) == [core.SendStart(("source",))]
    assert play.node("source", life.HasStarted()) == [core.EnterState(FlowState.RUNNING), core.DisarmDeadline()]


def test_a_flow_whose_workers_all_finish_has_stopped(play: Play) -> None:
    play.running()
    for node in NODES:
        play.node(node, life.HasFinished())
        play.node(node, CLEAN)
    assert play.flow.state is FlowState.STOPPED
    assert play.flow.failure is None
    assert len(of(core.WakePeers, play.all)) == 4


def test_a_source_may_finish_before_another_has_started() -> None:
    play = Play(("a", "b"), ()).ready()
    play.node("a", life.HasStarted())
    play.node("a", life.HasFinished())
    play.node("a", CLEAN)
    play.node("b", life.HasStarted())
    assert play.flow.state is FlowState.RUNNING
    play.node("b", life.HasFinished())
    play.node("b", CLEAN)
    assert play.flow.state is FlowState.STOPPED


def test_stop_drains_the_sources_only(play: Play) -> None:
    play.running()
    instructions = play.do(core.StopRequested())
    assert of(core.SendDrain, instructions) == [core.SendDrain(("source",))]
    assert of(core.ArmDeadline, instructions)[0].deadline is Deadline.DRAIN


def test_a_drain_that_takes_too_long_ends_with_sigterm_then_sigkill_and_says_so(play: Play) -> None:
    play.running()
    play.do(core.StopRequested())
    assert of(core.Signal, play.do(core.DeadlinePassed())) == [core.Signal(NODES, kill=False)]
    assert of(core.Signal, play.do(core.DeadlinePassed())) == [core.Signal(NODES, kill=True)]
    play.each(life.ProcessExited(Exit(signal="SIGKILL")))
    assert play.flow.state is FlowState.FAILED
    assert play.flow.failure is not None
    assert play.flow.failure.kind == "drain-timeout"


@pytest.mark.parametrize(("mode", "kill"), [(StopMode.NOW, False), (StopMode.KILL, True)])
def test_a_harder_stop_hurries_a_drain_and_is_no_failure(mode: StopMode, kill: bool, play: Play) -> None:
    play.running()
    play.do(core.StopRequested())
    assert of(core.Signal, play.do(core.StopRequested(mode))) == [core.Signal(NODES, kill=kill)]
    assert play.do(core.StopRequested()) == []
    play.each(life.ProcessExited(Exit(signal="SIGKILL")))
    assert play.flow.state is FlowState.STOPPED


def test_a_stop_before_anything_has_started_ends_all_workers(play: Play) -> None:
    play.launch()
    play.each(life.ProcessSpawned(7))
    assert of(core.Signal, play.do(core.StopRequested())) == [core.Signal(NODES, kill=False)]


def test_a_stop_while_waves_start_waits_until_all_have_started(play: Play) -> None:
    play.ready()
    assert play.do(core.StopRequested()) == []
    for wave in play.flow.waves:
        for node in wave:
            play.node(node, life.HasStarted())
    assert play.flow.state is FlowState.DRAINING
    assert play.all[-1] == core.SendDrain(("source",))


def test_a_worker_spawned_after_the_flow_was_stopped_is_killed_at_once(play: Play) -> None:
    play.launch()
    play.do(core.StopRequested())
    assert play.node("left", life.ProcessSpawned(9)) == [core.Signal(("left",), kill=True)]


def test_a_spawn_that_fails_ends_the_others_and_fails_the_flow(play: Play) -> None:
    play.launch()
    for node in ("source", "left", "right"):
        play.node(node, life.ProcessSpawned(7))
    instructions = play.node("sink", life.ProcessNotSpawned("no such program"))
    assert of(core.Signal, instructions) == [core.Signal(("source", "left", "right"), kill=False)]
    for node in ("source", "left", "right"):
        play.node(node, life.ProcessExited(Exit(signal="SIGTERM")))
    assert play.flow.state is FlowState.FAILED
    assert reason(play.flow.failure, None, []) == "node 'sink' could not be spawned: no such program"  # type: ignore[arg-type]


def test_a_fault_while_loading_leaves_the_faulty_worker_to_exit_with_its_own_code(play: Play) -> None:
    play.launch()
    play.each(life.ProcessSpawned(7), life.Greeted())
    instructions = play.node("left", life.Faulted("load", "ImportError: x"))
    assert of(core.Signal, instructions) == [core.Signal(("source", "right", "sink"), kill=False)]
    assert of(core.ArmDeadline, instructions)[0].deadline is Deadline.TERMINATE


def test_a_fault_while_running_drains_everyone_else(play: Play) -> None:
    play.running()
    instructions = play.node("left", life.Faulted("frame", "ValueError: x"))
    assert of(core.SendDrain, instructions) == [core.SendDrain(("source", "right", "sink"))]
    play.node("left", life.ProcessExited(Exit(code=1)))
    for node in ("source", "right", "sink"):
        play.node(node, life.HasFinished())
        play.node(node, CLEAN)
    assert play.flow.state is FlowState.FAILED
    text = reason(play.flow.failure, Exit(code=1), ["boom"])  # type: ignore[arg-type]
    assert text.startswith("node 'left' failed in phase 'frame': ValueError: x; it exited with code 1")
    assert text.endswith("  boom")


def test_the_first_cause_stays_unless_it_was_a_mere_consequence(play: Play) -> None:
    play.running()
    play.node("left", life.Faulted("frame", "RouteClosed: sink", consequence=True))
    play.node("sink", life.ProcessExited(Exit(signal="SIGKILL")))
    play.node("right", life.Faulted("frame", "ValueError"))
    assert play.flow.failure == core.FlowFailure("exit", "sink", "", "was killed by SIGKILL")


def test_the_start_deadline_blames_the_worker_that_is_furthest_behind(play: Play) -> None:
    play.launch()
    play.each(life.ProcessSpawned(7), life.Greeted())
    for node in ("source", "left", "sink"):
        play.node(node, life.Offered())
    play.do(core.DeadlinePassed())
    assert play.flow.failure is not None
    assert (play.flow.failure.node, play.flow.failure.phase) == ("right", "load")


def test_the_start_deadline_blames_who_starts_not_who_waits_for_it(play: Play) -> None:
    play.ready()
    play.node("sink", life.HasStarted())
    play.node("left", life.HasStarted())
    play.do(core.DeadlinePassed())
    assert play.flow.failure is not None
    assert (play.flow.failure.node, play.flow.failure.phase) == ("right", "start")


def test_an_event_of_an_unknown_node_is_illegal(play: Play) -> None:
    play.running()
    with pytest.raises(IllegalEvent):
        play.node("nobody", life.Greeted())


# -- programs that start by themselves ---------------------------------------------------------------------


def armed(instructions: list[Any]) -> list[Any]:
    return of(core.ArmDeadline, instructions)


def test_a_flow_waits_as_long_for_a_person_as_one_may_take_and_then_as_long_for_the_start_as_ever(play: Play) -> None:
    limits, start = play.flow.limits, core.Deadline.START
    play.launch()
    for node in ("left", "right"):
        assert armed(play.node(node, life.AttachAwaited())) == [core.ArmDeadline(start, limits.attach_ns)]
    assert play.node("left", life.Attached(7)) == []
    assert armed(play.node("right", life.Attached(8))) == [core.ArmDeadline(start, limits.start_ns)]


def test_a_flow_that_nothing_attaches_to_in_time_fails_and_names_the_node(play: Play) -> None:
    play.launch()
    play.node("left", life.AttachAwaited())
    for node in ("source", "right", "sink"):
        play.node(node, life.ProcessSpawned(7))
    play.do(core.DeadlinePassed())
    failure = play.flow.failure
    assert failure is not None
    assert (failure.kind, failure.node, failure.phase) == ("start-timeout", "left", "attach")
    assert failure.message == "waited for attach, and nothing attached within 600 s"
    play.node("left", life.ProcessNotSpawned("its start was cancelled"))
    for node in ("source", "right", "sink"):
        play.node(node, CLEAN)
    assert play.flow.state is FlowState.FAILED


@pytest.mark.parametrize("mode", StopMode)
def test_a_flow_that_waits_for_attach_ends_when_it_is_told_to(mode: StopMode, play: Play) -> None:
    play.launch()
    play.each(life.AttachAwaited())
    assert of(core.Signal, play.do(core.StopRequested(mode)))
    play.each(life.ProcessNotSpawned("its start was cancelled"))
    assert play.flow.state is FlowState.STOPPED


# -- random sequences --------------------------------------------------------------------------------------

WORKER_EVENTS: list[Any] = [
    life.ProcessSpawned(7),
    life.ProcessNotSpawned("no"),
    life.Greeted(),
    life.Offered(),
    life.BecameReady(),
    life.HasStarted(),
    life.HasFinished(),
    life.Faulted("frame", "x"),
    life.Faulted("frame", "RouteClosed", consequence=True),
    CLEAN,
    life.ProcessExited(Exit(signal="SIGKILL")),
    life.AttachAwaited(),
    life.Attached(7),
]
NODE_EVENTS = st.builds(WorkerChanged, st.sampled_from(NODES), st.sampled_from(WORKER_EVENTS))
FLOW_EVENTS: Any = st.one_of(
    NODE_EVENTS,
    NODE_EVENTS,
    NODE_EVENTS,
    st.builds(core.StopRequested, st.sampled_from(StopMode)),
    st.just(core.DeadlinePassed()),
    st.sampled_from([core.Validated(), core.Launch(), core.Refused("no")]),
)


def picture(flow: FlowMachine) -> Any:
    workers = {n: (w.state, w.exit, w.fault, w.history.entries()) for n, w in flow.workers.items()}
    return flow.state, flow.failure, flow.deadline, tuple(flow.killed), flow.history.entries(), workers


def fair_events(flow: FlowMachine) -> Any:
    """What could happen next to the workers as they are, so that random plays get far."""
    follows = {
        WorkerState.SPAWNING: life.ProcessSpawned(7),
        WorkerState.WAITING: life.Attached(7),
        WorkerState.GREETING: life.Greeted(),
        WorkerState.OFFERING: life.Offered(),
        WorkerState.OFFERED: life.LinkSent(),
        WorkerState.LINKED: life.BecameReady(),
        WorkerState.STARTING: life.HasStarted(),
        WorkerState.STARTED: life.HasFinished(),
        WorkerState.DRAINING: life.HasFinished(),
        WorkerState.FINISHED: CLEAN,
        WorkerState.FAULTED: life.ProcessExited(Exit(code=1)),
        WorkerState.TERMINATING: life.ProcessExited(Exit(signal="SIGTERM")),
    }
    return [WorkerChanged(node, follows[w.state]) for node, w in flow.workers.items() if w.state in follows]


@settings(max_examples=300)
@given(st.data())
def test_whatever_happens_the_rules_hold(data: st.DataObject) -> None:
    play = Play()
    if data.draw(st.booleans()):
        play.launch()
    for _ in range(data.draw(st.integers(0, 60))):
        fair = fair_events(play.flow)
        event = data.draw(st.sampled_from(fair) if fair and data.draw(st.integers(0, 3)) else FLOW_EVENTS)
        before = picture(play.flow)
        try:
            play.do(event)
        except IllegalEvent:
            assert picture(play.flow) == before
        check(play)
    finish(play)


@given(st.data())
def test_whenever_its_feeder_fails_its_workers_are_killed_and_it_has_failed(data: st.DataObject) -> None:
    play = Play()
    for _ in range(data.draw(st.integers(0, 30))):
        fair = fair_events(play.flow)
        if play.flow.ended or not fair:
            break
        play.do(data.draw(st.sampled_from(fair)))
    if play.flow.ended:
        return
    living = [node for node, worker in play.flow.workers.items() if not worker.gone and data.draw(st.booleans())]
    done = handle(play.flow, core.Collapsed("lost", tuple(living)), core.ClockAndChance(0, 0.5))
    assert of(core.Signal, done) == [core.Signal(tuple(living), kill=True)]
    assert not play.flow.leaving
    for node in living:
        assert play.flow.state is FlowState.DRAINING
        play.node(node, life.ProcessExited(Exit(signal="SIGKILL")))
    assert play.flow.state is FlowState.FAILED


def check(play: Play) -> None:
    """What holds after every event."""
    flow = play.flow
    gone = all(w.gone for w in flow.workers.values())
    if flow.ended:
        assert gone
        assert flow.deadline is None
        assert not of(core.Restarting, play.all)
        assert (flow.state is FlowState.FAILED) == (flow.failure is not None)
    armed: Any = None
    for each in play.all:
        armed = (
            each.deadline
            if isinstance(each, core.ArmDeadline)
            else None
            if isinstance(each, core.DisarmDeadline)
            else armed
        )
    assert armed == flow.deadline
    started: list[str] = []
    for start in of(core.SendStart, play.all):
        for node in start.nodes:
            assert all(target in started for source, target in EDGES if source == node)
            started.append(node)
    assert len(started) == len(set(started))
    states = [enter.state for enter in of(core.EnterState, play.all)]
    assert len(states) == len(set(states))


def finish(play: Play) -> None:
    """From wherever it is, a flow that is killed ends once its workers have exited."""
    flow = play.flow
    if not flow.ended:
        play.do(core.StopRequested(StopMode.KILL))
    for node, worker in flow.workers.items():
        if worker.state is WorkerState.TERMINATING and worker.pid == 0 and not flow.ended:
            play.node(node, life.ProcessNotSpawned("never came"))
        if not worker.gone and not flow.ended:
            play.node(node, life.ProcessExited(Exit(signal="SIGKILL")))
    assert flow.ended
    check(play)


class Unlooked(dict[str, Any]):
    """Workers that are asked for by name, and never all of them."""

    def _all(self) -> Any:
        raise AssertionError("all workers are looked at because of one")

    values = items = __iter__ = _all


def test_a_death_costs_no_look_at_all_the_others() -> None:
    play = Play(tuple(f"n{number}" for number in range(50)), ()).running()
    nodes = tuple(play.flow.peers)
    dead = life.ProcessExited(Exit(signal="SIGKILL"))
    play.node(nodes[0], dead)
    assert play.flow.state is FlowState.DRAINING
    play.flow.workers = Unlooked(play.flow.workers)
    for node in nodes[1:]:
        play.node(node, dead)
    assert play.flow.state is FlowState.FAILED


@given(st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(life.EVENTS[2:11])), max_size=60))
def test_workers_are_counted_as_they_change(events: list[tuple[str, type]]) -> None:
    play = Play().launch()
    made = {life.HasFinished: life.HasFinished(None)}
    for node, kind in events:
        with suppress(IllegalEvent):
            handle(play.flow, WorkerChanged(node, made[kind] if kind in made else kind()), core.ClockAndChance(0, 0.5))
        for state in WorkerState:
            counted = sum(worker.state is state for worker in play.flow.workers.values())
            assert play.flow.count(state) == counted


class TestUnderAnEarlierDaemon:
    @pytest.mark.parametrize("state", [FlowState.STOPPED, FlowState.FAILED])
    def test_a_flow_that_has_ended_is_only_listed(self, play: Play, state: FlowState) -> None:
        assert play.do(core.Remembered(state)) == []
        assert (play.flow.state, play.flow.ended, play.flow.workers) == (state, True, {})
        with pytest.raises(IllegalEvent):
            play.do(core.Launch())

    def test_one_that_ran_goes_on_and_nothing_begins(self, play: Play) -> None:
        assert play.do(core.Resumed({"left": 2, "sink": 1}, frozenset({"sink"}))) == []
        assert play.flow.state is FlowState.RUNNING
        workers = play.flow.workers
        assert {node: worker.incarnation for node, worker in workers.items()} == {
            "source": 0,
            "left": 2,
            "right": 0,
            "sink": 1,
        }
        assert [node for node, worker in workers.items() if worker.state is WorkerState.EXITED] == ["sink"]
        assert play.node("left", life.HasReattached(WorkerState.DRAINING)) == []
        assert play.flow.workers["left"].state is WorkerState.DRAINING

    @pytest.mark.parametrize("state", [state for state in FlowState if state is not FlowState.SUBMITTED])
    def test_only_one_that_nothing_is_known_of_can_be_resumed_or_remembered(self, play: Play, state: FlowState) -> None:
        play.flow.state = state
        for event in (core.Resumed({}, frozenset()), core.Remembered(FlowState.STOPPED)):
            with pytest.raises(IllegalEvent):
                play.do(event)


@pytest.mark.parametrize("state", FlowState)
def test_whatever_it_does_a_flow_that_collapses_without_workers_has_failed(play: Play, state: FlowState) -> None:
    play.flow.state = state
    handle(play.flow, core.Collapsed("lost", ()), core.ClockAndChance(0, 0.5))
    assert play.flow.state is FlowState.FAILED
    assert play.flow.failure == core.FlowFailure("internal", "", "", "lost")
