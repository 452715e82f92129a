"""The steps of a roll-out: its whole table, by hand, and at random against a flow that does what it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronetixd.core.machine import IllegalEvent
from chronetixd.core.rollout import (
    EVENTS,
    OVER,
    TABLE,
    Arm,
    Begun,
    Called,
    Commit,
    Disarm,
    Dismiss,
    Event,
    Fell,
    Finish,
    Late,
    Leave,
    Looked,
    Retire,
    Revise,
    Revoke,
    Rollout,
    Seen,
    StandBy,
    Step,
    StoodBy,
    TakeOver,
    View,
    Written,
)
from chronetixd.core.worker import WorkerState

S = WorkerState
NODES = ("source", "map", "sink")
SENDERS = {"source": set[str](), "map": {"source"}, "sink": {"map"}}


class Play:
    """A roll-out of ``nodes``, and the flow that it sees."""

    def __init__(self, *nodes: str, added: tuple[str, ...] = (), removed: frozenset[str] = frozenset()) -> None:
        self.rollout = Rollout(nodes, 5_000_000_000, SENDERS, added, removed)
        self.nodes = {node: Seen(S.STARTED, 0) for node in NODES}
        self.runs = True
        self.obstacle = ""
        self.rerouting: tuple[str, ...] = ()
        self.clean = True
        self.all: list[Any] = []

    def do(self, event: Event) -> list[Any]:
        done = self.rollout.handle(event)
        self.all += done
        return done

    def look(self, **changes: Seen) -> list[Any]:
        self.nodes |= changes
        return self.do(Looked(View(dict(self.nodes), self.runs, self.obstacle, self.rerouting, self.clean)))

    def committed(self) -> list[Any]:
        """It settles and is written down; what is said then."""
        assert self.look() == [Commit()]
        assert self.do(Written()) == []
        return self.look()

    def leaving(self) -> Play:
        """All stand by, and it was committed."""
        self.do(Begun())
        for node in (*self.rollout.nodes, *self.rollout.added):
            if node not in self.rollout.removed:
                self.do(StoodBy(node))
        assert self.committed()[:2] == [Disarm(), Revise()]
        self.nodes |= {node: Seen(S.OFFERING, 0) for node in self.rollout.added}
        self.look()
        return self

    def all_left(self) -> list[Any]:
        """They leave one after the other; what is said when the last has."""
        said: list[Any] = []
        for node in self.rollout.nodes:
            self.look(**{node: Seen(S.DRAINING, 0)})
            assert self.look(**{node: Seen(S.FINISHED, 0)}) == []
            said = self.look(**{node: Seen(S.RESTARTING, 0)})
        return said


def test_the_table_has_a_cell_for_every_step_and_event() -> None:
    assert set(TABLE) == set(Step)
    assert {len(row) for row in TABLE.values()} == {len(EVENTS)}


EXAMPLES: dict[type, Event] = {
    Begun: Begun(),
    StoodBy: StoodBy("map"),
    Fell: Fell("map", "is gone"),
    Looked: Looked(View({node: Seen(S.STARTED, 0) for node in NODES})),
    Late: Late(),
    Called: Called("somebody did"),
    Written: Written(),
}


def at(step: Step) -> Play:
    """A roll-out of the map that is at this step."""
    play = Play("map")
    ways: dict[Step, Callable[[], Any]] = {
        Step.PLANNED: lambda: None,
        Step.PREPARING: lambda: play.do(Begun()),
        Step.SETTLING: lambda: (play.do(Begun()), play.do(StoodBy("map"))),
        Step.COMMITTING: lambda: (play.do(Begun()), play.do(StoodBy("map")), play.look()),
        Step.SWITCHING: lambda: (play.do(Begun()), play.do(StoodBy("map")), play.committed()),
        Step.LEAVING: lambda: play.leaving(),
        Step.TAKING_OVER: lambda: (play.leaving(), play.all_left()),
        Step.DONE: lambda: (play.leaving(), play.all_left(), play.look(map=Seen(S.STARTED, 1))),
        Step.ROLLED_BACK: lambda: (play.do(Begun()), play.do(Late())),
        Step.ENDED: lambda: (play.do(Begun()), setattr(play, "runs", False), play.look()),
    }
    ways[step]()
    assert play.rollout.step is step
    return play


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("kind", EVENTS)
def test_every_cell_is_taken_or_refused_and_a_refusal_changes_nothing(step: Step, kind: type) -> None:
    play = at(step)
    if TABLE[step][EVENTS.index(kind)] is None:
        before = (play.rollout.step, set(play.rollout.waiting), set(play.rollout.standing), list(play.rollout.told))
        with pytest.raises(IllegalEvent):
            play.do(EXAMPLES[kind])
        rollout = play.rollout
        assert (rollout.step, rollout.waiting, rollout.standing, rollout.told) == before
    else:
        play.do(EXAMPLES[kind])


class TestBeforeAnythingIsTouched:
    def test_all_new_workers_are_asked_for_at_once_and_have_so_long(self) -> None:
        play = Play("source", "sink")
        assert play.do(Begun()) == [StandBy(("source", "sink")), Arm(5_000_000_000)]
        assert play.rollout.waits_for == ["source", "sink"]

    def test_one_that_is_late_is_named_and_all_are_dismissed(self) -> None:
        play = Play("source", "sink")
        play.do(Begun())
        play.do(StoodBy("source"))
        why = "the new worker of node 'sink' was not ready within 5 s"
        assert play.do(Late()) == [Disarm(), Dismiss("source"), Dismiss("sink"), Finish(why)]
        assert play.rollout.step is Step.ROLLED_BACK

    def test_one_that_fails_rolls_it_back_also_while_it_settles(self) -> None:
        play = Play("source", "sink")
        play.do(Begun())
        play.do(StoodBy("source"))
        play.do(StoodBy("sink"))
        why = "the new worker of node 'sink' was killed by SIGKILL"
        assert play.do(Fell("sink", "was killed by SIGKILL")) == [Disarm(), Dismiss("source"), Finish(why)]

    def test_it_waits_until_nobody_is_being_restarted(self) -> None:
        play = at(Step.SETTLING)
        assert play.look(sink=Seen(S.RESTARTING, 0)) == []
        assert play.look(sink=Seen(S.OFFERED, 1)) == []
        assert play.look(sink=Seen(S.STARTED, 1)) == [Commit()]

    def test_but_not_longer_than_for_new_workers(self) -> None:
        play = at(Step.SETTLING)
        play.look(sink=Seen(S.RESTARTING, 0))
        assert play.do(Late())[-1] == Finish("nodes were restarted all the time for 5 s")

    def test_without_a_node_to_replace_it_is_committed_and_done(self) -> None:
        play = Play()
        assert play.do(Begun()) == [Arm(5_000_000_000)]
        assert play.committed() == [Disarm(), Revise()]
        assert play.look() == []
        assert play.look() == [Finish()]

    def test_who_dies_while_it_is_written_down_is_waited_for(self) -> None:
        play = at(Step.COMMITTING)
        assert play.look(sink=Seen(S.RESTARTING, 0)) == []
        assert play.do(Written()) == []
        assert play.look() == []
        assert play.look(sink=Seen(S.STARTED, 1)) == [Disarm(), Revise()]

    @pytest.mark.parametrize("written", [False, True])
    @pytest.mark.parametrize("event", [Late(), Called("somebody did"), Fell("map", "is gone")], ids=str)
    def test_what_was_written_down_is_taken_back_when_it_does_not_come(self, event: Event, written: bool) -> None:
        play = at(Step.COMMITTING)
        if written:
            play.do(Written())
        assert play.do(event)[:2] == [Disarm(), Revoke()]
        assert play.rollout.step is Step.ROLLED_BACK
        if not written:
            assert play.do(Written()) == []

    def test_a_disk_that_is_too_slow_for_it_is_what_is_named(self) -> None:
        play = at(Step.COMMITTING)
        assert play.do(Late())[-1] == Finish("it was not written down within 5 s")

    def test_so_it_is_when_a_node_whose_routes_change_has_ended_meanwhile(self) -> None:
        play = at(Step.COMMITTING)
        play.do(Written())
        play.obstacle = "node 'source', whose routes change, is finished"
        assert play.look() == [Disarm(), Revoke(), Dismiss("map"), Finish(play.obstacle)]


class TestWithoutAWayBack:
    def test_nodes_leave_one_by_one_from_the_sources_on_and_successors_come_sinks_first(self) -> None:
        play = Play(*NODES).leaving()
        said = play.all_left()
        assert [each for each in play.all if isinstance(each, Leave)] == [Leave(node) for node in NODES]
        assert said == [TakeOver(node) for node in reversed(NODES)]
        for node in NODES[:-1]:
            assert play.look(**{node: Seen(S.STARTED, 1)}) == []
        assert play.look(sink=Seen(S.STARTED, 1)) == [Finish()]
        assert play.rollout.step is Step.DONE

    def test_one_whose_successor_is_gone_gets_another_one(self) -> None:
        play = at(Step.LEAVING)
        assert play.do(Fell("map", "is gone")) == []
        assert play.all_left() == [TakeOver("map", fresh=True)]

    @pytest.mark.parametrize("seen", [Seen(S.EXITED, 0), Seen(S.FINISHED, 0), Seen(S.STARTED, 1), Seen(S.OFFERED, 1)])
    def test_one_that_has_ended_or_was_born_again_meanwhile_is_not_replaced(self, seen: Seen) -> None:
        play = Play("source", "map").leaving()
        said = play.look(source=Seen(S.RESTARTING, 0), map=seen)
        assert said == [Dismiss("map"), TakeOver("source")]

    def test_one_that_waits_to_be_restarted_with_others_is_left_to_that(self) -> None:
        play = at(Step.LEAVING)
        assert play.look(map=Seen(S.RESTARTING, 0, grouped=True)) == [Dismiss("map")]
        assert play.look(map=Seen(S.STARTED, 1)) == [Finish()]

    def test_one_that_is_on_its_way_out_is_waited_for(self) -> None:
        play = Play("source", "map").leaving()
        assert play.look(source=Seen(S.RESTARTING, 0), map=Seen(S.FAULTED, 0)) == []
        assert play.rollout.step is Step.LEAVING

    def test_it_ends_with_the_flow_and_those_that_stood_by_go(self) -> None:
        play = at(Step.LEAVING)
        play.runs = False
        assert play.look() == [Dismiss("map"), Finish("the flow has ended before")]

    def test_who_has_taken_over_by_then_is_at_work_and_does_not_go(self) -> None:
        play = Play("map", "sink").leaving()
        play.all_left()
        play.look(sink=Seen(S.STARTED, 1), map=Seen(S.OFFERED, 1))
        play.runs = False
        assert play.look() == [Finish("the flow has ended before")]

    @pytest.mark.parametrize("rerouting", [(), ("source",)], ids=["switched", "not switched"])
    def test_nobody_behind_one_that_was_born_again_waits_for_those_before_it(self, rerouting: tuple[str, ...]) -> None:
        """They may wait for it: it sends by a route that is not taken from until the one behind it has ended."""
        play = Play(*NODES, removed=frozenset({"source", "sink"}))
        play.do(Begun())
        play.do(StoodBy("map"))
        play.committed()
        play.rerouting = rerouting
        assert Retire("sink") not in play.look(map=Seen(S.RESTARTING, 0))
        assert Retire("sink") in play.look(map=Seen(S.STARTED, 1))


class TestOtherRoutes:
    def test_one_that_is_added_begins_at_once_and_is_awaited_at_the_end(self) -> None:
        play = Play(added=("extra",))
        assert play.do(Begun())[0] == StandBy(("extra",))
        play.do(StoodBy("extra"))
        assert play.committed() == [Disarm(), Revise(), TakeOver("extra")]
        play.look(extra=Seen(S.OFFERING, 0))
        assert play.rollout.step is Step.TAKING_OVER
        assert play.rollout.waits_for == ["extra"]
        assert play.look(extra=Seen(S.STARTED, 0)) == [Finish()]

    def test_nobody_leaves_before_all_send_by_other_routes(self) -> None:
        play = Play("map")
        play.do(Begun())
        play.do(StoodBy("map"))
        play.committed()
        play.rerouting = ("source",)
        assert play.look() == []
        assert play.rollout.waits_for == ["source"]
        play.rerouting = ()
        assert play.look() == [Leave("map")]

    def test_one_that_was_removed_is_not_replaced_but_ends_when_it_is_its_turn(self) -> None:
        play = Play("source", "map", removed=frozenset({"map"}))
        assert play.do(Begun())[0] == StandBy(("source",))
        play.do(StoodBy("source"))
        play.committed()
        assert play.look() == [Leave("source")]
        assert play.look(source=Seen(S.RESTARTING, 0)) == [Retire("map")]
        assert play.look(map=Seen(S.DRAINING, 0)) == []
        del play.nodes["map"]
        assert play.look() == [TakeOver("source")]

    def test_it_is_done_when_routes_that_were_removed_are_drained(self) -> None:
        play = Play("map", removed=frozenset({"map"}))
        play.do(Begun())
        play.committed()
        assert play.look() == [Retire("map")]
        del play.nodes["map"]
        play.clean = False
        play.look()
        assert play.look() == []
        play.clean = True
        assert play.look() == [Finish()]

    def test_what_is_in_the_way_rolls_it_back(self) -> None:
        play = Play(added=("extra",))
        play.do(Begun())
        play.do(StoodBy("extra"))
        play.obstacle = "node 'source', whose routes change, is finished"
        assert play.look() == [Disarm(), Dismiss("extra"), Finish(play.obstacle)]


STATES = st.builds(Seen, st.sampled_from(list(WorkerState)), st.integers(0, 2), st.booleans())


def steps(removed: frozenset[str]) -> st.SearchStrategy[Event]:
    """What may happen to a flow whose removed nodes may be gone at any time."""
    there = dict.fromkeys((*(node for node in NODES if node not in removed), "extra"), STATES)
    views = st.builds(
        View,
        st.fixed_dictionaries(there, optional=dict.fromkeys(removed, STATES)),
        st.booleans(),
        st.sampled_from(["", "", "something is in the way"]),
        st.sampled_from([(), (), ("source",)]),
        st.booleans(),
    )
    return st.one_of(
        st.builds(StoodBy, st.sampled_from((*NODES, "extra"))),
        st.builds(Fell, st.sampled_from((*NODES, "extra")), st.just("is gone")),
        st.builds(Looked, views),
        st.just(Late()),
        st.just(Called("somebody did")),
        st.just(Written()),
    )


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sets(st.sampled_from(NODES)), st.booleans())
def test_whatever_happens_it_leaves_nobody_behind_and_touches_nothing_before_its_time(
    data: st.DataObject, chosen: set[str], adds: bool
) -> None:
    removed = frozenset(data.draw(st.sets(st.sampled_from(sorted(chosen))))) if chosen else frozenset[str]()
    added = ("extra",) if adds else ()
    play = Play(*(node for node in NODES if node in chosen), added=added, removed=removed)
    play.do(Begun())
    events = data.draw(st.lists(steps(removed), max_size=40))
    for event in events:
        before = play.rollout.step
        try:
            play.do(event)
        except IllegalEvent:
            assert play.rollout.step is before
    kinds = [type(each) for each in play.all]
    assert kinds.count(Commit) <= 1
    assert kinds.count(Finish) == (play.rollout.step in OVER)
    touched = [at for at, kind in enumerate(kinds) if kind in (Leave, Retire, TakeOver)]
    assert not touched or (Revise in kinds and min(touched) > kinds.index(Revise))
    assert Revise not in kinds or (Commit in kinds and kinds.index(Revise) > kinds.index(Commit))
    left = [each.node for each in play.all if isinstance(each, Leave)]
    retired = [each.node for each in play.all if isinstance(each, Retire)]
    assert len({*left, *retired}) == len(left) + len(retired)
    assert set(retired) <= removed
    assert not set(left) & removed
    took = [each.node for each in play.all if isinstance(each, TakeOver)]
    assert len(set(took)) == len(took)
    assert set(took) <= {*left, *added}
    dismissed = [each.node for each in play.all if isinstance(each, Dismiss)]
    assert len(set(dismissed)) == len(dismissed)
    assert not set(dismissed) & set(took)
    if play.rollout.step is Step.ROLLED_BACK:
        assert Revise not in kinds
        assert (Commit in kinds) == (Revoke in kinds)
    if play.rollout.over:
        fallen = {event.node for event in events if isinstance(event, Fell)}
        assert (chosen - removed) | set(added) <= set(dismissed) | set(took) | fallen
