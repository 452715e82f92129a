"""Nodes that die and are born again, as the daemon's wiring sees it: with real rings, and ends that live in this
process. A worker that dies is one whose ends are used no more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix import shm
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.messages import Configure, Drained, Extend, Link, Linked, Offer, Port, Segment, SegmentMapped
from chronetixd.core.wiring.stages import LineEnd
from chronetixd.dataplane.pack import PackedWiring
from chronetixd.dataplane.wiring import DataRoute, FlowWiring, ToNode
from chronetixd.packing import Bag, Unbag

if TYPE_CHECKING:
    from chronetix.shm._native import Policy

ROUTE = DataRoute("r", "source", "sink")
CREDITS = 8


class Life:
    """One incarnation of a worker's shared memory; it does what the wiring tells it, and frames by hand."""

    def __init__(self, config: Configure) -> None:
        self.config = config
        self.bell = shm.Doorbell()
        self.arena = shm.Arena(1 << 22, first=1 << 16, on_grow=lambda *_: None)
        self.producers: dict[str, shm.Producer] = {}
        self.consumers: dict[tuple[str, int], shm.Consumer] = {}
        self.frames: list[shm.Frame] = []
        self.drained: list[Drained] = []
        self.inlet: shm.Inlet | None = None

    def offer(self, extend: Extend | None = None) -> tuple[Offer, list[int]]:
        ports = extend or self.config
        for port in ports.outputs:
            self.producers[port.route] = shm.Producer(
                self.arena,
                port.route,
                credits=CREDITS,
                policy=port.policy,
                epoch=port.epoch,
                base_seq=port.base_seq,
                resume=port.resume,
            )
        for port in ports.inputs:
            self._consume(port)
        rings = [self.producers[port.route] for port in ports.outputs]
        credits = [self.consumers[port.route, port.epoch] for port in ports.inputs]
        segments = [] if extend or not rings else list(self.arena.segments)
        message = Offer(
            rings=[each.route for each in rings],
            credits=[each.route for each in credits],
            segments=[index for index, _, _ in segments],
        )
        fds = [*(each.fd for each in (*rings, *credits)), *(fd for _, fd, _ in segments)]
        return message, [os.dup(fd) for fd in fds]

    def _consume(self, port: Port) -> None:
        made = shm.Consumer(port.route, credits=CREDITS, epoch=port.epoch, base_seq=port.base_seq)
        before = self.consumers.get((port.route, port.epoch - 1))
        if before is not None:
            told = Drained(route=port.route, epoch=port.epoch - 1)
            before.succeed(made, lambda: self.drained.append(told))
        self.consumers[port.route, port.epoch] = made
        self.bell.ring()

    def link(self, message: Link, got: list[int]) -> None:
        fds = iter(got)
        for route in message.outputs:
            producer = self.producers[route]
            (producer.relink if producer.linked else producer.link)(next(fds), next(fds), self.bell)
        for each in message.inputs:
            consumer = self.consumers[each.route, each.epoch]
            ring, line = next(fds), next(fds)
            for index in each.segments:
                consumer.add_segment(index, next(fds))
            consumer.link(ring, line, self.bell, predecessor=next(fds) if each.predecessor else -1)
        assert next(fds, None) is None
        for fd in got:
            os.close(fd)

    def send(self, *numbers: int) -> None:
        outlet = shm.Outlet(list(self.producers.values()), self.bell)
        for number in numbers:
            outlet.send(number.to_bytes(4, "little"), 0, input_seq=number)

    def take(self) -> tuple[int, int, bool] | None:
        """(number, seq, redelivered) of the next frame, which is held."""
        if self.inlet is None:
            oldest = min(self.consumers)
            self.inlet = shm.Inlet([self.consumers[oldest]], self.bell)
        frame = self.inlet.take(0)
        if frame is None:
            frame = self.inlet.take(0)
        if frame is None:
            return None
        self.frames.append(frame)
        return int.from_bytes(bytes(memoryview(frame)), "little"), frame.seq, frame.redelivered

    def take_all(self) -> list[tuple[int, int, bool]]:
        """Every frame that is there, each returned before the next."""
        found = []
        while (frame := self.take()) is not None:
            found.append(frame)
            self.give_back(1)
        return found

    def give_back(self, count: int) -> None:
        for frame in self.frames[:count]:
            frame.release()
        del self.frames[:count]

    def close(self) -> None:
        for frame in self.frames:
            frame.release()
        self.inlet = None
        for end in (*self.producers.values(), *self.consumers.values()):
            end.close()
        self.arena.close()
        self.bell.close()
        self.__dict__.clear()


