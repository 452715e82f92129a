"""Nodes that die and come back in the flow's machine: with a clock of the test's own, by hand and at random."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronetixd.core import flow_messages as core
from chronetixd.core import worker as life
from chronetixd.core.flow.state import FlowMachine
from chronetixd.core.flow.table import handle
from chronetixd.core.flow_messages import FlowState, Limits, StopMode, WorkerChanged
from chronetixd.core.machine import IllegalEvent
from chronetixd.core.reason import reason
from chronetixd.core.restart import Policy, Rule, Strategy
from chronetixd.core.worker import Exit, WorkerState
from tests.chronetixd.core.test_flow import goes_as_drawn

MS = 1_000_000
NODES = ("source", "map", "sink")
EDGES = (("source", "map"), ("map", "sink"))
KILLED = life.ProcessExited(Exit(signal="SIGKILL"))
CLEAN = life.ProcessExited(Exit(code=0))
NOW = core.ClockAndChance(0, 0.5)
COMING_UP = (
    life.ProcessSpawned(9),
    life.Greeted(),
    life.Offered(),
    life.LinkSent(),
    life.BecameReady(),
    life.Relinked(),
)


LEFT = (life.HasFinished({"seen": 7}), life.ProcessExited(Exit(code=0)))


def of(kind: type, instructions: list[Any]) -> list[Any]:
    return [each for each in instructions if isinstance(each, kind)]


class World:
    """A running flow, its clock, and the timers that it has armed."""

    def __init__(
        self,
        policy: Policy = Policy.TRANSIENT,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        nodes: tuple[str, ...] = NODES,
        edges: tuple[tuple[str, str], ...] = EDGES,
        **rule: int,
    ) -> None:
        self.now = 0
        self.timers: dict[str, int] = {}
        self.all: list[Any] = []
        made = Rule(policy, **rule)  # type: ignore[arg-type]
        self.flow = FlowMachine("f", nodes, edges, Limits(), dict.fromkeys(nodes, made), strategy)
        self.do(core.Validated())
        self.do(core.Launch())
        for event in COMING_UP[:-1]:
            for node in nodes:
                self.node(node, event)
        for wave in self.flow.waves:
            for node in wave:
                self.node(node, life.HasStarted())
        assert self.flow.state is FlowState.RUNNING
        self.all.clear()

    def do(self, event: core.FlowEvent) -> list[Any]:
        before = self.flow.state
        done = handle(self.flow, event, core.ClockAndChance(self.now, 0.5))
        goes_as_drawn(before, done)
        self.all += done
        for each in done:
            match each:
                case core.ArmNodeDeadline(node, after_ns):
                    self.timers[node] = self.now + after_ns
                case core.Restarted(node):
                    self.timers.pop(node, None)
        return done

    def node(self, node: str, event: life.WorkerEvent) -> list[Any]:
        return self.do(WorkerChanged(node, event))

    def pass_timer(self, node: str) -> list[Any]:
        """Let the clock come to where the node's timer is due."""
        self.now = max(self.now, self.timers.pop(node))
        return self.do(core.NodeDeadline(node))

    def back(self, *nodes: str) -> None:
        """Workers that were spawned come up and start."""
        for event in (*COMING_UP, life.HasStarted()):
            for node in nodes:
                self.node(node, event)

    def state(self, node: str) -> WorkerState:
        return self.flow.workers[node].state


def test_a_node_that_was_attached_waits_again_and_its_start_is_limited_from_the_attach_on() -> None:
    world = World()
    world.node("map", KILLED)
    assert world.node("map", life.AttachAwaited()) == [core.ArmNodeDeadline("map", Limits().attach_ns)]
    assert world.node("map", life.Attached(8)) == [core.ArmNodeDeadline("map", Limits().start_ns)]
    assert world.node("map", life.Greeted()) == [core.SendConfigure("map")]
    assert world.flow.workers["map"].pid == 8


def test_a_node_that_nothing_attaches_to_again_in_time_has_failed_once_more() -> None:
    world = World(max=2)
    world.node("map", KILLED)
    world.node("map", life.AttachAwaited())
    assert of(core.Signal, world.pass_timer("map")) == [core.Signal(("map",), kill=False)]
    (told,) = of(core.Restarting, world.node("map", life.ProcessNotSpawned("its start was cancelled")))
    assert told.reason == "failed in phase 'attach': waited for attach, and nothing attached within 600 s"


def test_a_node_that_waits_for_attach_keeps_a_drain_waiting_until_its_deadline() -> None:
    world = World()
    world.node("map", KILLED)
    world.node("map", life.AttachAwaited())
    world.do(core.StopRequested(StopMode.DRAIN))
    assert world.flow.state is FlowState.RUNNING
    assert core.Signal(("source", "map", "sink"), kill=False) in world.do(core.DeadlinePassed())


