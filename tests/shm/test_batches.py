"""Many small frames at once: they go out in runs and come in as batches, and are frames all the same."""

from __future__ import annotations

import numpy as np
import pytest

from chronetix import shm
from tests.shm.lines import attach


def records(count: int, size: int = 64) -> np.ndarray:
    """Numbered records; the rest of each is its number's low byte."""
    made = np.repeat(np.arange(count, dtype=np.uint8)[:, None], size, axis=1)
    made[:, : min(size, 4)] = np.arange(count, dtype="<u4")[:, None].view(np.uint8)[:, : min(size, 4)]
    return made


@pytest.mark.parametrize("size", [1, 63, 64, 100, 128, 5000, 20_000])
def test_each_record_is_a_frame_of_its_own(route, size):
    data = records(8, size)
    assert route.outlet.send_many(data, size, schema=3, trace=4, deadline_ns=5, input_seq=6) == 8
    frames = [route.take() for _ in range(8)]
    assert [frame.seq for frame in frames] == list(range(8))
    assert [bytes(frame) for frame in frames] == [bytes(row) for row in data]
    assert {(f.schema, f.trace, f.deadline_ns, f.input_seq) for f in frames} == {(3, 4, 5, 6)}
    assert all(frame.numpy().__array_interface__["data"][0] % 64 == 0 for frame in frames)


def test_no_records_are_no_frames(route):
    assert route.outlet.send_many(b"", 64) == 0
    assert route.producer.position == 0


@pytest.mark.parametrize(("data", "size"), [(b"abc", 2), (b"abc", 0), (b"abc", -3)])
def test_what_is_no_whole_number_of_records_is_refused_and_costs_nothing(route, data, size):
    with pytest.raises(ValueError, match=r"size|whole number"):
        route.outlet.send_many(data, size)
    assert (route.producer.credits, route.arena.used) == (8, 0)


def test_when_the_time_is_up_it_says_how_many_have_gone(route):
    data = records(12)
    assert route.outlet.send_many(data, 64, 0) == 8
    with pytest.raises(shm.WouldBlock):
        route.outlet.send_many(data[8:], 64, 0)
    assert len(route.drain()) == 8
    assert route.outlet.send_many(data[8:], 64, 0) == 4
    assert route.drain() == [bytes(row) for row in data[8:]]


def test_a_timeout_counts_for_all_runs_together(route):
    assert route.outlet.send_many(records(12), 64, 1_000_000) == 8


class Leaver:
    """Is told of a new segment as a consumer is, and has one of them detach."""

    def __init__(self, consumer: shm.Consumer) -> None:
        self.consumer = consumer

    def add_segment(self, index: int, fd: int) -> None:
        self.consumer.close()


def test_an_end_that_is_found_half_way_is_told_by_the_next_call(make_route):
    """The arena grows half-way, and then a consumer detaches."""
    route = make_route(credits=64, policies=("block", "block"), limit=1 << 20)
    route.consumers.append(Leaver(route.consumers[0]))
    data = records(32, 8192)
    sent = route.outlet.send_many(data, 8192)
    assert 0 < sent < 32
    with pytest.raises(shm.RouteClosed) as told:
        route.outlet.send_many(data[sent:], 8192)
    assert told.value.args[1] == "r0"
    assert route.outlet.send_many(data[sent:], 8192) == 32 - sent
    assert route.drain() == [bytes(row) for row in data]
    route.consumers[1].close()
    with pytest.raises(shm.RouteClosed):
        route.outlet.send_many(data, 8192)


def test_every_route_gets_every_record_and_the_memory_once(make_route):
    route = make_route(credits=[8, 4], policies=("block", "block"))
    data = records(4)
    assert route.outlet.send_many(data, 64) == 4
    assert route.arena.used == 256
    seen = {}
    while (frame := route.inlet.take(0)) is not None:
        seen.setdefault(frame.port, []).append(bytes(frame))
    assert seen == {0: [bytes(row) for row in data], 1: [bytes(row) for row in data]}
    del frame
    assert route.arena.used == 0


def test_a_route_that_may_drop_drops_what_it_has_no_credit_for(make_route):
    route = make_route(credits=[8, 3], policies=("block", "drop_newest"))
    assert route.outlet.send_many(records(8), 64) == 8
    assert route.view(0)["committed"] == 8
    assert (route.view(1)["committed"], route.view(1)["dropped"]) == (3, 5)