class HandedOver:
    """A wiring that another one goes on with before each step, from what is packed of it. The earlier ones keep their
    descriptors until the end, as the daemon's old image does."""

    def __init__(self, wiring: FlowWiring) -> None:
        self._all = [wiring]

    def sendable(self, descriptors: tuple[int | LineEnd, ...]) -> list[int]:
        """What is to be sent is sent before anything is handed over."""
        return self._all[-1].sendable(descriptors)

    def __getattr__(self, name: str) -> Any:
        bag = Bag()
        packed = msgspec.msgpack.encode(self._all[-1].packed(bag))
        following = FlowWiring(("source", "sink"), self._all[-1].routes)
        following.unpack(msgspec.msgpack.decode(packed, type=PackedWiring), Unbag(bag.descriptors))
        self._all.append(following)
        return getattr(following, name)

    def close(self) -> None:
        for wiring in self._all:
            wiring.close()


class Play:
    """A flow source → sink whose wiring's messages are carried out at once."""

    def __init__(self, handed_over: bool = False, policy: Policy = "block") -> None:
        self.policy: Policy = policy
        wiring = FlowWiring(("source", "sink"), (ROUTE._replace(policy=policy),))
        self.wiring: Any = HandedOver(wiring) if handed_over else wiring
        self.lives: dict[str, Life] = {}
        self.dead: list[Life] = []
        self.sent: list[tuple[str, Any]] = []
        for node in ("source", "sink"):
            self.born(node)
            self.offers(node)
        for node in ("sink", "source"):
            self.starts(node)

    def born(self, node: str) -> Life:
        inputs = [Port(route="r", peer="source", credits=CREDITS, policy=self.policy)] if node == "sink" else []
        outputs = [Port(route="r", peer="sink", credits=CREDITS, policy=self.policy)] if node == "source" else []
        told = Configure(
            flow="f", node=node, plugin_id=node, version="1", kind="Python", uri="x", inputs=inputs, outputs=outputs
        )
        self.lives[node] = Life(self.wiring.configure(node, told))
        return self.lives[node]

    def offers(self, node: str, extend: Extend | None = None) -> None:
        message, fds = self.lives[node].offer(extend)
        self.wiring.offer(node, message, fds)
        assert fds == []
        self.carry_out(self.wiring.due(node))

    def starts(self, node: str) -> None:
        self.carry_out(self.wiring.ready(node))
        self.carry_out(self.wiring.relink(node))
        assert self.wiring.relinked(node)
        assert not self.wiring.relinked(node)
        self.wiring.started(node)

    def dies(self, node: str) -> None:
        """Its ends are left as they are; nobody uses them again."""
        self.dead.append(self.lives.pop(node))
        self.carry_out(self.wiring.succeeded(node))

    def comes_back(self, node: str) -> Life:
        life = self.born(node)
        self.offers(node)
        self.starts(node)
        return life

    def carry_out(self, messages: list[ToNode]) -> None:
        given = [self.wiring.sendable(each.descriptors) if isinstance(each.message, Link) else [] for each in messages]
        for (node, message, _), descriptors in zip(messages, given, strict=True):
            self.sent.append((node, message))
            life = self.lives[node]
            if isinstance(message, Link):
                again = self.wiring.machine.table.nodes[node].answers
                life.link(message, descriptors)
                if again:
                    routes = [*message.outputs, *(each.route for each in message.inputs)]
                    self.carry_out(self.wiring.linked(node, Linked(routes=routes)))
            elif isinstance(message, Extend):
                self.offers(node, message)

    def tell_drained(self) -> None:
        sink = self.lives["sink"]
        while sink.drained:
            self.wiring.drained("sink", sink.drained.pop(0))

    def counted(self) -> tuple[int, int, int]:
        snapshot = self.wiring.snapshot(ROUTE)
        assert snapshot is not None
        return snapshot["committed"], snapshot["taken"], snapshot["returned"]

    def close(self) -> None:
        self.wiring.close()
        for life in (*self.lives.values(), *self.dead):
            life.close()


