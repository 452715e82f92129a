"""A daemon that has outlived none of a flow's memory puts together what its workers show and what was kept of the dead.

With real rings, and ends that live in this process, as in test_succession: the daemon's death is a new wiring."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chronetix import shm
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.messages import (
    Configure,
    Drained,
    Port,
    Reattach,
    ReattachedStage,
    Segment,
    SegmentDropped,
    SegmentMapped,
)
from chronetixd.dataplane.recovered import RecoveredMemory
from chronetixd.dataplane.wiring import FlowWiring, ToNode
from chronetixd.store.descriptor_keys import Key
from tests.chronetixd.dataplane.test_succession import CREDITS, ROUTE, Play

NODES = ("source", "sink")


class Survivors(Play):
    """A flow whose daemon dies too. Workers that were not told to start die with it."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.taken: list[tuple[int, bool]] = []

    def daemon_dies(
        self, *with_it: str, kept: bool = True, dropped: dict[str, list[int]] | None = None
    ) -> list[ToNode]:
        """The next one has what the living show and, if ``kept``, what a supervisor had. What it sends for a start."""
        places = self.wiring.machine.table.nodes
        incarnations = {node: places[node].incarnation for node in NODES}
        had = {key: os.dup(fd) for key, fd in self.wiring.memories().items()} if kept else {}
        if kept:  # a supervisor that keeps anything keeps the worker's process, too: that is how it is known to keep
            had[Key("source", "pidfd", incarnations["source"])] = os.pidfd_open(os.getpid())
        living = [node for node in NODES if node in self.lives and places[node].started and node not in with_it]
        self.wiring.close()
        for node in NODES:
            if node in self.lives and node not in living:
                self.dead.append(self.lives.pop(node))
        self.wiring = FlowWiring(NODES, (ROUTE,))
        for node in NODES:
            self.wiring.know(told(node))
        shown = {node: self.wiring.reattached(node, *self.shows(node, incarnations[node], dropped)) for node in living}
        dead = {node: incarnations[node] for node in NODES if node not in living}
        memory = RecoveredMemory(had)
        try:
            messages = self.wiring.take_over(shown, dead, set(), memory)
        finally:
            memory.close()
        for node in dead:
            due = self.wiring.succeeded(node)
            self.carry_out([each for each in due if each.node in self.lives and each.node not in dead])
        return messages

    def shows(
        self, node: str, incarnation: int, dropped: dict[str, list[int]] | None = None
    ) -> tuple[Reattach, list[int]]:
        life = self.lives[node]
        rings, credits = list(life.producers.values()), list(life.consumers.values())
        segments, unconfirmed, _ = life.arena.inventory
        message = Reattach(
            flow="f",
            node=node,
            token="",
            state="started",
            incarnation=incarnation,
            outputs=[
                ReattachedStage(route="r", epoch=end.epoch, linked=end.linked, resume=life.config.outputs[0].resume)
                for end in rings
            ],
            inputs=[ReattachedStage(route="r", epoch=end.epoch, linked=end.linked, segments=[0]) for end in credits],
            segments=[index for index, _, _ in segments] if rings else [],
            unconfirmed=unconfirmed if rings else [],
            dropped=(dropped or {}).get(node, []),
        )
        fds = [end.fd for end in (*rings, *credits)]
        fds += [fd for _, fd, _ in segments] if rings else []
        return message, [os.dup(fd) for fd in fds]

    def sends(self, count: int) -> None:
        source = self.lives["source"]
        self.number = max(self.number, source.config.outputs[0].resume)
        for number in range(self.number + 1, self.number + 1 + count):
            try:
                source.send(number)
            except shm.WouldBlock:
                return
            self.number = number

    def takes(self) -> None:
        found = self.lives["sink"].take()
        if found is not None:
            self.taken.append((found[0], found[2]))

    def tell_drained(self) -> None:
        """Oldest first, as a worker does."""
        sink = self.lives["sink"]
        while (told := Drained(route="r", epoch=min(sink.consumers)[1])) in sink.drained:
            sink.drained.remove(told)
            del sink.consumers["r", told.epoch]
            self.wiring.drained("sink", told)


def told(node: str) -> Configure:
    inputs = [Port(route="r", peer="source", credits=CREDITS)] if node == "sink" else []
    outputs = [Port(route="r", peer="sink", credits=CREDITS)] if node == "source" else []
    return Configure(
        flow="f", node=node, plugin_id=node, version="1", kind="Python", uri="x", inputs=inputs, outputs=outputs
    )


@pytest.fixture
def play() -> Iterator[Survivors]:
    made = Survivors()
    yield made
    made.close()


def none_is_lost(taken: list[tuple[int, bool]], sent: int) -> None:
    seen = 0
    for number, marked in taken:
        assert number <= seen + 1, f"{number} follows {seen}: lost"
        assert marked or number == seen + 1, f"{number} came again unmarked"
        seen = max(seen, number)
    assert seen == sent


STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 5)),
    st.tuples(st.just("take"), st.integers(1, 5)),
    st.tuples(st.just("give back"), st.integers(1, 5)),
    st.tuples(st.just("die"), st.sampled_from(NODES)),
    st.tuples(st.just("born"), st.sampled_from(NODES)),
    st.tuples(st.just("offer"), st.sampled_from(NODES)),
    st.tuples(st.just("start"), st.sampled_from(NODES)),
    st.tuples(st.just("daemon"), st.sampled_from([(), ("source",), ("sink",), NODES])),
)


class TestAnyLives:
    @example(steps=[("daemon", ("source",)), ("take", 1), ("give back", 1), ("daemon", ("sink",)), ("daemon", ())])
    @example(steps=[("die", "source"), ("offer", "source"), ("die", "sink"), ("start", "sink")])
    @given(steps=st.lists(STEPS, max_size=40))
    def test_whoever_dies_with_whatever_daemon_costs_no_frame(self, steps: list[tuple[str, object]]) -> None:
        play = Survivors()
        try:
            for what, which in steps:
                one_step(play, what, which)
            for node in NODES:
                bring_back(play, node)
            for _ in range(3):
                while True:
                    before = len(play.taken)
                    play.takes()
                    play.lives["sink"].give_back(1)
                    if len(play.taken) == before:
                        break
                play.tell_drained()
                play.sends(3)
            while (found := play.lives["sink"].take()) is not None:
                play.taken.append((found[0], found[2]))
                play.lives["sink"].give_back(1)
            none_is_lost(play.taken, play.number)
        finally:
            play.close()


def one_step(play: Survivors, what: str, which: object) -> None:
    """Whatever is not possible now is passed over."""
    places = play.wiring.machine.table.nodes
    if what == "daemon":
        assert isinstance(which, tuple)
        play.daemon_dies(*which)
    elif what in ("send", "take", "give back"):
        assert isinstance(which, int)
        node = "source" if what == "send" else "sink"
        if node not in play.lives or not places[node].started:
            return
        for _ in range(which):
            if what == "send":
                play.sends(1)
            elif what == "take":
                play.takes()
            else:
                play.lives["sink"].give_back(1)
                play.tell_drained()
    else:
        assert isinstance(which, str)
        if what == "die" and which in play.lives:
            play.dies(which)
        elif what != "die":
            bring_back(play, which, until=what)


def bring_back(play: Survivors, node: str, until: str = "start") -> None:
    node_ends = play.wiring.machine.table.nodes[node]
    if node not in play.lives:
        play.born(node)
    if until != "born" and node_ends.memory is None:
        play.offers(node)
    if until == "start" and node_ends.linked and not node_ends.started:
        play.starts(node)


class TestWhatWasUnderWay:
    def test_a_segment_that_a_consumer_has_not_got_is_sent_to_it_and_waited_for(self, play: Survivors) -> None:
        arena = play.lives["source"].arena
        outlet = shm.Outlet(list(play.lives["source"].producers.values()), play.lives["source"].bell)
        with pytest.raises(shm.WouldBlock):
            outlet.send(bytes(200_000), 0)
        del outlet
        (index,) = arena.inventory[1]
        messages = play.daemon_dies()
        sent = Segment(index=index, route="r")
        assert [(each.node, each.message) for each in messages] == [("sink", sent)]
        with os.fdopen(os.dup(arena.segments[-1][1]), "rb") as again:
            assert play.wiring.grow("source", Segment(index=index), [again.fileno()]) == []
        told = play.wiring.mapped("sink", SegmentMapped(index=index, route="r"))
        assert told == [ToNode("source", SegmentMapped(index=index))]

    def test_a_segment_that_was_given_back_is_taken_from_whoever_maps_it(self, play: Survivors) -> None:
        messages = play.daemon_dies(dropped={"source": [3, 4]})
        assert [each.message for each in messages if each.node == "source"] == [
            SegmentDropped(index=3),
            SegmentDropped(index=4),
        ]

    def test_what_a_worker_said_of_what_it_has_shown_may_come_still_but_once(self, play: Survivors) -> None:
        play.daemon_dies(dropped={"source": [3]})
        assert play.wiring.drop("source", SegmentDropped(index=3)) == []
        with pytest.raises(ChronetixError, match="not in use"):
            play.wiring.drop("source", SegmentDropped(index=3))

    def test_a_stage_that_was_drained_before_may_be_told_of(self, play: Survivors) -> None:
        play.sends(2)
        play.dies("source")
        play.comes_back("source")
        sink = play.lives["sink"]
        while sink.take():
            sink.give_back(1)
        play.tell_drained()
        play.daemon_dies()
        play.wiring.drained("sink", Drained(route="r", epoch=0))
        assert play.wiring.mapped("sink", SegmentMapped(index=0, route="r", epoch=0)) == []
        with pytest.raises(ChronetixError, match="no stage"):
            play.wiring.drained("sink", Drained(route="r", epoch=1))