def test_a_node_that_dies_is_started_again_while_the_flow_runs_on() -> None:
    world = World()
    done = world.node("map", KILLED)
    assert done[0] == core.PrepareSuccessor("map")
    assert done[-1] == core.RequestSpawn(("map",))
    (told,) = of(core.Restarting, done)
    assert (told.node, told.attempt, told.reason, told.restart_group) == ("map", 1, "was killed by SIGKILL", ())
    assert not of(core.WakePeers, done)
    assert world.node("map", life.ProcessSpawned(8)) == []
    assert world.node("map", life.Greeted()) == [core.SendConfigure("map")]
    world.node("map", life.Offered())
    world.node("map", life.LinkSent())
    assert world.node("map", life.BecameReady()) == [core.LinkSuccessor("map")]
    assert of(core.SendStart, world.node("map", life.Relinked())) == [core.SendStart(("map",))]
    assert world.node("map", life.HasStarted()) == [core.Restarted("map")]
    assert world.flow.state is FlowState.RUNNING
    assert world.timers == {}


def test_a_fault_waits_for_the_exit_and_the_kill_if_none_comes() -> None:
    world = World()
    assert of(core.Signal, world.node("map", life.Faulted("frame", "ValueError: x"))) == []
    assert world.pass_timer("map") == [core.Signal(("map",), kill=True)]
    done = world.node("map", KILLED)
    assert of(core.Restarting, done)[0].reason == "failed in phase 'frame': ValueError: x"
    assert of(core.RequestSpawn, done) == [core.RequestSpawn(("map",))]


def test_the_second_death_in_a_window_is_answered_after_the_pause() -> None:
    world = World(backoff_ns=100 * MS, jitter_pct=0)
    world.node("map", KILLED)
    world.back("map")
    assert of(core.RequestSpawn, world.node("map", KILLED)) == []
    assert world.state("map") is WorkerState.RESTARTING
    assert world.timers == {"map": 100 * MS}
    assert of(core.RequestSpawn, world.pass_timer("map")) == [core.RequestSpawn(("map",))]


@pytest.mark.parametrize("limit", [1, 3])
def test_a_node_that_keeps_dying_fails_the_flow_with_its_story(limit: int) -> None:
    world = World(max=limit)
    for _ in range(limit):
        world.node("sink", KILLED)
        if world.state("sink") is WorkerState.RESTARTING:
            world.pass_timer("sink")
        world.back("sink")
    done = world.node("sink", life.ProcessExited(Exit(signal="SIGSEGV")))
    assert of(core.WakePeers, done) == [core.WakePeers("sink")]
    assert world.flow.state is FlowState.DRAINING
    assert world.flow.failure is not None
    told = reason(world.flow.failure, Exit(signal="SIGSEGV"), [])
    assert told.startswith("node 'sink' was restarted ")
    assert "failed again: was killed by SIGSEGV; before that it was killed by SIGKILL" in told


def test_deaths_far_apart_never_exhaust_it() -> None:
    world = World(max=1, window_ns=1000)
    for _ in range(20):
        world.node("map", KILLED)
        world.back("map")
        world.now += 1000
    assert world.flow.state is FlowState.RUNNING
    assert world.flow.workers["map"].incarnation == 20


@pytest.mark.parametrize("phase", range(len(COMING_UP) + 1))
def test_a_successor_may_die_at_every_step_of_coming_up(phase: int) -> None:
    world = World(max=2, backoff_ns=0)
    world.node("map", KILLED)
    for event in COMING_UP[:phase]:
        world.node("map", event)
    world.node("map", life.ProcessNotSpawned("no room") if phase == 0 else KILLED)
    assert world.flow.state is FlowState.RUNNING
    world.back("map")
    assert world.state("map") is WorkerState.STARTED


@pytest.mark.parametrize("phase", [1, 2, 4, 6])
def test_a_successor_that_is_late_is_killed_and_counts_as_dead(phase: int) -> None:
    world = World(max=2, backoff_ns=0)
    world.node("map", KILLED)
    for event in COMING_UP[:phase]:
        world.node("map", event)
    assert world.pass_timer("map") == [core.Signal(("map",), kill=True)]
    done = world.node("map", KILLED)
    assert "was not ready again within 30 s" in of(core.Restarting, done)[0].reason


@pytest.mark.parametrize("phase", [3, 5])
def test_a_successor_that_waits_for_its_peers_is_not_late(phase: int) -> None:
    world = World()
    world.node("map", KILLED)
    for event in COMING_UP[:phase]:
        world.node("map", event)
    assert world.pass_timer("map") == []
    for event in COMING_UP[phase:]:
        world.node("map", event)
    assert "map" in world.timers


def test_a_successor_whose_process_comes_too_late_is_killed_as_soon_as_it_does() -> None:
    world = World(max=2, backoff_ns=0)
    world.node("map", KILLED)
    assert world.pass_timer("map") == []
    assert world.node("map", life.ProcessSpawned(9)) == [core.Signal(("map",), kill=True)]
    assert of(core.RequestSpawn, world.node("map", KILLED)) == [core.RequestSpawn(("map",))]


# -- who is restarted when -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("connected", [True, False])
def test_an_end_in_good_order_is_undone_only_for_a_permanent_node_without_a_stream(
    policy: Policy, connected: bool
) -> None:
    world = World(policy, nodes=(*NODES, "timer"))
    node = "source" if connected else "timer"
    world.node(node, life.HasFinished())
    done = world.node(node, CLEAN)
    again = policy is Policy.PERMANENT and not connected
    assert of(core.RequestSpawn, done) == ([core.RequestSpawn((node,))] if again else [])
    assert of(core.WakePeers, done) == ([] if again else [core.WakePeers(node)])
    assert world.flow.state is FlowState.RUNNING