@pytest.fixture(params=[False, True], ids=["", "handed over"])
def play(request: pytest.FixtureRequest) -> Iterator[Play]:
    made = Play(request.param)
    yield made
    made.close()


@given(data=st.data())
def test_of_the_latest_frames_each_is_counted_once_whoever_dies_in_between(data: st.DataObject) -> None:
    """Taken, overwritten, or there still: at every moment, also while nobody is there to take."""
    played = data.draw(
        st.lists(st.one_of(st.integers(0, 20), st.sampled_from(("take", "die", "late death"))), max_size=12)
    )
    handed_over = data.draw(st.booleans())
    play = Play(handed_over, "latest")
    try:
        sent, got = 0, list[int]()

        def account(*, there: int | None = None) -> None:
            figures = play.wiring.snapshot(ROUTE._replace(policy="latest"))
            assert (figures["committed"], figures["taken"]) == (sent, len(got))
            left = sent - len(got) - figures["drops"]["overwritten"]
            assert 0 <= left <= CREDITS
            assert there is None or left == there

        for step in [*played, "take"]:
            if isinstance(step, int):
                play.lives["source"].send(*range(sent + 1, sent + step + 1))
                sent += step
            elif step == "take":
                got += [number for number, _, _ in play.lives["sink"].take_all()]
                account(there=0)
            else:
                play.dies("sink")
                account()
                play.born("sink")
                play.offers("sink")
                account()
                if step == "late death":
                    play.dies("sink")
                    account()
                    play.born("sink")
                    play.offers("sink")
                play.starts("sink")
            account()
        assert got == sorted(set(got))
    finally:
        play.close()


def plain(*numbers: int) -> list[tuple[int, int, bool]]:
    """Frames that came once: number, seq, redelivered."""
    return [(number, number - 1, False) for number in numbers]


def test_a_consumers_successor_gets_what_was_not_returned_and_the_producer_goes_on(play: Play) -> None:
    play.lives["source"].send(1, 2, 3, 4)
    sink = play.lives["sink"]
    assert [sink.take(), sink.take()] == plain(1, 2)
    sink.give_back(1)
    play.dies("sink")
    successor = play.comes_back("sink")
    assert successor.config.incarnation == 1
    assert successor.take_all() == [(2, 1, True), *plain(3, 4)]
    play.lives["source"].send(*range(5, 13))
    assert successor.take_all() == plain(*range(5, 13))
    assert play.counted() == (12, 13, 12)


def test_a_producers_successor_goes_on_in_a_ring_of_its_own_and_the_old_one_is_given_up(play: Play) -> None:
    play.lives["source"].send(1, 2, 3)
    sink = play.lives["sink"]
    assert sink.take() == (1, 0, False)
    play.dies("source")
    assert (
        "sink",
        Extend(inputs=[Port(route="r", peer="source", credits=CREDITS, epoch=1, base_seq=3, resume=3)]),
    ) in play.sent
    source = play.comes_back("source")
    assert source.config.outputs == [Port(route="r", peer="sink", credits=CREDITS, epoch=1, base_seq=3, resume=3)]
    source.send(4, 5)
    sink.give_back(1)
    assert sink.take_all() == plain(2, 3, 4, 5)
    play.tell_drained()
    assert [stage.epoch for stage in play.wiring.machine.table.chains["r"]] == [1]
    assert play.counted() == (5, 5, 5)


def test_a_producer_that_dies_again_and_again_loses_nothing(play: Play) -> None:
    sent = 0
    for _ in range(5):
        play.lives["source"].send(sent + 1, sent + 2)
        sent += 2
        play.dies("source")
        play.comes_back("source")
    sink = play.lives["sink"]
    assert sink.take_all() == plain(*range(1, sent + 1))
    play.tell_drained()
    assert play.counted() == (sent, sent, sent)
    assert len(play.wiring.machine.table.chains["r"]) == 1


