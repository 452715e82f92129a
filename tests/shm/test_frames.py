"""What a received frame is: a read-only buffer that gives its credit back exactly once."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from chronetix import shm
from tests.shm.lines import join


def test_a_frame_carries_what_was_sent_and_its_tags(route):
    route.outlet.send(b"payload", schema=7, deadline_ns=8, trace=9, input_seq=10)
    frame = route.take()
    assert bytes(frame) == b"payload"
    assert len(frame) == 7
    assert (frame.schema, frame.deadline_ns, frame.trace, frame.input_seq) == (7, 8, 9, 10)
    assert (frame.route, frame.port, frame.seq, frame.redelivered) == ("r0", 0, 0, False)
    assert frame.time_ns > 0
    assert repr(frame) == "<shm.Frame 0 of route r0, 7 bytes>"


def test_numbers_continue_from_the_base(make_route):
    route = make_route(base_seq=1000)
    assert route.outlet.send(b"") == 1000
    assert route.producer.position == 1001
    assert route.take().seq == 1000


@pytest.mark.parametrize(
    "data",
    [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), np.frombuffer(b"bytes", np.uint8)],
    ids=["bytes", "bytearray", "memoryview", "numpy"],
)
def test_anything_with_a_contiguous_buffer_can_be_sent(route, data):
    route.outlet.send(data)
    assert bytes(route.take()) == b"bytes"


def test_a_many_dimensional_array_is_sent_as_its_bytes(route):
    array = np.arange(24, dtype="<i4").reshape(2, 3, 4)
    route.outlet.send(array)
    assert np.array_equal(route.take().numpy("<i4"), np.arange(24))


@pytest.mark.parametrize("data", [np.arange(10)[::2], "text", 7, None])
def test_what_is_no_contiguous_buffer_is_refused_and_costs_nothing(route, data):
    with pytest.raises((TypeError, ValueError, BufferError)):
        route.outlet.send(data)
    assert route.producer.credits == 8
    assert route.arena.used == 0


def test_an_empty_frame_is_a_frame(route):
    route.outlet.send(b"")
    frame = route.take()
    assert len(frame) == 0
    assert bytes(frame) == b""
    assert frame.numpy("<f8").shape == (0,)
    assert route.arena.used == 0


def test_a_frame_cannot_be_written(route):
    route.outlet.send(b"abc")
    frame = route.take()
    assert memoryview(frame).readonly
    with pytest.raises(TypeError):
        memoryview(frame)[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        frame.numpy()[0] = 1


def test_numpy_is_in_place_and_refuses_a_broken_multiple(route):
    route.outlet.send(np.arange(5, dtype="<f8"))
    frame = route.take()
    array = frame.numpy("<f8")
    assert array.tolist() == [0, 1, 2, 3, 4]
    assert array.__array_interface__["data"][0] % 64 == 0
    assert frame.numpy().nbytes == 40
    with pytest.raises(ValueError, match="multiple"):
        frame.numpy("V3")


def test_arrow_is_in_place(route):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"n": list(range(1000)), "s": [str(i) for i in range(1000)]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    route.outlet.send(sink.getvalue())
    frame = route.take()
    start = frame.numpy().__array_interface__["data"][0]
    received = frame.arrow()
    assert received.equals(table)
    inside = received.column("n").chunk(0).buffers()[1].address
    assert start <= inside < start + len(frame)
    frame.release()
    assert route.consumer.held == 1
    del received
    assert route.consumer.held == 0


def test_dropping_a_frame_returns_its_credit(route):
    route.outlet.send(b"x")
    frame = route.take()
    assert route.consumer.held == 1
    del frame
    assert route.consumer.held == 0
    assert route.producer.credits == 8


def test_dropping_the_last_view_returns_the_credit(route):
    route.outlet.send(bytes(range(10)))
    array = route.take().numpy()[2:5]
    gc.collect()
    assert route.consumer.held == 1
    assert array.tolist() == [2, 3, 4]
    del array
    assert route.consumer.held == 0


def test_release_waits_for_the_views_and_is_idempotent(route):
    route.outlet.send(b"abc")
    frame = route.take()
    view = memoryview(frame)
    frame.release()
    frame.release()
    assert frame.released
    assert route.consumer.held == 1
    assert bytes(view) == b"abc"
    with pytest.raises(ValueError, match="frame 0 of route r0 was released"):
        memoryview(frame)
    view.release()
    assert route.consumer.held == 0
    frame.release()
    del frame
    assert route.consumer.held == 0
    assert route.view()["returned"] == 1


def test_frames_may_be_returned_in_any_order(route):
    for i in range(8):
        route.outlet.send(bytes([i]))
    frames = [route.take() for _ in range(8)]
    for i in (3, 7, 0, 1, 6, 2, 5, 4):
        frames[i].release()
        assert route.producer.credits == 8 - sum(not frame.released for frame in frames)
    assert route.arena.used == 0


def test_a_frame_held_for_long_costs_one_credit_only(make_route):
    route = make_route(credits=3)
    route.outlet.send(b"kept")
    kept = route.take()
    for i in range(500):
        route.outlet.send(b"%d" % i, 0)
        route.outlet.send(b"+%d" % i, 0)
        assert [bytes(route.take()), bytes(route.take())] == [b"%d" % i, b"+%d" % i]
    assert bytes(kept) == b"kept"
    seen = route.view()
    assert seen["skipped"] > 100
    assert (seen["committed"], seen["taken"], seen["returned"]) == (1001, 1001, 1000)
    assert route.producer.position == 1001 + seen["skipped"]


def test_a_frame_outlives_its_consumer_and_its_route(make_route):
    route = make_route()
    route.outlet.send(b"still here")
    frame = route.take()
    route.consumer.close()
    route.producer.close()
    del route
    gc.collect()
    assert bytes(frame) == b"still here"
    frame.release()


def test_value_is_what_the_consumer_decodes():
    arena, bell = shm.Arena(), shm.Doorbell()
    consumer = shm.Consumer("r", peer="source", decode=lambda frame: bytes(frame).decode())
    producer = shm.Producer(arena, "r")
    join(producer, bell, consumer, bell)
    consumer.add_segment(0, arena.segments[0][1])
    shm.Outlet([producer], bell).send("grüezi".encode())
    frame = shm.Inlet([consumer], bell).take()
    assert frame.value() == "grüezi"
    assert frame.peer == "source"


def test_value_without_a_decoder_is_a_view(route):
    route.outlet.send(b"raw")
    value = route.take().value()
    assert isinstance(value, memoryview)
    assert value == b"raw"


def test_frames_and_loans_are_not_made_by_hand():
    for made in (shm.Frame, shm.Loan):
        with pytest.raises(TypeError, match="cannot create"):
            made()