@pytest.mark.parametrize("event", [KILLED, life.ProcessExited(Exit(code=0)), life.ProcessExited(Exit(code=3))])
def test_a_temporary_node_that_fails_ends_the_flow(event: life.WorkerEvent) -> None:
    world = World(Policy.TEMPORARY)
    world.node("map", event)
    assert world.flow.state is FlowState.DRAINING
    assert world.flow.failure is not None
    assert world.flow.failure.kind == "exit"


def test_a_death_before_the_flow_ran_fails_it_at_once() -> None:
    flow = FlowMachine("f", NODES, EDGES, Limits(), dict.fromkeys(NODES, Rule(Policy.PERMANENT)))
    for event in (core.Validated(), core.Launch(), WorkerChanged("map", life.ProcessNotSpawned("no"))):
        handle(flow, event, core.ClockAndChance(0, 0.5))
    assert flow.state is FlowState.DRAINING


def starting(policy: Policy = Policy.TRANSIENT) -> FlowMachine:
    """All but the source have started, and it is about to."""
    flow = FlowMachine("f", NODES, EDGES, Limits(), dict.fromkeys(NODES, Rule(policy)))
    handle(flow, core.Validated(), NOW)
    handle(flow, core.Launch(), NOW)
    for event in COMING_UP[:-1]:
        for node in NODES:
            handle(flow, WorkerChanged(node, event), NOW)
    for node in ("sink", "map"):
        handle(flow, WorkerChanged(node, life.HasStarted()), NOW)
    assert flow.workers["source"].state is WorkerState.STARTING
    return flow


@pytest.mark.parametrize("faulted", [True, False])
def test_a_node_that_dies_of_its_first_frames_is_restarted_as_soon_as_the_flow_runs(faulted: bool) -> None:
    flow = starting()
    if faulted:
        assert handle(flow, WorkerChanged("map", life.Faulted("frame", "x")), NOW) == [
            core.ArmNodeDeadline("map", Limits().last_ns)
        ]
        assert handle(flow, core.NodeDeadline("map"), NOW) == [core.Signal(("map",), kill=True)]
    assert handle(flow, WorkerChanged("map", KILLED), NOW) == []
    assert flow.state is FlowState.STARTING
    done = handle(flow, WorkerChanged("source", life.HasStarted()), NOW)
    assert flow.state is FlowState.RUNNING
    assert of(core.RequestSpawn, done) == [core.RequestSpawn(("map",))]


def test_a_temporary_node_that_dies_of_its_first_frames_fails_the_flow() -> None:
    flow = starting(Policy.TEMPORARY)
    handle(flow, WorkerChanged("map", KILLED), NOW)
    assert flow.state is FlowState.DRAINING


def test_when_the_start_fails_who_died_early_is_given_up() -> None:
    flow = starting()
    handle(flow, WorkerChanged("map", KILLED), NOW)
    done = handle(flow, WorkerChanged("source", life.Faulted("start", "x")), NOW)
    assert flow.state is FlowState.DRAINING
    assert core.WakePeers("map") in done


def test_a_drain_that_was_asked_for_while_starting_waits_for_who_died_early() -> None:
    flow = starting()
    handle(flow, WorkerChanged("map", KILLED), NOW)
    handle(flow, core.StopRequested(), NOW)
    done = handle(flow, WorkerChanged("source", life.HasStarted()), NOW)
    assert of(core.RequestSpawn, done) == [core.RequestSpawn(("map",))]
    assert flow.state is FlowState.RUNNING
    for event in (*COMING_UP, life.HasStarted()):
        done = handle(flow, WorkerChanged("map", event), NOW)
    assert of(core.SendDrain, done) == [core.SendDrain(("source",))]


RAISED = life.Faulted("frame", "ValueError")


@pytest.mark.parametrize("policy", [Policy.TRANSIENT, Policy.PERMANENT])
def test_a_node_that_is_killed_when_it_had_finished_is_no_failure_where_failures_are_restarted(policy: Policy) -> None:
    world = World(policy)
    for node in NODES:
        world.node(node, life.HasFinished())
        done = world.node(node, KILLED)
        assert core.WakePeers(node) in done
        assert of(core.RequestSpawn, done) == []
    assert world.flow.state is FlowState.STOPPED


def test_one_without_a_stream_is_started_again_only_if_its_rule_says_so_of_ends_in_good_order() -> None:
    for policy, again in ((Policy.TRANSIENT, False), (Policy.PERMANENT, True)):
        world = World(policy, nodes=("timer", "other"), edges=())
        world.node("timer", life.HasFinished())
        assert bool(of(core.RequestSpawn, world.node("timer", KILLED))) == again
        assert world.flow.state is FlowState.RUNNING


