"""Whose turn it is among many inputs: by class, by deadline, by turn; nobody starves, and one sleep is for all."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronetix import shm
from tests.shm.lines import join

QUOTA = {"best-effort": 1, "normal": 2, "high": 4, "realtime": 8}


class Inputs:
    """An inlet over many routes, each with an outlet of its own."""

    def __init__(self, make_route, count, *, credits=64, qos=()):
        self.route = make_route(policies=("block",) * count, credits=credits, qos=qos)
        self.inlet = self.route.inlet
        self.outlets = [shm.Outlet([producer], self.route.bell) for producer in self.route.producers]

    def send(self, port, **tags):
        self.outlets[port].send(b"", 0, **tags)

    def fill(self, ports=None):
        """Until no credit is left."""
        for port in range(len(self.outlets)) if ports is None else ports:
            while self.route.producers[port].credits:
                self.send(port)

    def take(self):
        frame = self.inlet.take(0)
        assert frame is not None
        port = frame.port
        frame.release()
        return port

    def ports(self, count):
        return [self.take() for _ in range(count)]

    def served(self, count, refill=None):
        """How often each input was served in ``count`` takes, while all (or ``refill``) have frames at all times."""
        seen = Counter()
        for _ in range(count):
            self.fill(refill)
            seen[self.take()] += 1
        return seen


@pytest.fixture
def inputs(make_route):
    return lambda *args, **settings: Inputs(make_route, *args, **settings)


class TestClasses:
    def test_the_highest_goes_first(self, inputs):
        four = inputs(4, qos=list(QUOTA))
        for port in range(4):
            four.send(port)
        assert four.ports(4) == [3, 2, 1, 0]

    def test_share_a_round_by_their_quota(self, inputs):
        four = inputs(4, qos=list(QUOTA))
        assert four.served(15 * 10) == {port: 10 * quota for port, quota in enumerate(QUOTA.values())}

    def test_a_class_that_has_nothing_costs_the_others_no_turn(self, inputs):
        four = inputs(4, qos=list(QUOTA))
        assert four.served(90, refill=[0, 3]) == {3: 80, 0: 10}

    def test_share_their_quota_in_turn(self, inputs):
        six = inputs(6, qos=["realtime", "normal"] * 3)
        assert six.served(300) == {0: 80, 2: 80, 4: 80, 1: 20, 3: 20, 5: 20}

    def test_a_burst_of_the_highest_lets_the_lowest_through_after_its_quota(self, inputs):
        two = inputs(2, qos=["best-effort", "realtime"])
        two.fill([1])
        two.send(0)
        assert two.ports(10).index(0) == 8

    def test_batches_count_as_one_take(self, inputs):
        two = inputs(2, qos=["normal", "high"])
        seen = []
        for _ in range(12):
            two.fill()
            batch = two.inlet.take_many(16, 0)
            seen.append((batch.port, len(batch)))
            batch.release()
        assert seen == ([(1, 16)] * 4 + [(0, 16)] * 2) * 2

    def test_the_end_is_seen_when_every_class_has_ended(self, inputs):
        two = inputs(2, qos=["best-effort", "realtime"])
        two.send(0)
        for producer in two.route.producers:
            producer.close()
        assert two.ports(1) == [0]
        assert two.inlet.take() is None
        assert two.inlet.ended

    def test_an_unknown_one_is_refused_by_name(self):
        with pytest.raises(ValueError, match="'high' or 'realtime', not 'urgent'"):
            shm.Consumer("r", qos="urgent")

    @given(
        classes=st.lists(st.sampled_from(list(QUOTA)), min_size=1, max_size=24),
        busy=st.sets(st.integers(0, 23), min_size=1),
    )
    @settings(max_examples=60, deadline=None)
    def test_nobody_starves_whatever_the_others_do(self, classes, busy):
        """A frame waits for at most a round for each input of its class."""
        consumers = [shm.Consumer(f"r{i}", credits=4, qos=qos) for i, qos in enumerate(classes)]
        arena, bell = shm.Arena(1 << 20, first=1 << 16), shm.Doorbell()
        producers = [shm.Producer(arena, f"r{i}", credits=4) for i in range(len(classes))]
        for producer, consumer in zip(producers, consumers, strict=True):
            join(producer, bell, consumer, bell)
        outlets, inlet = [shm.Outlet([producer], bell) for producer in producers], shm.Inlet(consumers, bell)
        ports = {port % len(classes) for port in busy}
        waits = dict.fromkeys(ports, 0)
        for _ in range(15 * len(classes) * 2):
            for port in ports:
                while producers[port].credits:
                    outlets[port].send(b"")
            frame = inlet.take(0)
            assert frame is not None
            for port in waits:
                waits[port] = 0 if port == frame.port else waits[port] + 1
            assert all(wait <= 15 * len(classes) for wait in waits.values())
            frame.release()


class TestDeadlines:
    def test_the_earliest_goes_first_within_its_class(self, inputs):
        four = inputs(4)
        four.send(0, deadline_ns=9000)
        assert four.ports(1) == [0]  # from now on deadlines are looked for
        for port, deadline in enumerate((400, 200, 0, 300)):
            four.send(port, deadline_ns=deadline)
        assert four.ports(4) == [1, 3, 0, 2]

    def test_a_higher_class_goes_before_any(self, inputs):
        three = inputs(3, qos=["normal", "normal", "high"])
        three.send(0, deadline_ns=5)
        three.take()
        three.send(0, deadline_ns=10)
        three.send(1, deadline_ns=5)
        three.send(2)
        assert three.ports(3) == [2, 1, 0]

    def test_equals_take_turns(self, inputs):
        three = inputs(3)
        three.send(0, deadline_ns=7)
        three.take()
        for _ in range(2):
            for port in range(3):
                three.send(port, deadline_ns=7)
        assert three.ports(6) == [1, 2, 0, 1, 2, 0]

    def test_a_frame_without_one_is_not_starved(self, inputs):
        three = inputs(3)
        seen = Counter()
        for _ in range(240):
            while three.route.producers[0].credits:
                three.send(0, deadline_ns=100)
            three.fill([1, 2])
            seen[three.take()] += 1
        assert seen[0] > 200
        assert min(seen[1], seen[2]) >= 9

    def test_are_not_looked_for_when_none_has_come_for_long(self, inputs):
        two = inputs(2)
        two.send(0, deadline_ns=7)
        two.take()
        two.served(600)
        for producer in two.route.producers:
            while producer.outstanding:
                two.take()
        two.send(1)
        two.take()
        two.send(0)
        two.send(1, deadline_ns=7)
        assert two.ports(2) == [0, 1]
        two.send(0, deadline_ns=9)
        two.send(1, deadline_ns=8)
        assert two.ports(2) == [1, 0]

    def test_of_many_inputs_hold_as_well(self, inputs):
        many = inputs(64, credits=4)
        many.send(63, deadline_ns=1)
        many.take()
        for port in range(64):
            many.send(port, deadline_ns=1000 - port)
        turns = many.ports(64)
        by_deadline = [port for at, port in enumerate(turns, 1) if at % 8]
        assert by_deadline == sorted(by_deadline, reverse=True)
        assert sorted(turns) == list(range(64))


class TestWhatAFrameHandsOn:
    def test_is_its_number_and_its_deadline(self, make_route):
        before, after = make_route(base_seq=40), make_route()
        before.outlet.send(b"", deadline_ns=500)
        frame = before.take()
        after.outlet.send(b"", origin=frame)
        after.outlet.send_many(b"ab", 1, origin=frame)
        with after.outlet.loan(1, origin=frame):
            pass
        got = [after.take() for _ in range(4)]
        assert [(f.input_seq, f.deadline_ns) for f in got] == [(40, 500)] * 4

    def test_only_ever_shortens_a_deadline(self, make_route):
        before, after = make_route(), make_route()
        for deadline in (0, 500, 700):
            before.outlet.send(b"", deadline_ns=deadline)
        frames = [before.take() for _ in range(3)]
        for frame in frames:
            after.outlet.send(b"", deadline_ns=600, origin=frame)
        assert [after.take().deadline_ns for _ in range(3)] == [600, 500, 600]

    def test_is_nothing_when_there_is_no_cause(self, route):
        route.outlet.send(b"", origin=None)
        assert (route.take().input_seq, route.view()["committed"]) == (0, 1)

    def test_a_budget_counts_from_the_commit_and_yields_to_an_earlier_deadline(self, route):
        outlet = shm.Outlet([route.producer], route.bell, budget_ns=1_000_000)
        outlet.send(b"")
        outlet.send(b"", deadline_ns=5)
        outlet.send(b"", deadline_ns=1 << 62)
        with outlet.loan(1):
            pass
        frames = [route.take() for _ in range(4)]
        assert [frame.deadline_ns - frame.time_ns for frame in frames if frame.deadline_ns != 5] == [1_000_000] * 3
        assert frames[1].deadline_ns == 5
        with pytest.raises(ValueError, match="must not be negative"):
            shm.Outlet([route.producer], route.bell, budget_ns=-1)


class TestManyInputs:
    @pytest.mark.parametrize("count", [31, 32, 64, 200])
    def test_are_served_equally_when_all_are_busy(self, inputs, count):
        many = inputs(count, credits=4)
        assert many.served(count * 12) == dict.fromkeys(range(count), 12)

    @pytest.mark.parametrize("busy", [[0], [63], [10, 40], [3, 4, 5, 60]])
    def test_one_that_wakes_up_among_busy_ones_is_served_within_one_round_of_all(self, inputs, busy):
        many = inputs(64, credits=16)
        many.served(100, refill=busy)
        for newcomer in set(range(64)) - set(busy):
            many.send(newcomer)
            turns = []
            for _ in range(65):
                many.fill(busy)
                turns.append(many.take())
            assert newcomer in turns

    @pytest.mark.parametrize("busy", [[10, 40], [1, 2, 3, 62]])
    def test_busy_ones_share_equally_while_the_rest_sleeps(self, inputs, busy):
        many = inputs(64, credits=16)
        seen = many.served(400 * len(busy), refill=busy)
        assert all(350 <= seen[port] <= 450 for port in busy)

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_every_frame_comes_once_in_its_order(self, data):
        """Whatever comes when, over so many inputs that sleepers are passed over."""
        count, arena, bell = 40, shm.Arena(1 << 20, first=1 << 16), shm.Doorbell()
        producers = [shm.Producer(arena, f"r{i}", credits=4) for i in range(count)]
        consumers = [shm.Consumer(f"r{i}", credits=4) for i in range(count)]
        for producer, consumer in zip(producers, consumers, strict=True):
            join(producer, bell, consumer, bell)
        outlets, inlet = [shm.Outlet([producer], bell) for producer in producers], shm.Inlet(consumers, bell)
        sent, got = Counter(), Counter()
        for port in data.draw(st.lists(st.integers(0, count - 1), max_size=150)):
            if producers[port].credits and data.draw(st.booleans()):
                outlets[port].send(b"", trace=sent[port])
                sent[port] += 1
                continue
            frame = inlet.take(0)
            assert (frame is None) == (sent == got)
            if frame is not None:
                assert frame.trace == got[frame.port]
                got[frame.port] += 1
                del frame
        while (frame := inlet.take(0)) is not None:
            got[frame.port] += 1
            del frame
        assert +sent == +got


class TestOneSleep:
    def test_wakes_for_a_frame_of_any_of_64_inputs_and_for_a_message_and_a_timer(self, inputs):
        """Whoever sleeps in ``take`` looks again after every ring; frames of all inputs ring, and so may anybody."""
        many = inputs(64, credits=4)
        asleep, woken = threading.Semaphore(0), []

        def sleeper():
            while not many.inlet.ended:
                asleep.release()
                frame = many.inlet.take()
                woken.append(None if frame is None else frame.port)
                del frame

        thread = threading.Thread(target=sleeper)
        thread.start()
        for port in range(64):
            asleep.acquire()
            many.send(port)
        asleep.acquire()
        many.route.far_bell.ring()  # as the IO thread does for a message or a tick
        asleep.acquire()
        for producer in many.route.producers:
            producer.close()
        thread.join()
        assert [port for port in woken if port is not None] == list(range(64))
        assert None in woken