def test_a_run_shares_its_memory_until_its_last_frame_is_back(route):
    route.outlet.send_many(records(8), 64)
    assert route.arena.used == 512
    frames = [route.take() for _ in range(8)]
    keep = frames.pop(3)
    frames.clear()
    assert route.arena.used == 512
    assert bytes(keep) == bytes(records(8)[3])
    keep.release()
    assert route.arena.used == 0


def test_runs_shrink_to_the_room_that_is_left_and_the_arena_grows(make_route):
    route = make_route(credits=512, limit=1 << 20, first=1 << 16)
    data = records(256, 2048)
    assert route.outlet.send_many(data, 2048) == 256
    assert route.drain() == [bytes(row) for row in data]


def test_a_full_arena_sends_what_fits(make_route):
    route = make_route(credits=512, limit=1 << 16)
    sent = route.outlet.send_many(records(256, 2048), 2048, 0)
    assert 0 < sent < 256
    with pytest.raises(shm.WouldBlock, match="no room"):
        route.outlet.send_many(records(256, 2048), 2048, 0)
    assert len(route.drain()) == sent


# ---- batches ------------------------------------------------------------------------------------------------


def test_a_batch_has_the_frames_that_are_there_up_to_its_limit(route):
    data = records(8)
    route.outlet.send_many(data, 64)
    first, second = route.inlet.take_many(5, 0), route.inlet.take_many(5, 0)
    assert (len(first), len(second)) == (5, 3)
    assert (first.seq, second.seq, first.route, first.port) == (0, 5, "r0", 0)
    assert [bytes(frame) for frame in first] + [bytes(frame) for frame in second] == [bytes(row) for row in data]
    assert route.inlet.take_many(5, 0) is None
    assert repr(second) == "<shm.Batch of 3 frames from 5 of route r0>"


def test_frames_sent_one_by_one_come_as_a_batch_too(route):
    payloads = [b"", b"a", b"bc" * 100, b""]
    for payload in payloads:
        route.outlet.send(payload)
    batch = route.inlet.take_many(100, 0)
    assert [bytes(frame) for frame in batch] == payloads
    assert batch.numpy().tobytes() == b"".join(payloads)
    assert batch.nbytes == 201


def test_adjacent_records_are_one_array_in_place(route):
    route.outlet.send_many(records(8), 64)
    batch = route.inlet.take_many(8, 0)
    array = batch.numpy("<u4")
    assert array[::16].tolist() == list(range(8))
    assert array.__array_interface__["data"][0] == batch[0].numpy().__array_interface__["data"][0]
    assert batch.adjacent
    assert memoryview(batch).nbytes == batch.nbytes == 512
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="multiple"):
        batch.numpy("V7")


def test_records_that_are_not_adjacent_are_copied(route):
    data = records(8, 100)
    route.outlet.send_many(data, 100)
    batch = route.inlet.take_many(8, 0)
    assert not batch.adjacent
    with pytest.raises(BufferError, match="not adjacent"):
        memoryview(batch)
    array = batch.numpy()
    batch.release()
    assert route.consumer.held == 0, "the copy holds nothing"
    assert array.tobytes() == data.tobytes()


def test_a_batch_of_empty_frames_is_an_empty_array(route):
    route.outlet.send(b"")
    assert route.inlet.take_many(2, 0).numpy("<f8").shape == (0,)


def test_credits_go_back_together_when_the_last_view_is_gone(route):
    route.outlet.send_many(records(8), 64)
    batch = route.inlet.take_many(8, 0)
    array, frame = batch.numpy(), batch[7]
    batch.release()
    assert batch.released
    with pytest.raises(ValueError, match="released"):
        batch[0]
    with pytest.raises(ValueError, match="released"):
        batch.numpy()
    assert route.consumer.held == 8
    del array
    assert route.consumer.held == 8
    assert frame.numpy()[-1] == 7
    frame.release()
    frame.release()
    assert (route.consumer.held, route.producer.credits) == (0, 8)
    with pytest.raises(ValueError, match="released"):
        memoryview(frame)


def test_dropping_everything_returns_the_credits(route):
    route.outlet.send_many(records(8), 64)
    view = memoryview(route.inlet.take_many(8, 0)[2])
    assert route.consumer.held == 8
    assert view[4] == 2
    del view
    assert route.consumer.held == 0