def test_a_temporary_node_that_is_killed_when_it_had_finished_fails_the_flow() -> None:
    world = World(Policy.TEMPORARY)
    world.node("source", life.HasFinished())
    world.node("source", KILLED)
    assert world.flow.failure is not None
    assert world.flow.failure.message == "was killed by SIGKILL"


def test_producers_that_are_killed_when_all_that_they_send_to_have_ended_are_no_failure() -> None:
    world = World()
    for event in LEFT:
        world.node("sink", event)
    for node in ("map", "source"):
        assert core.WakePeers(node) in world.node(node, KILLED)
    assert world.flow.state is FlowState.STOPPED


def test_one_that_still_sends_to_somebody_is_started_again() -> None:
    world = World(edges=(("source", "map"), ("source", "sink")))
    for event in LEFT:
        world.node("sink", event)
    assert of(core.RequestSpawn, world.node("source", KILLED)) == [core.RequestSpawn(("source",))]


@pytest.mark.parametrize("end", [(RAISED, KILLED), (RAISED, CLEAN), (life.ProcessExited(Exit(code=3)),)])
def test_one_that_fails_by_itself_fails_the_flow_also_when_nothing_is_left_to_do(end: tuple[Any, ...]) -> None:
    world = World()
    for event in LEFT:
        world.node("sink", event)
    for event in end:
        world.node("map", event)
    assert world.flow.failure is not None
    assert world.flow.failure.message.endswith("it cannot be restarted: every node that it sends to has ended")


# -- strategies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "node", "others"),
    [
        (Strategy.REST_FOR_ONE, "map", ("sink",)),
        (Strategy.REST_FOR_ONE, "source", ("map", "sink")),
        (Strategy.ONE_FOR_ALL, "sink", ("map", "source")),
    ],
)
def test_kin_are_ended_and_come_back_together(strategy: Strategy, node: str, others: tuple[str, ...]) -> None:
    world = World(strategy=strategy)
    done = world.node(node, KILLED)
    (signal,) = of(core.Signal, done)
    assert (sorted(signal.nodes), signal.kill) == (sorted(others), False)
    assert of(core.Restarting, done)[0].restart_group == others
    for other in others:
        assert of(core.RequestSpawn, world.all) == []
        world.node(other, life.ProcessExited(Exit(signal="SIGTERM")))
    (spawn,) = of(core.RequestSpawn, world.all)
    assert set(spawn.nodes) == {node, *others}
    assert {each.node for each in of(core.PrepareSuccessor, world.all)} == {node, *others}
    world.back(node, *others)
    assert all(world.state(each) is WorkerState.STARTED for each in NODES)


def test_kin_that_does_not_end_is_killed() -> None:
    world = World(strategy=Strategy.ONE_FOR_ALL)
    world.node("map", KILLED)
    assert world.pass_timer("sink") == [core.Signal(("sink",), kill=True)]


def test_the_pause_begins_when_the_last_of_the_kin_is_gone() -> None:
    world = World(strategy=Strategy.REST_FOR_ONE, backoff_ns=100 * MS, jitter_pct=0)
    world.node("map", KILLED)
    world.node("sink", KILLED)
    world.back("map", "sink")
    world.node("map", KILLED)
    world.now = 7 * MS
    world.pass_timer("sink")
    world.node("sink", KILLED)
    assert world.timers["map"] == world.now + 100 * MS
    assert of(core.RequestSpawn, world.pass_timer("map")) == [core.RequestSpawn(("map", "sink"))]


def test_groups_that_overlap_become_one() -> None:
    world = World(strategy=Strategy.REST_FOR_ONE)
    world.node("map", KILLED)
    world.node("source", KILLED)
    assert of(core.RequestSpawn, world.all) == []
    world.node("sink", KILLED)
    assert of(core.RequestSpawn, world.all) == [core.RequestSpawn(("source", "map", "sink"))]


def test_a_temporary_node_among_the_kin_fails_the_flow() -> None:
    rules = {"map": Rule(Policy.TRANSIENT)}
    world = World()
    world.flow.restart_state.rules = rules
    world.flow.restart_state.strategy = Strategy.REST_FOR_ONE
    world.node("map", KILLED)
    assert world.flow.failure is not None
    assert "restarts node 'sink' with it, which is temporary" in world.flow.failure.message


# -- stops while nodes come back -----------------------------------------------------------------------------


def test_a_drain_hurries_the_restart_and_waits_for_it() -> None:
    world = World(backoff_ns=100 * MS)
    world.node("map", KILLED)
    world.back("map")
    world.node("map", KILLED)
    done = world.do(core.StopRequested())
    assert of(core.RequestSpawn, done) == [core.RequestSpawn(("map",))]
    assert of(core.SendDrain, done) == []
    assert world.flow.state is FlowState.RUNNING
    world.back("map")
    assert world.flow.state is FlowState.DRAINING
    assert of(core.SendDrain, world.all) == [core.SendDrain(("source",))]


def test_a_drain_that_waits_too_long_ends_everyone() -> None:
    world = World()
    world.node("map", KILLED)
    world.do(core.StopRequested())
    world.node("map", life.ProcessSpawned(9))
    done = world.do(core.DeadlinePassed())
    assert of(core.Signal, done) == [core.Signal(NODES, kill=False)]
    assert world.flow.failure is not None
    assert world.flow.failure.kind == "drain-timeout"


