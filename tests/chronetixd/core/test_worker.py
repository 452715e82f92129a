"""The table of a worker's life."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetixd.core import worker as life
from chronetixd.core.machine import IllegalEvent
from chronetixd.core.worker import EVENTS, TABLE, Exit, WorkerMachine, WorkerState

EXAMPLES = {
    life.ProcessSpawned: life.ProcessSpawned(42),
    life.ProcessNotSpawned: life.ProcessNotSpawned("no memory"),
    life.HasFinished: life.HasFinished({"n": 1}),
    life.Faulted: life.Faulted("frame", "ValueError: x"),
    life.ProcessExited: life.ProcessExited(Exit(code=0)),
    life.StartedEarlier: life.StartedEarlier(3),
    life.FinishedEarlier: life.FinishedEarlier(3),
    life.Attached: life.Attached(42),
}

SAYS_WHERE = (life.HasReattached, life.FlowCollapsed)
"""Events that say to which state they lead."""


def example(kind: type) -> life.WorkerEvent:
    return EXAMPLES[kind] if kind in EXAMPLES else kind()  # type: ignore[no-any-return]


A_WHOLE_LIFE = [
    life.ProcessSpawned(42),
    life.Greeted(),
    life.Offered(),
    life.LinkSent(),
    life.BecameReady(),
    life.StartSent(),
    life.HasStarted(),
    life.DrainSent(),
    life.HasFinished("result"),
    life.ProcessExited(Exit(code=0)),
]


def test_the_table_has_a_cell_for_every_state_and_event() -> None:
    assert set(TABLE) == set(WorkerState)
    assert {len(row) for row in TABLE.values()} == {len(EVENTS)}


def test_a_whole_life_ends_clean_with_the_result() -> None:
    worker = WorkerMachine("a")
    for event in A_WHOLE_LIFE:
        worker.handle(event)
    assert (worker.state, worker.result, worker.exit) == (WorkerState.EXITED, "result", Exit(code=0))


@pytest.mark.parametrize("ended", [Exit(code=3), Exit(signal="SIGKILL")])
def test_a_bad_exit_after_finished_is_a_failure(ended: Exit) -> None:
    worker = WorkerMachine("a")
    for event in A_WHOLE_LIFE[:-1]:
        worker.handle(event)
    assert worker.handle(life.ProcessExited(ended)) is WorkerState.FAILED


@pytest.mark.parametrize("ended", [Exit(attached=True), Exit(code=3, attached=True)])
def test_what_an_attached_process_does_after_it_has_finished_is_its_own_affair(ended: Exit) -> None:
    worker = WorkerMachine("a")
    for event in [life.AttachAwaited(), life.Attached(42), *A_WHOLE_LIFE[1:-1]]:
        worker.handle(event)
    assert (worker.pid, worker.handle(life.ProcessExited(ended))) == (42, WorkerState.EXITED)


def test_an_attached_worker_that_leaves_before_it_has_finished_has_failed() -> None:
    worker = WorkerMachine("a")
    for event in [life.AttachAwaited(), life.Attached(42), *A_WHOLE_LIFE[1:-2]]:
        worker.handle(event)
    assert worker.handle(life.ProcessExited(Exit(attached=True))) is WorkerState.FAILED
    assert str(worker.exit) == "closed its connection"


def test_only_a_node_that_waits_can_be_attached_to_and_only_once() -> None:
    worker = WorkerMachine("a")
    with pytest.raises(IllegalEvent):
        worker.handle(life.Attached(42))
    worker.handle(life.AttachAwaited())
    assert worker.handle(life.Attached(42)) is WorkerState.GREETING
    with pytest.raises(IllegalEvent):
        worker.handle(life.Attached(43))
    assert worker.pid == 42


@pytest.mark.parametrize("lived", range(1, len(A_WHOLE_LIFE) - 1))
def test_an_exit_before_finished_is_a_failure_even_with_code_0(lived: int) -> None:
    worker = WorkerMachine("a")
    for event in A_WHOLE_LIFE[:lived]:
        worker.handle(event)
    assert worker.handle(life.ProcessExited(Exit(code=0))) is WorkerState.FAILED


@pytest.mark.parametrize("lived", range(len(A_WHOLE_LIFE)))
def test_a_signalled_worker_may_still_say_anything_and_then_counts_as_exited(lived: int) -> None:
    worker = WorkerMachine("a")
    for event in A_WHOLE_LIFE[:lived]:
        worker.handle(event)
    worker.handle(life.SignalSent())
    for event in A_WHOLE_LIFE[lived:-1]:
        assert worker.handle(event) is WorkerState.TERMINATING
    assert worker.handle(life.ProcessExited(Exit(signal="SIGTERM"))) is WorkerState.EXITED


@pytest.mark.parametrize("ended", [Exit(code=0), Exit(signal="SIGKILL")])
def test_a_worker_that_is_gone_may_be_born_again_without_its_predecessors_past(ended: Exit) -> None:
    worker = WorkerMachine("a")
    for event in (*A_WHOLE_LIFE[:-1], life.ProcessExited(ended), life.RestartPlanned()):
        worker.handle(event)
    assert (worker.state, worker.gone) == (WorkerState.RESTARTING, False)
    worker.handle(life.RespawnSent())
    assert (worker.state, worker.incarnation) == (WorkerState.SPAWNING, 1)
    assert (worker.pid, worker.exit, worker.finished, worker.result) == (0, None, False, None)
    for event in A_WHOLE_LIFE:
        worker.handle(event)
    assert worker.state is WorkerState.EXITED


def test_a_worker_that_waits_for_its_restart_can_be_given_up() -> None:
    worker = WorkerMachine("a")
    for event in (life.ProcessNotSpawned("no"), life.RestartPlanned(), life.GivenUp()):
        worker.handle(event)
    assert (worker.state, worker.gone) == (WorkerState.FAILED, True)


def test_an_illegal_event_carries_the_history() -> None:
    worker = WorkerMachine("a")
    worker.handle(life.ProcessSpawned(1))
    with pytest.raises(IllegalEvent) as illegal:
        worker.handle(life.HasFinished())
    assert illegal.value.history == ("ProcessSpawned>greeting",)
    assert "'a'" in str(illegal.value)
    assert "greeting" in str(illegal.value)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.sampled_from(WorkerState)), max_size=30))
def test_any_sequence_follows_the_table_and_illegal_events_change_nothing(
    kinds: list[tuple[type, WorkerState]],
) -> None:
    worker = WorkerMachine("a")
    for kind, state in kinds:
        before = (worker.state, worker.pid, worker.exit, worker.fault, worker.finished, worker.history.entries())
        wanted = TABLE[worker.state][EVENTS.index(kind)]
        event = kind(state) if kind in SAYS_WHERE else example(kind)
        if isinstance(wanted, tuple):
            wanted = state if state in wanted else None
        if wanted is None:
            with pytest.raises(IllegalEvent):
                worker.handle(event)
            after = (worker.state, worker.pid, worker.exit, worker.fault, worker.finished, worker.history.entries())
            assert after == before
        else:
            assert worker.handle(event) is wanted
            assert worker.gone == (wanted in life.GONE)


class TestUnderAnEarlierDaemon:
    @pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.STARTED, WorkerState.DRAINING])
    def test_one_that_was_started_comes_back_in_the_state_that_it_says(self, state: WorkerState) -> None:
        worker = WorkerMachine("a")
        assert worker.handle(life.StartedEarlier(2)) is WorkerState.STARTED
        assert worker.handle(life.HasReattached(state)) is state
        assert (worker.incarnation, worker.finished) == (2, False)

    @pytest.mark.parametrize("state", [WorkerState.READY, WorkerState.FINISHED, WorkerState.EXITED])
    def test_it_cannot_come_back_in_any_other(self, state: WorkerState) -> None:
        worker = WorkerMachine("a")
        worker.handle(life.StartedEarlier(2))
        with pytest.raises(IllegalEvent):
            worker.handle(life.HasReattached(state))
        assert worker.state is WorkerState.STARTED

    def test_one_that_is_killed_meanwhile_stays_so(self) -> None:
        worker = WorkerMachine("a")
        worker.handle(life.StartedEarlier(0))
        worker.handle(life.SignalSent())
        assert worker.handle(life.HasReattached(WorkerState.STARTED)) is WorkerState.TERMINATING

    def test_one_that_had_come_to_its_end_has_no_process_and_has_finished(self) -> None:
        worker = WorkerMachine("a")
        assert worker.handle(life.FinishedEarlier(1)) is WorkerState.EXITED
        assert (worker.incarnation, worker.finished) == (1, True)


def test_the_first_process_of_a_node_that_was_added_is_its_incarnation_0() -> None:
    worker = WorkerMachine("a")
    assert worker.handle(life.AddedWhileRunning()) is WorkerState.RESTARTING
    worker.handle(life.RespawnSent())
    assert (worker.state, worker.incarnation) == (WorkerState.SPAWNING, 0)
