"""The steps of a roll-out: its whole table, by hand, and at random against a flow that does what it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronetixd.core.machine import IllegalEvent
from chronetixd.core.rollout import OVER, TABLE, RolloutMachine, RolloutStep
from chronetixd.core.rollout_messages import (
    EVENTS,
    ArmReadyDeadline,
    BeginRequested,
    CommitWritten,
    DisarmReadyDeadline,
    DismissSuccessor,
    FinishRollout,
    FlowObserved,
    FlowView,
    NodeView,
    ReadyDeadlinePassed,
    ReplaceWorker,
    RetireNode,
    ReviseFlow,
    RevokeCommit,
    RollbackRequested,
    RolloutEvent,
    StandBy,
    StartSuccessor,
    SuccessorLost,
    SuccessorReady,
    WriteCommit,
)
from chronetixd.core.worker import WorkerState

S = WorkerState
NODES = ("source", "map", "sink")
SENDERS = {"source": set[str](), "map": {"source"}, "sink": {"map"}}


class Play:
    """A roll-out of ``nodes``, and the flow that it sees."""

    def __init__(self, *nodes: str, added: tuple[str, ...] = (), removed: frozenset[str] = frozenset()) -> None:
        self.rollout = RolloutMachine(nodes, 5_000_000_000, SENDERS, added, removed)
        self.nodes = {node: NodeView(S.STARTED, 0) for node in NODES}
        self.runs = True
        self.obstacle = ""
        self.rerouting: tuple[str, ...] = ()
        self.clean = True
        self.all: list[Any] = []

    def do(self, event: RolloutEvent) -> list[Any]:
        done = self.rollout.handle(event)
        self.all += done
        return done

    def look(self, **changes: NodeView) -> list[Any]:
        self.nodes |= changes
        return self.do(FlowObserved(FlowView(dict(self.nodes), self.runs, self.obstacle, self.rerouting, self.clean)))

    def committed(self) -> list[Any]:
        """It settles and is written down; what is said then."""
        assert self.look() == [WriteCommit()]
        assert self.do(CommitWritten()) == []
        return self.look()

    def leaving(self) -> Play:
        """All stand by, and it was committed."""
        self.do(BeginRequested())
        for node in (*self.rollout.nodes, *self.rollout.added):
            if node not in self.rollout.removed:
                self.do(SuccessorReady(node))
        assert self.committed()[:2] == [DisarmReadyDeadline(), ReviseFlow()]
        self.nodes |= {node: NodeView(S.OFFERING, 0) for node in self.rollout.added}
        self.look()
        return self

    def all_left(self) -> list[Any]:
        """They leave one after the other; what is said when the last has."""
        said: list[Any] = []
        for node in self.rollout.nodes:
            self.look(**{node: NodeView(S.DRAINING, 0)})
            assert self.look(**{node: NodeView(S.FINISHED, 0)}) == []
            said = self.look(**{node: NodeView(S.RESTARTING, 0)})
        return said


def test_the_table_has_a_cell_for_every_step_and_event() -> None:
    assert set(TABLE) == set(RolloutStep)
    assert {len(row) for row in TABLE.values()} == {len(EVENTS)}


EXAMPLES: dict[type, RolloutEvent] = {
    BeginRequested: BeginRequested(),
    SuccessorReady: SuccessorReady("map"),
    SuccessorLost: SuccessorLost("map", "is gone"),
    FlowObserved: FlowObserved(FlowView({node: NodeView(S.STARTED, 0) for node in NODES})),
    ReadyDeadlinePassed: ReadyDeadlinePassed(),
    RollbackRequested: RollbackRequested("somebody did"),
    CommitWritten: CommitWritten(),
}


def at(step: RolloutStep) -> Play:
    """A roll-out of the map that is at this step."""
    play = Play("map")
    ways: dict[RolloutStep, Callable[[], Any]] = {
        RolloutStep.PLANNED: lambda: None,
        RolloutStep.PREPARING: lambda: play.do(BeginRequested()),
        RolloutStep.SETTLING: lambda: (play.do(BeginRequested()), play.do(SuccessorReady("map"))),
        RolloutStep.COMMITTING: lambda: (play.do(BeginRequested()), play.do(SuccessorReady("map")), play.look()),
        RolloutStep.SWITCHING: lambda: (play.do(BeginRequested()), play.do(SuccessorReady("map")), play.committed()),
        RolloutStep.LEAVING: lambda: play.leaving(),
        RolloutStep.TAKING_OVER: lambda: (play.leaving(), play.all_left()),
        RolloutStep.DONE: lambda: (play.leaving(), play.all_left(), play.look(map=NodeView(S.STARTED, 1))),
        RolloutStep.ROLLED_BACK: lambda: (play.do(BeginRequested()), play.do(ReadyDeadlinePassed())),
        RolloutStep.ENDED: lambda: (play.do(BeginRequested()), setattr(play, "runs", False), play.look()),
    }
    ways[step]()
    assert play.rollout.step is step
    return play


@pytest.mark.parametrize("step", RolloutStep)
@pytest.mark.parametrize("kind", EVENTS)
def test_every_cell_is_taken_or_refused_and_a_refusal_changes_nothing(step: RolloutStep, kind: type) -> None:
    play = at(step)
    if TABLE[step][EVENTS.index(kind)] is None:
        before = (play.rollout.step, set(play.rollout.waiting), set(play.rollout.standing_by), list(play.rollout.asked))
        with pytest.raises(IllegalEvent):
            play.do(EXAMPLES[kind])
        rollout = play.rollout
        assert (rollout.step, rollout.waiting, rollout.standing_by, rollout.asked) == before
    else:
        play.do(EXAMPLES[kind])


class TestBeforeAnythingIsTouched:
    def test_all_new_workers_are_asked_for_at_once_and_have_so_long(self) -> None:
        play = Play("source", "sink")
        assert play.do(BeginRequested()) == [StandBy(("source", "sink")), ArmReadyDeadline(5_000_000_000)]
        assert play.rollout.waits_for == ["source", "sink"]

    def test_one_that_is_late_is_named_and_all_are_dismissed(self) -> None:
        play = Play("source", "sink")
        play.do(BeginRequested())
        play.do(SuccessorReady("source"))
        why = "the new worker of node 'sink' was not ready within 5 s"
        assert play.do(ReadyDeadlinePassed()) == [
            DisarmReadyDeadline(),
            DismissSuccessor("source"),
            DismissSuccessor("sink"),
            FinishRollout(why),
        ]
        assert play.rollout.step is RolloutStep.ROLLED_BACK

    def test_one_that_fails_rolls_it_back_also_while_it_settles(self) -> None:
        play = Play("source", "sink")
        play.do(BeginRequested())
        play.do(SuccessorReady("source"))
        play.do(SuccessorReady("sink"))
        why = "the new worker of node 'sink' was killed by SIGKILL"
        assert play.do(SuccessorLost("sink", "was killed by SIGKILL")) == [
            DisarmReadyDeadline(),
            DismissSuccessor("source"),
            FinishRollout(why),
        ]

    def test_it_waits_until_nobody_is_being_restarted(self) -> None:
        play = at(RolloutStep.SETTLING)
        assert play.look(sink=NodeView(S.RESTARTING, 0)) == []
        assert play.look(sink=NodeView(S.OFFERED, 1)) == []
        assert play.look(sink=NodeView(S.STARTED, 1)) == [WriteCommit()]

    def test_but_not_longer_than_for_new_workers(self) -> None:
        play = at(RolloutStep.SETTLING)
        play.look(sink=NodeView(S.RESTARTING, 0))
        assert play.do(ReadyDeadlinePassed())[-1] == FinishRollout("nodes were restarted all the time for 5 s")

    def test_without_a_node_to_replace_it_is_committed_and_done(self) -> None:
        play = Play()
        assert play.do(BeginRequested()) == [ArmReadyDeadline(5_000_000_000)]
        assert play.committed() == [DisarmReadyDeadline(), ReviseFlow()]
        assert play.look() == []
        assert play.look() == [FinishRollout()]

    def test_who_dies_while_it_is_written_down_is_waited_for(self) -> None:
        play = at(RolloutStep.COMMITTING)
        assert play.look(sink=NodeView(S.RESTARTING, 0)) == []
        assert play.do(CommitWritten()) == []
        assert play.look() == []
        assert play.look(sink=NodeView(S.STARTED, 1)) == [DisarmReadyDeadline(), ReviseFlow()]

    @pytest.mark.parametrize("written", [False, True])
    @pytest.mark.parametrize(
        "event", [ReadyDeadlinePassed(), RollbackRequested("somebody did"), SuccessorLost("map", "is gone")], ids=str
    )
    def test_what_was_written_down_is_taken_back_when_it_does_not_come(
        self, event: RolloutEvent, written: bool
    ) -> None:
        play = at(RolloutStep.COMMITTING)
        if written:
            play.do(CommitWritten())
        assert play.do(event)[:2] == [DisarmReadyDeadline(), RevokeCommit()]
        assert play.rollout.step is RolloutStep.ROLLED_BACK
        if not written:
            assert play.do(CommitWritten()) == []

    def test_a_disk_that_is_too_slow_for_it_is_what_is_named(self) -> None:
        play = at(RolloutStep.COMMITTING)
        assert play.do(ReadyDeadlinePassed())[-1] == FinishRollout("it was not written down within 5 s")

    def test_so_it_is_when_a_node_whose_routes_change_has_ended_meanwhile(self) -> None:
        play = at(RolloutStep.COMMITTING)
        play.do(CommitWritten())
        play.obstacle = "node 'source', whose routes change, is finished"
        assert play.look() == [
            DisarmReadyDeadline(),
            RevokeCommit(),
            DismissSuccessor("map"),
            FinishRollout(play.obstacle),
        ]


class TestWithoutAWayBack:
    def test_nodes_leave_one_by_one_from_the_sources_on_and_successors_come_sinks_first(self) -> None:
        play = Play(*NODES).leaving()
        said = play.all_left()
        assert [each for each in play.all if isinstance(each, ReplaceWorker)] == [ReplaceWorker(node) for node in NODES]
        assert said == [StartSuccessor(node) for node in reversed(NODES)]
        for node in NODES[:-1]:
            assert play.look(**{node: NodeView(S.STARTED, 1)}) == []
        assert play.look(sink=NodeView(S.STARTED, 1)) == [FinishRollout()]
        assert play.rollout.step is RolloutStep.DONE

    def test_one_whose_successor_is_gone_gets_another_one(self) -> None:
        play = at(RolloutStep.LEAVING)
        assert play.do(SuccessorLost("map", "is gone")) == []
        assert play.all_left() == [StartSuccessor("map", fresh=True)]

    @pytest.mark.parametrize(
        "seen", [NodeView(S.EXITED, 0), NodeView(S.FINISHED, 0), NodeView(S.STARTED, 1), NodeView(S.OFFERED, 1)]
    )
    def test_one_that_has_ended_or_was_born_again_meanwhile_is_not_replaced(self, seen: NodeView) -> None:
        play = Play("source", "map").leaving()
        said = play.look(source=NodeView(S.RESTARTING, 0), map=seen)
        assert said == [DismissSuccessor("map"), StartSuccessor("source")]

    def test_one_that_waits_to_be_restarted_with_others_is_left_to_that(self) -> None:
        play = at(RolloutStep.LEAVING)
        assert play.look(map=NodeView(S.RESTARTING, 0, grouped=True)) == [DismissSuccessor("map")]
        assert play.look(map=NodeView(S.STARTED, 1)) == [FinishRollout()]

    def test_one_that_is_on_its_way_out_is_waited_for(self) -> None:
        play = Play("source", "map").leaving()
        assert play.look(source=NodeView(S.RESTARTING, 0), map=NodeView(S.FAULTED, 0)) == []
        assert play.rollout.step is RolloutStep.LEAVING

    def test_it_ends_with_the_flow_and_those_that_stood_by_go(self) -> None:
        play = at(RolloutStep.LEAVING)
        play.runs = False
        assert play.look() == [DismissSuccessor("map"), FinishRollout("the flow has ended before")]

    def test_who_has_taken_over_by_then_is_at_work_and_does_not_go(self) -> None:
        play = Play("map", "sink").leaving()
        play.all_left()
        play.look(sink=NodeView(S.STARTED, 1), map=NodeView(S.OFFERED, 1))
        play.runs = False
        assert play.look() == [FinishRollout("the flow has ended before")]

    @pytest.mark.parametrize("rerouting", [(), ("source",)], ids=["switched", "not switched"])
    def test_nobody_behind_one_that_was_born_again_waits_for_those_before_it(self, rerouting: tuple[str, ...]) -> None:
        """They may wait for it: it sends by a route that is not taken from until the one behind it has ended."""
        play = Play(*NODES, removed=frozenset({"source", "sink"}))
        play.do(BeginRequested())
        play.do(SuccessorReady("map"))
        play.committed()
        play.rerouting = rerouting
        assert RetireNode("sink") not in play.look(map=NodeView(S.RESTARTING, 0))
        assert RetireNode("sink") in play.look(map=NodeView(S.STARTED, 1))


class TestOtherRoutes:
    def test_one_that_is_added_begins_at_once_and_is_awaited_at_the_end(self) -> None:
        play = Play(added=("extra",))
        assert play.do(BeginRequested())[0] == StandBy(("extra",))
        play.do(SuccessorReady("extra"))
        assert play.committed() == [DisarmReadyDeadline(), ReviseFlow(), StartSuccessor("extra")]
        play.look(extra=NodeView(S.OFFERING, 0))
        assert play.rollout.step is RolloutStep.TAKING_OVER
        assert play.rollout.waits_for == ["extra"]
        assert play.look(extra=NodeView(S.STARTED, 0)) == [FinishRollout()]

    def test_nobody_leaves_before_all_send_by_other_routes(self) -> None:
        play = Play("map")
        play.do(BeginRequested())
        play.do(SuccessorReady("map"))
        play.committed()
        play.rerouting = ("source",)
        assert play.look() == []
        assert play.rollout.waits_for == ["source"]
        play.rerouting = ()
        assert play.look() == [ReplaceWorker("map")]

    def test_one_that_was_removed_is_not_replaced_but_ends_when_it_is_its_turn(self) -> None:
        play = Play("source", "map", removed=frozenset({"map"}))
        assert play.do(BeginRequested())[0] == StandBy(("source",))
        play.do(SuccessorReady("source"))
        play.committed()
        assert play.look() == [ReplaceWorker("source")]
        assert play.look(source=NodeView(S.RESTARTING, 0)) == [RetireNode("map")]
        assert play.look(map=NodeView(S.DRAINING, 0)) == []
        del play.nodes["map"]
        assert play.look() == [StartSuccessor("source")]

    def test_it_is_done_when_routes_that_were_removed_are_drained(self) -> None:
        play = Play("map", removed=frozenset({"map"}))
        play.do(BeginRequested())
        play.committed()
        assert play.look() == [RetireNode("map")]
        del play.nodes["map"]
        play.clean = False
        play.look()
        assert play.look() == []
        play.clean = True
        assert play.look() == [FinishRollout()]

    def test_what_is_in_the_way_rolls_it_back(self) -> None:
        play = Play(added=("extra",))
        play.do(BeginRequested())
        play.do(SuccessorReady("extra"))
        play.obstacle = "node 'source', whose routes change, is finished"
        assert play.look() == [DisarmReadyDeadline(), DismissSuccessor("extra"), FinishRollout(play.obstacle)]


STATES = st.builds(NodeView, st.sampled_from(list(WorkerState)), st.integers(0, 2), st.booleans())


def steps(removed: frozenset[str]) -> st.SearchStrategy[RolloutEvent]:
    """What may happen to a flow whose removed nodes may be gone at any time."""
    there = dict.fromkeys((*(node for node in NODES if node not in removed), "extra"), STATES)
    views = st.builds(
        FlowView,
        st.fixed_dictionaries(there, optional=dict.fromkeys(removed, STATES)),
        st.booleans(),
        st.sampled_from(["", "", "something is in the way"]),
        st.sampled_from([(), (), ("source",)]),
        st.booleans(),
    )
    return st.one_of(
        st.builds(SuccessorReady, st.sampled_from((*NODES, "extra"))),
        st.builds(SuccessorLost, st.sampled_from((*NODES, "extra")), st.just("is gone")),
        st.builds(FlowObserved, views),
        st.just(ReadyDeadlinePassed()),
        st.just(RollbackRequested("somebody did")),
        st.just(CommitWritten()),
    )


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sets(st.sampled_from(NODES)), st.booleans())
def test_whatever_happens_it_leaves_nobody_behind_and_touches_nothing_before_its_time(
    data: st.DataObject, chosen: set[str], adds: bool
) -> None:
    removed = frozenset(data.draw(st.sets(st.sampled_from(sorted(chosen))))) if chosen else frozenset[str]()
    added = ("extra",) if adds else ()
    play = Play(*(node for node in NODES if node in chosen), added=added, removed=removed)
    play.do(BeginRequested())
    events = data.draw(st.lists(steps(removed), max_size=40))
    for event in events:
        before = play.rollout.step
        try:
            play.do(event)
        except IllegalEvent:
            assert play.rollout.step is before
    kinds = [type(each) for each in play.all]
    assert kinds.count(WriteCommit) <= 1
    assert kinds.count(FinishRollout) == (play.rollout.step in OVER)
    touched = [at for at, kind in enumerate(kinds) if kind in (ReplaceWorker, RetireNode, StartSuccessor)]
    assert not touched or (ReviseFlow in kinds and min(touched) > kinds.index(ReviseFlow))
    assert ReviseFlow not in kinds or (WriteCommit in kinds and kinds.index(ReviseFlow) > kinds.index(WriteCommit))
    left = [each.node for each in play.all if isinstance(each, ReplaceWorker)]
    retired = [each.node for each in play.all if isinstance(each, RetireNode)]
    assert len({*left, *retired}) == len(left) + len(retired)
    assert set(retired) <= removed
    assert not set(left) & removed
    took = [each.node for each in play.all if isinstance(each, StartSuccessor)]
    assert len(set(took)) == len(took)
    assert set(took) <= {*left, *added}
    dismissed = [each.node for each in play.all if isinstance(each, DismissSuccessor)]
    assert len(set(dismissed)) == len(dismissed)
    assert not set(dismissed) & set(took)
    if play.rollout.step is RolloutStep.ROLLED_BACK:
        assert ReviseFlow not in kinds
        assert (WriteCommit in kinds) == (RevokeCommit in kinds)
    if play.rollout.over:
        fallen = {event.node for event in events if isinstance(event, SuccessorLost)}
        assert (chosen - removed) | set(added) <= set(dismissed) | set(took) | fallen