@pytest.mark.parametrize("mode", [StopMode.NOW, StopMode.KILL])
def test_a_harder_stop_gives_restarts_up(mode: StopMode) -> None:
    world = World(backoff_ns=100 * MS)
    world.node("map", KILLED)
    world.back("map")
    world.node("map", KILLED)
    done = world.do(core.StopRequested(mode))
    assert of(core.WakePeers, done) == [core.WakePeers("map")]
    for node in ("source", "sink"):
        world.node(node, KILLED)
    assert world.flow.state is FlowState.STOPPED


def draining(policy: Policy = Policy.TRANSIENT, **more: Any) -> World:
    world = World(policy, **more)
    world.do(core.StopRequested())
    assert world.flow.drains_in_order
    world.all.clear()
    return world


def ends_well(world: World, *nodes: str) -> None:
    for node in nodes:
        world.node(node, life.HasFinished())
        world.node(node, CLEAN)
    assert world.flow.state is FlowState.STOPPED
    assert world.flow.failure is None


def test_a_node_that_dies_while_the_flow_drains_is_restarted_at_once_and_the_drain_goes_on() -> None:
    world = draining(backoff_ns=100 * MS)
    for node in ("map", "map", "sink"):
        assert core.RequestSpawn((node,)) in world.node(node, KILLED)
        assert world.flow.state is FlowState.DRAINING
        world.back(node)
    assert of(core.SendDrain, world.all) == [], "who has inputs ends with them"
    ends_well(world, "source", "map", "sink")


def test_a_source_that_dies_while_it_drains_is_restarted_and_told_to_drain() -> None:
    world = draining()
    assert core.RequestSpawn(("source",)) in world.node("source", KILLED)
    world.back("source")
    assert of(core.SendDrain, world.all) == [core.SendDrain(("source",))]
    assert world.state("source") is WorkerState.DRAINING
    ends_well(world, "source", "map", "sink")


@pytest.mark.parametrize("strategy", [Strategy.REST_FOR_ONE, Strategy.ONE_FOR_ALL])
def test_kin_comes_back_in_a_drain_but_for_who_has_ended(strategy: Strategy) -> None:
    world = draining(strategy=strategy)
    world.node("source", life.HasFinished())
    world.node("source", CLEAN)
    assert of(core.Signal, world.node("map", KILLED)) == [core.Signal(("sink",), kill=False)]
    assert core.RequestSpawn(("map", "sink")) in world.node("sink", KILLED)
    world.back("map", "sink")
    ends_well(world, "map", "sink")


def test_what_its_rule_does_not_restart_fails_the_drain_with_its_reason() -> None:
    world = draining(Policy.TEMPORARY)
    world.node("map", KILLED)
    assert world.flow.failure is not None
    assert reason(world.flow.failure, Exit(signal="SIGKILL"), []) == "node 'map' was killed by SIGKILL"


def test_an_end_in_good_order_is_an_end_while_the_flow_drains() -> None:
    world = draining(Policy.PERMANENT, nodes=("alone", "beside"), edges=())
    world.node("alone", life.HasFinished())
    assert of(core.RequestSpawn, world.node("alone", CLEAN)) == []
    ends_well(world, "beside")


@pytest.mark.parametrize("event", [core.DeadlinePassed(), core.StopRequested(StopMode.NOW)])
@pytest.mark.parametrize("steps", range(len(COMING_UP) + 1))
def test_a_drain_that_is_cut_short_waits_for_no_restart(event: core.FlowEvent, steps: int) -> None:
    world = draining(strategy=Strategy.REST_FOR_ONE)
    world.node("map", KILLED)
    if steps:
        world.node("sink", KILLED)
    for each in COMING_UP[: steps - 1 if steps else 0]:
        world.node("map", each)
    world.do(event)
    assert not world.flow.restarts
    for _ in range(2):
        for node in NODES:
            if world.state(node) not in life.GONE:
                world.node(node, life.ProcessSpawned(9) if world.flow.workers[node].pid == 0 else KILLED)
    for node in NODES:
        if world.state(node) not in life.GONE:
            world.node(node, KILLED)
    assert world.flow.ended
    failed = isinstance(event, core.DeadlinePassed)
    assert (world.flow.failure is not None) is failed


def test_a_failure_for_good_ends_a_drain_and_the_restarts_in_it() -> None:
    world = draining(strategy=Strategy.REST_FOR_ONE)
    world.node("map", KILLED)
    world.do(core.SuccessionFailed("map", "left a ring that makes no sense"))
    assert world.flow.failure is not None
    assert world.state("map") is WorkerState.FAILED
    assert of(core.RequestSpawn, world.node("sink", KILLED)) == []


def test_what_no_successor_can_go_on_from_fails_the_flow() -> None:
    world = World()
    world.node("map", KILLED)
    world.do(core.SuccessionFailed("map", "left a ring that makes no sense"))
    assert world.flow.failure is not None
    assert reason(world.flow.failure, None, []) == "node 'map' left a ring that makes no sense"


# -- at random -----------------------------------------------------------------------------------------------