@pytest.mark.parametrize("first", ["source", "sink"])
def test_when_both_ends_die_the_successor_drains_every_stage(first: str, play: Play) -> None:
    play.lives["source"].send(1, 2, 3)
    sink = play.lives["sink"]
    sink.take()
    sink.take()
    sink.give_back(1)
    second = "sink" if first == "source" else "source"
    play.dies(first)
    play.dies(second)
    successor = play.born("sink")
    assert [(port.epoch, port.base_seq) for port in successor.config.inputs] == [(0, 0), (1, 3)]
    play.born("source")
    play.offers("sink")
    play.offers("source")
    play.starts("sink")
    play.starts("source")
    play.lives["source"].send(4)
    assert successor.take_all() == [(2, 1, True), *plain(3, 4)]
    play.tell_drained()
    assert play.counted() == (4, 5, 4)


def test_what_a_stage_has_counted_is_not_lost_when_there_is_no_memory_to_look_at_its_new_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(ring: int, credit: int) -> Any:
        raise MemoryError("by the test")

    play = Play()
    play.lives["source"].send(1, 2, 3)
    assert play.lives["sink"].take_all() == plain(1, 2, 3)
    play.lives["source"].send(4)
    with monkeypatch.context() as short:
        short.setattr("chronetixd.dataplane.wiring.shm.RouteView", refused)
        for node in ("source", "sink"):
            play.dies(node)
        for node in ("sink", "source"):
            play.born(node)
        for node in ("sink", "source"):
            play.offers(node)
        for node in ("sink", "source"):
            play.starts(node)
        play.lives["source"].send(5)
        assert play.lives["sink"].take_all() == plain(4, 5)
        play.tell_drained()
    assert len(play.wiring.machine.table.chains["r"]) == 1
    committed, _, returned = play.counted()
    assert (committed, returned) == (5, 5)
    play.close()


def test_a_consumer_that_dies_with_two_stages_leaves_both_to_its_successor(play: Play) -> None:
    play.lives["source"].send(1, 2)
    play.dies("source")
    play.comes_back("source").send(3, 4)
    sink = play.lives["sink"]
    assert [sink.take() for _ in range(3)] == plain(1, 2, 3)
    play.dies("sink")
    successor = play.comes_back("sink")
    assert successor.take_all() == [(1, 0, True), (2, 1, True), (3, 2, True), *plain(4)]
    play.tell_drained()
    assert play.counted()[0] == play.counted()[2] == 4


def test_a_successor_that_dies_before_it_started_leaves_everything_to_the_next(play: Play) -> None:
    play.lives["source"].send(1, 2, 3)
    sink = play.lives["sink"]
    sink.take()
    sink.take()
    play.dies("sink")
    play.born("sink")
    play.offers("sink")
    play.dies("sink")
    assert play.comes_back("sink").take_all() == [(1, 0, True), (2, 1, True), *plain(3)]


def test_a_successor_that_never_offered_changes_nothing(play: Play) -> None:
    play.lives["source"].send(1)
    for node in ("source", "sink"):
        play.dies(node)
        play.born(node)
        play.dies(node)
        play.comes_back(node)
    assert [stage.epoch for stage in play.wiring.machine.table.chains["r"]] == [0, 1]
    assert play.lives["sink"].take_all() == plain(1)


def test_a_ring_that_nobody_was_linked_to_is_not_a_stage(play: Play) -> None:
    play.dies("sink")
    play.dies("source")
    play.born("source")
    play.offers("source")
    play.dies("source")
    assert [stage.epoch for stage in play.wiring.machine.table.chains["r"]] == [0, 1]
    assert play.wiring.machine.table.chains["r"][-1].ring is None


def test_a_producer_that_is_told_of_two_successors_holds_the_second_up_until_it_has_answered_both(play: Play) -> None:
    play.dies("sink")
    play.born("sink")
    play.offers("sink")
    play.wiring.ready("sink")
    play.wiring.relink("sink")
    assert not play.wiring.relinked("sink")
    play.dies("sink")
    play.born("sink")
    play.offers("sink")
    play.wiring.ready("sink")
    play.wiring.relink("sink")
    play.wiring.linked("source", Linked(routes=["r"]))
    assert not play.wiring.relinked("sink")
    play.wiring.linked("source", Linked(routes=["r"]))
    assert play.wiring.relinked("sink")


def test_a_successor_does_not_wait_for_a_producer_that_dies_too(play: Play) -> None:
    play.dies("sink")
    play.born("sink")
    play.offers("sink")
    play.wiring.ready("sink")
    play.wiring.relink("sink")
    assert not play.wiring.relinked("sink")
    play.dies("source")
    assert play.wiring.relinked("sink")