def test_a_frame_of_a_batch_that_is_released_leaves_the_batch_as_it_is(route):
    route.outlet.send_many(records(8), 64)
    batch = route.inlet.take_many(8, 0)
    batch[0].release()
    assert route.consumer.held == 8
    assert bytes(batch[0]) == bytes(records(8)[0])


@pytest.mark.parametrize("index", [8, -9, 100])
def test_there_is_no_frame_beyond_the_last(route, index):
    route.outlet.send_many(records(8), 64)
    batch = route.inlet.take_many(8, 0)
    with pytest.raises(IndexError):
        batch[index]
    assert bytes(batch[-1]) == bytes(records(8)[7])


def test_routes_take_turns_with_a_batch_each(make_route):
    route = make_route(credits=8, policies=("block", "block"))
    for _ in range(2):
        route.outlet.send_many(records(4), 64)
    taken = [(batch.port, len(batch)) for batch in iter(lambda: route.inlet.take_many(5, 0), None)]
    assert taken == [(0, 5), (1, 5), (0, 3), (1, 3)]


def test_a_batch_larger_than_its_first_step(make_route):
    route = make_route(credits=1000)
    data = records(200)
    for _ in range(3):
        route.outlet.send_many(data, 64)
    assert len(route.inlet.take_many(500, 0)) == 500
    assert len(route.inlet.take_many(1 << 40, 0)) == 100


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(route, limit):
    with pytest.raises(ValueError, match="at least 1"):
        route.inlet.take_many(limit)


def test_latencies_of_a_run_are_counted_for_each_frame(route):
    route.outlet.send_many(records(8), 64)
    route.inlet.take_many(8, 0)
    view = route.view()
    assert (view["taken"], view["returned"], view["bytes"]) == (8, 8, 512)
    assert view["p50_ns"] > 0


def test_a_lie_in_the_middle_of_a_batch_is_found_after_what_was_true(forge):
    ring = forge.ring()
    bell, far_bell = shm.Doorbell(), shm.Doorbell()
    consumer = shm.Consumer("r", credits=4)
    attach(consumer.link, ring.fd, bell)
    ring.describe(0)
    ring.describe(1)
    ring.describe(2, flags=4)
    inlet = shm.Inlet([consumer], far_bell)
    assert len(inlet.take_many(4, 0)) == 2
    with pytest.raises(shm.PeerFault, match="flags"):
        inlet.take_many(4, 0)
    assert inlet.ended


# ---- between processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("credits", "run", "limit"), [(1, 5, 3), (8, 64, 64), (64, 50, 7), (256, 64, 64)])
def test_runs_and_batches_of_any_length_wake_each_other(spawn, credits, run, limit):
    """Both ends wait for the other all the time; every frame is echoed once, in order."""
    count = 4000

    def echo(end):
        expected = 0
        while expected < count:
            batch = end.inlet.take_many(limit)
            if batch is None:
                continue
            numbers = batch.numpy("<u8")[::8]
            assert numbers.tolist() == list(range(expected, expected + len(batch)))
            expected += len(batch)
            answer = bytes(batch.numpy())
            del numbers, batch
            end.outlet.send_many(answer, 64)
        end.hear()

    child = spawn(echo, credits=credits)
    data = np.zeros((count, 8), "<u8")
    data[:, 0] = np.arange(count)
    end = child.end
    sent = received = 0
    while received < count:
        while sent < min(count, received + credits):
            sent += end.outlet.send_many(data[sent : min(sent + run, received + credits, count)], 64)
        batch = end.inlet.take_many(limit)
        if batch is None:
            continue
        assert batch.numpy("<u8")[::8].tolist() == list(range(received, received + len(batch)))
        received += len(batch)
        del batch
    end.say()
    child.join()


def test_one_long_send_flows_through_few_credits(spawn):
    def swallow(end):
        total = 0
        while not end.inlet.ended:
            batch = end.inlet.take_many(16)
            if batch is not None:
                total += int(batch.numpy("<u8").sum())
                batch.release()
        end.outlet.send(total.to_bytes(8, "little"))

    child = spawn(swallow, credits=10)
    data = np.zeros((5000, 8), "<u8")
    data[:, 0] = np.arange(5000)
    assert child.end.outlet.send_many(data, 64) == 5000
    child.end.producer.close()
    assert int.from_bytes(child.end.next(), "little") == sum(range(5000))
    child.join()