FOLLOWS: dict[WorkerState, life.WorkerEvent] = {
    WorkerState.SPAWNING: life.ProcessSpawned(9),
    WorkerState.WAITING: life.Attached(9),
    WorkerState.GREETING: life.Greeted(),
    WorkerState.OFFERING: life.Offered(),
    WorkerState.OFFERED: life.LinkSent(),
    WorkerState.LINKED: life.BecameReady(),
    WorkerState.READY: life.Relinked(),
    WorkerState.STARTING: life.HasStarted(),
    WorkerState.DRAINING: life.HasFinished(),
    WorkerState.FINISHED: CLEAN,
    WorkerState.FAULTED: life.ProcessExited(Exit(code=1)),
    WorkerState.TERMINATING: KILLED,
}


@settings(max_examples=300)
@given(st.data())
def test_whatever_dies_everyone_is_back_or_the_flow_ends(data: st.DataObject) -> None:
    world = World(
        data.draw(st.sampled_from([Policy.PERMANENT, Policy.TRANSIENT])),
        data.draw(st.sampled_from(Strategy)),
        nodes=(*NODES, "timer"),
        max=data.draw(st.integers(1, 4)),
    )
    for _ in range(data.draw(st.integers(0, 60))):
        step(world, data)
        check(world)
    settle(world)
    states = {world.state(node) for node in world.flow.peers}
    if world.flow.ended:
        assert states <= life.GONE
    else:
        assert world.flow.state is FlowState.RUNNING
        assert states <= {WorkerState.STARTED, WorkerState.EXITED, WorkerState.FAILED}
        for node in (each for each in world.flow.peers if world.state(each) is WorkerState.FAILED):
            later = world.flow.consumers.get(node, ())
            nothing_left = bool(later) and all(world.state(each) in life.GONE for each in later)
            assert world.flow.workers[node].finished or nothing_left
        assert world.flow.restart_state.groups == []


def step(world: World, data: st.DataObject) -> None:
    node = data.draw(st.sampled_from(sorted(world.flow.peers)))
    which = data.draw(st.sampled_from(["on", "on", "on", "await", "die", "fault", "finish", "timer", "stop"]))
    state = world.state(node)
    try:
        if which == "on" and state in FOLLOWS:
            world.node(node, FOLLOWS[state])
        elif which == "await" and state is WorkerState.SPAWNING:
            world.node(node, life.AttachAwaited())
        elif which == "die" and state not in life.GONE | {WorkerState.SPAWNING, WorkerState.RESTARTING}:
            world.node(node, KILLED)
        elif which == "fault":
            world.node(node, life.Faulted("frame", "x"))
        elif which == "finish" and state is WorkerState.STARTED:
            world.node(node, life.HasFinished())
        elif which == "timer" and node in world.timers:
            world.pass_timer(node)
        elif which == "stop" and data.draw(st.integers(0, 9)) == 0:
            world.do(core.StopRequested(data.draw(st.sampled_from(StopMode))))
    except IllegalEvent:
        pass


def check(world: World) -> None:
    """What holds after every event."""
    flow = world.flow
    grouped = [node for group in flow.restart_state.groups for node in group.nodes]
    assert len(grouped) == len(set(grouped))
    waiting = {node for node in flow.peers if world.state(node) is WorkerState.RESTARTING}
    assert waiting <= set(grouped)
    if not flow.restarts:
        assert not grouped
    for group in flow.restart_state.groups:
        if set(group.nodes) <= waiting:
            assert group.nodes[0] in world.timers
    spawned: dict[str, int] = {}
    succeeded: dict[str, int] = {}
    for each in world.all:
        if isinstance(each, core.PrepareSuccessor):
            succeeded[each.node] = succeeded.get(each.node, 0) + 1
        for node in each.nodes if isinstance(each, core.RequestSpawn) else ():
            spawned[node] = spawned.get(node, 0) + 1
            assert spawned[node] == succeeded[node], "spawned again without its routes knowing"


def settle(world: World) -> None:
    """Nothing bad happens any more: let everyone come to rest."""
    for _ in range(200):
        moved = False
        for node in sorted(world.flow.peers):
            event = FOLLOWS.get(world.state(node))
            if event is not None and not world.flow.ended:
                world.node(node, event)
                moved = True
        for node in sorted(world.timers):
            if world.flow.restarts and world.state(node) is WorkerState.RESTARTING:
                world.pass_timer(node)
                moved = True
        if world.flow.drains_in_order and not moved:  # what the sources have left is worked on
            started = [node for node in sorted(world.flow.peers) if world.state(node) is WorkerState.STARTED]
            moved = [world.node(node, life.HasFinished()) for node in started] != []
        if world.flow.state is FlowState.DRAINING and not moved:
            world.do(core.StopRequested(StopMode.KILL))
            moved = True
        check(world)
        if not moved:
            return
    raise AssertionError("it never comes to rest")