@pytest.mark.parametrize("before", [True, False])
def test_a_successor_does_not_wait_for_a_producer_that_has_ended(before: bool, play: Play) -> None:
    play.dies("sink")
    if before:
        play.wiring.gone("source")
    play.born("sink")
    play.offers("sink")
    play.wiring.ready("sink")
    play.wiring.relink("sink")
    if not before:
        assert not play.wiring.relinked("sink")
        play.wiring.gone("source")
    assert play.wiring.relinked("sink")


def test_growth_waits_for_the_successor_of_a_consumer_that_died_before_it_had_mapped(play: Play) -> None:
    play.wiring.grow("source", Segment(index=1), [os.dup(play.lives["source"].arena.segments[0][1])])
    play.dies("sink")
    life = play.born("sink")
    message, fds = life.offer()
    play.wiring.offer("sink", message, fds)
    (link,) = play.wiring.due("sink")
    assert isinstance(link.message, Link)
    assert link.message.inputs[0].segments == [0, 1]
    assert [(each.node, each.message) for each in play.wiring.ready("sink")] == [("source", SegmentMapped(index=1))]


def test_a_mapping_of_a_dead_producers_segment_is_old_news(play: Play) -> None:
    play.wiring.grow("source", Segment(index=1), [os.dup(play.lives["source"].arena.segments[0][1])])
    play.dies("source")
    assert play.wiring.mapped("sink", SegmentMapped(index=1, route="r")) == []


@pytest.mark.parametrize(
    "drained", [Drained(route="r", epoch=0), Drained(route="r", epoch=7), Drained(route="x", epoch=0)]
)
def test_only_a_stage_whose_producer_is_dead_can_be_drained(drained: Drained, play: Play) -> None:
    with pytest.raises(ChronetixError, match="no stage that node 'sink' has to drain"):
        play.wiring.drained("sink", drained)


def test_an_answer_to_no_link_is_refused(play: Play) -> None:
    with pytest.raises(ChronetixError, match="no link is to be answered"):
        play.wiring.linked("source", Linked(routes=["r"]))


def test_a_producer_whose_consumer_is_gone_for_good_gets_no_output(play: Play) -> None:
    play.carry_out([message for message in play.wiring.gone("sink") if isinstance(message.message, Link)])
    play.dies("source")
    assert play.born("source").config.outputs == []


def test_a_ring_that_makes_no_sense_is_told_to_the_caller() -> None:
    def nonsense(_fd: int) -> tuple[int, int]:
        raise shm.PeerFault("stamp 9 in slot 3", None)

    play = Play()
    try:
        play.wiring.machine.table.reader._remains = nonsense
        with pytest.raises(shm.PeerFault, match="stamp 9"):
            play.wiring.succeeded("source")
    finally:
        play.close()


@pytest.mark.parametrize("dies", [False, True])
def test_a_route_that_is_removed_and_whose_ring_makes_no_sense_is_its_producers_fault(dies: bool) -> None:
    def nonsense(_fd: int) -> tuple[int, int]:
        raise shm.PeerFault("stamp 9 in slot 3", None)

    play = Play()
    try:
        told = {node: msgspec.structs.replace(life.config, inputs=[], outputs=[]) for node, life in play.lives.items()}
        (asked,) = play.wiring.revise((), told, (), ())
        assert (asked.node, asked.message) == ("source", Extend(leave=["r"]))
        play.wiring.machine.table.reader._remains = nonsense
        if dies:
            with pytest.raises(shm.PeerFault, match="stamp 9"):
                play.wiring.gone("source")
        else:
            with pytest.raises(ChronetixError, match="stamp 9"):
                play.wiring.offer("source", Offer(), [])
            assert play.wiring.under_way == ["source"], "nothing of it was taken"
    finally:
        play.close()


def test_what_an_earlier_life_had_taken_stays_marked_over_several_deaths(play: Play) -> None:
    play.lives["source"].send(1, 2, 3)
    sink = play.lives["sink"]
    assert [sink.take() for _ in range(3)] == plain(1, 2, 3)
    play.dies("sink")
    assert play.comes_back("sink").take() == (1, 0, True)
    play.dies("sink")
    assert play.comes_back("sink").take_all() == [(1, 0, True), (2, 1, True), (3, 2, True)]
