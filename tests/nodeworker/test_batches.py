"""Plugins that send and take many small records at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chronetix import testing
from chronetix.nodeworker.inprocess.deployment import Deployment
from chronetix.nodeworker.inprocess.member import FlowFailed
from chronetix.protocol.messages import Configure, Port
from chronetix.shm import WouldBlock

OCTETS = "application/octet-stream"
RECORD = np.dtype([("number", "<i8"), ("square", "<i8"), ("rest", "V48")])
COUNT = 1000


def records(first: int, count: int) -> np.ndarray:
    made = np.zeros(count, RECORD)
    made["number"] = np.arange(first, first + count)
    made["square"] = made["number"] ** 2
    return made


class Source:
    """Everything in a few calls, whatever the credits."""

    def produce(self, ctx):
        for first in range(0, COUNT, 250):
            assert ctx.send_many(records(first, 250), RECORD.itemsize) == 250
        return COUNT
        yield


class Double:
    """A map: a batch in, one frame of all its records out."""

    largest = 0

    def on_batch(self, batch, ctx):
        self.largest = max(self.largest, len(batch))
        array = batch.numpy(RECORD)
        return np.stack([array["number"], array["square"]], axis=1).tobytes()

    def on_stop(self, ctx):
        return self.largest


class Sum:
    """A sink of frames."""

    def __init__(self):
        self.numbers, self.squares, self.input_seqs = 0, 0, []

    def on_frame(self, frame, ctx):
        numbers, squares = frame.numpy("<i8").reshape(-1, 2).T
        self.numbers += int(numbers.sum())
        self.squares += int(squares.sum())
        self.input_seqs.append(frame.input_seq)

    def on_stop(self, ctx):
        return [self.numbers, self.squares, self.input_seqs]


SUM = [sum(range(COUNT)), sum(n * n for n in range(COUNT))]


def node(name, *, sees=(), feeds=(), credits=64, **fields):
    def port(route, peer):
        return Port(route=route, peer=peer, content_type=OCTETS, credits=credits, watermark=credits, credit_low=0)

    return Configure(
        flow="f",
        node=name,
        plugin_id=name,
        version="0",
        kind="Python",
        uri=f"test:{name}",
        inputs=[port(f"{peer}-{name}", peer) for peer in sees],
        outputs=[port(f"{name}-{peer}", peer) for peer in feeds],
        **fields,
    )


def run(plugins, *configs):
    deployment = Deployment(configs, find=lambda config: plugins[config.node])
    try:
        deployment.run()
        return deployment.results
    finally:
        deployment.close()


def test_a_batch_of_arrays_is_no_array_and_says_how_to_get_them():
    class Sink:
        def __init__(self):
            self.said, self.arrays = "", []

        def on_batch(self, batch, ctx):
            with pytest.raises(TypeError) as refused:
                batch.numpy()
            self.said = str(refused.value)
            self.arrays += [frame.numpy().tolist() for frame in batch]

        def on_stop(self, ctx):
            return [self.said, self.arrays]

    outcome = testing.run(Sink, [np.arange(2), np.ones((1, 1))], content_type="application/x-npy", sends=False)
    said, arrays = outcome.result
    assert (
        said
        == "each frame of route feed is encoded by itself: call [frame.numpy() for frame in batch], or frame.value()"
    )
    assert arrays == [[0, 1], [[1.0]]]


@pytest.mark.parametrize("credits", [7, 64, 2000])
def test_records_go_through_one_process_in_batches(credits):
    results = run(
        {"a": Source, "b": Double, "c": Sum},
        node("a", feeds=["b"], credits=credits),
        node("b", sees=["a"], feeds=["c"], credits=credits),
        node("c", sees=["b"], credits=credits),
    )
    assert results["c"][:2] == SUM
    assert results["c"][2][-1] == COUNT - 1, "what is made from a batch is made from its last frame"
    assert 1 < results["b"] <= min(credits, 256)


def test_a_batch_is_no_larger_than_the_node_asks_for():
    results = run(
        {"a": Source, "b": Double, "c": Sum},
        node("a", feeds=["b"]),
        node("b", sees=["a"], feeds=["c"], batch_hints={"preferred_rows": 5}),
        node("c", sees=["b"]),
    )
    assert results["b"] == 5


def test_records_go_through_processes_in_batches(daemon, configure):
    uri = f"python://{Path(__file__)}"
    results = daemon.run(
        configure("a", f"{uri}:Source", "ab>b", type=OCTETS),
        configure("b", f"{uri}:Double", "ab<a", "bc>c", type=OCTETS),
        configure("c", f"{uri}:Sum", "bc<b", type=OCTETS),
    )
    assert results["c"][:2] == SUM
    assert results["a"] == COUNT


def test_each_record_of_a_source_is_an_item():
    class Numbers:
        seen: list[int] = []

        def on_frame(self, frame, ctx):
            self.seen.append(frame.input_seq)

        def on_stop(self, ctx):
            return self.seen

    def source(ctx):
        ctx.send_many(bytes(64 * 5), 64)
        yield bytes(64)
        ctx.send_many(bytes(64 * 3), 64)

    results = run({"a": source, "b": Numbers}, node("a", feeds=["b"]), node("b", sees=["a"]))
    assert results["b"] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_send_of_many_that_must_not_wait_says_how_many_have_gone():
    def source(ctx):
        sent = [ctx.send_many(bytes(64 * 10), 64, timeout=0), ctx.send_many(bytes(64 * 10), 64, timeout=0)]
        with pytest.raises(WouldBlock):
            ctx.send_many(bytes(64 * 10), 64, timeout=0)
        return sent
        yield

    class Keep:
        def on_start(self, ctx):
            self.kept = []

        def on_frame(self, frame, ctx):
            self.kept.append(memoryview(frame))

        def on_stop(self, ctx):
            count = len(self.kept)
            self.kept.clear()
            return count

    results = run({"a": source, "b": Keep}, node("a", feeds=["b"], credits=16), node("b", sees=["a"], credits=16))
    assert results["a"][:2] == [10, 6]
    assert results["b"] == sum(results["a"]) == 16


class Both:
    def on_frame(self, frame, ctx): ...
    def on_batch(self, batch, ctx): ...


class Awaited:
    async def on_batch(self, batch, ctx): ...


@pytest.mark.parametrize(
    ("plugin", "fields", "why"),
    [
        (Both, {}, "on_frame and on_batch"),
        (Awaited, {}, "asynchronous"),
        (Double, {"qos": {"retry": 2}}, "qos.retry"),
    ],
)
def test_what_does_not_fit_batches_is_refused(plugin, fields, why):
    with pytest.raises(FlowFailed, match=why):
        run({"a": Source, "b": plugin}, node("a", feeds=["b"]), node("b", sees=["a"], **fields))