@pytest.mark.parametrize("finishes", [True, False])
def test_of_deaths_only_those_within_the_window_are_remembered(finishes: bool) -> None:
    world = World(Policy.PERMANENT, nodes=("alone",), edges=(), max=3, window_ns=100 * MS)
    for _ in range(50):
        world.now += 60 * MS
        if finishes:
            world.node("alone", life.HasFinished())
        world.node("alone", CLEAN if finishes else KILLED)
        if world.state("alone") is WorkerState.RESTARTING:
            world.pass_timer("alone")
        world.back("alone")
    assert world.flow.state is FlowState.RUNNING
    assert len(world.flow.restart_state.counted_exits["alone"]) <= 2


class TestLeaving:
    """A worker that leaves its place to another one, in a flow whose nodes are never restarted."""

    @pytest.fixture
    def world(self) -> World:
        return World(Policy.TEMPORARY)

    def test_it_is_told_and_has_as_long_as_a_drain(self, world: World) -> None:
        assert world.do(core.LeaveRequested("map")) == [
            core.SendLeave("map"),
            core.ArmNodeDeadline("map", Limits().drain_ns),
        ]
        assert world.flow.workers["map"].state is WorkerState.DRAINING

    def test_when_it_has_left_its_routes_wait_and_one_that_stands_by_takes_over(self, world: World) -> None:
        world.do(core.LeaveRequested("map"))
        assert world.node("map", LEFT[0]) == []
        assert world.node("map", LEFT[1]) == [core.PrepareSuccessor("map"), core.WorkerLeft("map")]
        assert world.flow.workers["map"].result == {"seen": 7}
        done = world.do(core.SuccessorGiven("map", 9))
        assert done == [core.ArmNodeDeadline("map", Limits().start_ns), core.SendConfigure("map")]
        assert world.flow.workers["map"].incarnation == 1
        for event in COMING_UP[2:]:
            world.node("map", event)
        assert world.node("map", life.HasStarted()) == [core.Restarted("map")]
        assert world.flow.state is FlowState.RUNNING

    def test_or_one_is_made(self, world: World) -> None:
        world.do(core.LeaveRequested("map"))
        for event in LEFT:
            world.node("map", event)
        assert core.RequestSpawn(("map",)) in world.do(core.SuccessorGiven("map"))

    @pytest.mark.parametrize("end", [KILLED, life.ProcessExited(Exit(code=1))])
    def test_however_it_ends_it_is_succeeded(self, end: life.ProcessExited, world: World) -> None:
        world.do(core.LeaveRequested("map"))
        world.node("map", life.Faulted("stop", "ValueError: no"))
        assert world.node("map", end) == [core.PrepareSuccessor("map"), core.WorkerLeft("map")]
        assert world.flow.failure is None

    def test_one_that_does_not_leave_in_time_is_ended_by_force_at_last(self, world: World) -> None:
        world.do(core.LeaveRequested("map"))
        assert world.pass_timer("map")[0] == core.Signal(("map",), kill=False)
        assert world.pass_timer("map") == [core.Signal(("map",), kill=True)]
        assert world.node("map", KILLED) == [core.PrepareSuccessor("map"), core.WorkerLeft("map")]

    def test_a_drain_waits_until_its_successor_is_at_work(self, world: World) -> None:
        world.do(core.LeaveRequested("map"))
        world.do(core.StopRequested())
        assert world.flow.state is FlowState.RUNNING
        for event in LEFT:
            world.node("map", event)
        world.do(core.SuccessorGiven("map", 9))
        for event in COMING_UP[2:]:
            world.node("map", event)
        done = world.node("map", life.HasStarted())
        assert core.SendDrain(("source",)) in done
        assert world.flow.state is FlowState.DRAINING

    def test_nobody_leaves_any_more_where_everybody_is_killed(self, world: World) -> None:
        world.do(core.LeaveRequested("map"))
        world.do(core.Collapsed("lost", tuple(world.flow.workers)))
        assert (world.flow.leaving, world.flow.state) == (set(), FlowState.DRAINING)

    def test_a_stop_at_once_does_not_wait(self, world: World) -> None:
        world.do(core.LeaveRequested("map"))
        for event in LEFT:
            world.node("map", event)
        world.do(core.StopRequested(StopMode.NOW))
        with pytest.raises(IllegalEvent):
            world.do(core.SuccessorGiven("map", 9))
        for node in ("source", "sink"):
            world.node(node, CLEAN)
        assert world.flow.ended

    @pytest.mark.parametrize(
        "event", [core.SuccessorGiven("map", 9), core.SuccessorGiven("nobody", 9), core.LeaveRequested("nobody")]
    )
    def test_nobody_takes_over_from_one_that_works_and_nobody_unknown_leaves(
        self, event: core.FlowEvent, world: World
    ) -> None:
        with pytest.raises(IllegalEvent):
            world.do(event)
        assert world.flow.workers["map"].state is WorkerState.STARTED

    def test_kin_that_leaves_is_restarted_with_the_others(self) -> None:
        world = World(Policy.TRANSIENT, Strategy.ONE_FOR_ALL)
        world.do(core.LeaveRequested("map"))
        world.node("source", KILLED)
        for node in ("map", "sink"):
            done = world.node(node, CLEAN)
        assert [each for each in done if isinstance(each, core.RequestSpawn)]
        assert world.flow.leaving == set()
        with pytest.raises(IllegalEvent):
            world.do(core.SuccessorGiven("map", 9))


class TestOtherNodes:
    """A flow that runs gets and loses nodes."""

    @pytest.fixture
    def world(self) -> World:
        return World(Policy.PERMANENT)

    def test_one_that_is_added_waits_for_its_worker_and_then_is_like_any_other(self, world: World) -> None:
        nodes = (*NODES, "extra")
        world.flow.revise(nodes, (*EDGES, ("map", "extra")), {}, Strategy.ONE_FOR_ONE)
        world.do(core.StopRequested())
        assert world.flow.state is FlowState.RUNNING, "a drain waits for it"
        assert core.SendConfigure("extra") in world.do(core.SuccessorGiven("extra", 9))
        assert world.flow.workers["extra"].incarnation == 0
        for event in COMING_UP[2:]:
            world.node("extra", event)
        assert core.SendDrain(("source",)) in world.node("extra", life.HasStarted())

    FORGOTTEN = [core.WakePeers("map"), core.NodeRemoved("map")]

    def test_one_that_is_removed_ends_and_is_forgotten_whatever_its_rule_says(self, world: World) -> None:
        world.flow.revise(("source", "sink"), (("source", "sink"),), {}, Strategy.ONE_FOR_ONE)
        assert world.do(core.RetireRequested("map")) == [
            core.SendDrain(("map",)),
            core.ArmNodeDeadline("map", Limits().drain_ns),
        ]
        world.node("map", life.HasFinished())
        assert world.node("map", CLEAN) == self.FORGOTTEN
        assert set(world.flow.workers) == set(world.flow.peers) == {"source", "sink"}
        assert world.flow.state is FlowState.RUNNING

    @pytest.mark.parametrize("told", [True, False])
    @pytest.mark.parametrize("end", [KILLED, life.ProcessExited(Exit(code=1))])
    def test_one_that_dies_is_restarted_to_work_on_what_was_sent_to_it_and_is_told_to_end_again(
        self, end: life.ProcessExited, told: bool, world: World
    ) -> None:
        world.flow.revise(("source", "sink"), (("source", "sink"),), {}, Strategy.ONE_FOR_ALL)
        for _ in range(3):
            if told:
                world.all.clear()
                assert told is (core.SendDrain(("map",)) in (world.do(core.RetireRequested("map"))))
                told = False
            assert core.RequestSpawn(("map",)) in self.dies(world, end)
            world.all.clear()
            world.back("map")
            assert (core.SendDrain(("map",)) in world.all) is ("map" in world.flow.retired)
        if "map" not in world.flow.retired:
            world.do(core.RetireRequested("map"))
        world.node("map", life.HasFinished())
        assert world.node("map", CLEAN) == self.FORGOTTEN

    @staticmethod
    def dies(world: World, end: life.ProcessExited) -> list[Any]:
        done = world.node("map", end)
        return done if of(core.RequestSpawn, done) else world.pass_timer("map")

    def test_one_whose_rule_does_not_restart_it_is_forgotten_and_the_flow_runs_on(self) -> None:
        for world in (World(Policy.TEMPORARY), World(max=0)):
            world.flow.revise(("source", "sink"), (("source", "sink"),), {}, Strategy.ONE_FOR_ONE)
            assert world.node("map", KILLED) == self.FORGOTTEN
            assert world.flow.state is FlowState.RUNNING
            with pytest.raises(IllegalEvent):
                world.do(core.RetireRequested("map"))

    def test_a_source_that_is_removed_and_dies_is_forgotten_for_nobody_has_sent_anything_to_it(
        self, world: World
    ) -> None:
        world.flow.revise(("map", "sink"), (("map", "sink"),), {}, Strategy.ONE_FOR_ONE)
        assert world.node("source", KILLED) == [core.WakePeers("source"), core.NodeRemoved("source")]

    def test_one_that_does_not_end_in_time_is_ended(self, world: World) -> None:
        world.flow.revise(("source", "sink"), (("source", "sink"),), {}, Strategy.ONE_FOR_ONE)
        world.do(core.RetireRequested("map"))
        assert world.pass_timer("map")[0] == core.Signal(("map",), kill=False)
        assert world.pass_timer("map") == [core.Signal(("map",), kill=True)]
        assert world.node("map", KILLED) == self.FORGOTTEN, "it has had its time"

    def test_one_that_had_ended_already_is_gone_at_once(self) -> None:
        world = World(Policy.TRANSIENT)
        world.node("map", life.HasFinished())
        world.node("map", CLEAN)
        world.flow.revise(("source", "sink"), (("source", "sink"),), {}, Strategy.ONE_FOR_ONE)
        assert set(world.flow.workers) == {"source", "sink"}

    def test_it_is_no_kin_of_those_that_stay(self, world: World) -> None:
        rules = dict.fromkeys(("source", "sink"), Rule(Policy.TRANSIENT))
        world.flow.revise(("source", "sink"), (("source", "sink"),), rules, Strategy.ONE_FOR_ALL)
        done = world.node("source", KILLED)
        assert [each.nodes for each in done if isinstance(each, core.Signal)] == [("sink",)]
