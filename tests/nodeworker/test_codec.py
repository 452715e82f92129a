"""Content types: values survive the way there and back, and failures name the place."""

from __future__ import annotations

import contextlib
import ctypes

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.nodeworker.api import codec
from chronetix.protocol.content import npy
from chronetix.protocol.errors import ChronetixError
from chronetix.testing import run

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.floats(allow_nan=False)
json_values = st.recursive(
    scalars.filter(lambda v: not isinstance(v, float) or abs(v) != float("inf")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
cbor_values = st.recursive(
    scalars | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Subclass(np.ndarray):
    """As matrices and memory maps are."""


@given(json_values)
def test_json_values_come_back(value):
    kind = codec.of("application/json")
    assert kind.decode(kind.encode(value)) == value


@given(cbor_values)
def test_cbor_values_come_back(value):
    kind = codec.of("application/cbor")
    assert kind.decode(kind.encode(value)) == value


@given(st.binary(), st.sampled_from([codec.OCTETS, "image/png"]))
def test_bytes_pass_as_they_are_where_bytes_are_carried(data, content_type):
    kind = codec.of(content_type)
    for form in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8), codec.Encoded(data)):
        assert kind.encode(form) == data


def table():
    return pa.table({"n": [1, 2]})


ENCODED = [
    (codec.JSON, b'{"a": 1}', {"a": 1}),
    (codec.ARROW, bytes(codec.of(codec.ARROW).encode(table())), table()),
    (codec.NPY, bytes(npy.dumps(np.arange(3))), [0, 1, 2]),
]


@pytest.mark.parametrize(("content_type", "data", "value"), ENCODED)
def test_bytes_are_encoded_already_where_the_type_has_no_bytes_and_are_looked_at(content_type, data, value):
    kind = codec.of(content_type)
    for form in (data, bytearray(data), memoryview(data), codec.Encoded(data)):
        assert kind.encode(form) == data
        read = kind.decode(kind.encode(form))
        assert (read.tolist() if content_type == codec.NPY else read) == value
    for form in (data[:-1], codec.Encoded(data[:-1]), b"", b"\x00\xff"):
        with pytest.raises(ChronetixError) as caught:
            kind.encode(form, "r")
        assert caught.value.name == "payload-unencodable"


def test_bytes_are_bytes_in_cbor_unless_they_say_that_they_are_encoded():
    kind = codec.of(codec.CBOR)
    document = kind.encode({1: "a"})
    for form in (document, bytearray(document), memoryview(document)):
        assert kind.decode(kind.encode(form)) == document
    assert kind.decode(kind.encode(codec.Encoded(document))) == {1: "a"}
    with pytest.raises(ChronetixError, match=r"end of stream|after the end"):
        kind.encode(codec.Encoded(document[:-1]))


@pytest.mark.parametrize(
    ("value", "memory"),
    [
        (np.arange(6, dtype="<u2")[::2], np.array([0, 2, 4], "<u2").tobytes()),
        (np.arange(6, dtype="u1").reshape(2, 3).T, bytes([0, 3, 1, 4, 2, 5])),
        (np.array(["2026"], "M8[Y]"), (56).to_bytes(8, "little")),
        (np.float64(1), b"\0\0\0\0\0\0\xf0?"),
        (memoryview(b"abcd")[::2], b"ac"),
        (np.arange(3, dtype=">i4"), b"\0\0\0\0\0\0\0\x01\0\0\0\x02"),
        (np.array(5, "<i4"), b"\x05\0\0\0"),
        (np.uint8(5), b"\x05"),
        (np.arange(4, dtype="u1").view(Subclass), bytes(range(4))),
        (np.rec.array([(1, True)], [("Open", "u1"), ("mask", "?")]), b"\x01\x01"),
        (memoryview(np.zeros(1, [("Open", "u1")])), b"\0"),
        (np.array([1j], "<c8"), b"\0\0\0\0\0\0\x80?"),
        (np.arange(4, dtype="u1")[::-1], bytes([3, 2, 1, 0])),
        (np.broadcast_to(np.uint8(7), (2, 2)), bytes([7] * 4)),
    ],
)
def test_the_memory_of_an_array_goes_row_by_row_whatever_its_layout(value, memory):
    assert codec.of(codec.OCTETS).encode(value) == memory
    assert run(lambda ctx: [value], content_type=codec.OCTETS).sent == [memory]


@pytest.mark.parametrize("value", [np.zeros((0, 3)), np.arange(4, dtype="u1")[::2], np.array(5, ">i4")])
def test_the_memory_of_an_array_goes_with_metadata_and_as_records_too(value):
    def send(ctx):
        ctx.send(value, meta={"n": 1})
        ctx.send_many(value, 1)
        return ()

    memory = np.asarray(value).tobytes()
    outcome = run(send, content_type=codec.OCTETS)
    assert outcome.sent == [memory, *(memory[at : at + 1] for at in range(len(memory)))]
    assert outcome.meta[0] == {"n": 1}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array([object()]), "pointers|objects"),
        (np.zeros(1, [("a", "O")]), "pointers|objects"),
        (np.array(object()), "pointers"),
        (memoryview(np.array([object()])), "pointers"),
        (np.ma.array([1, 2], mask=[0, 1]), r"lose its mask: send \.filled"),
        (np.ma.array([[1, 2], [3, 4]]).T, "lose its mask"),
        (np.ma.masked, "lose its mask"),
        (np.ma.array([(1,)], [("a", "i4")])[0], "lose its mask"),
        (codec.Encoded(np.array([object()])), "Encoded"),
        (ctypes.pointer(ctypes.c_int(1)), "pointers"),
        ((ctypes.c_char_p * 1)(b"text"), "pointers"),
        (np.str_("text"), r"send text\.encode\(\)"),
        (pa.array([1]), r"would lose its names, labels or nulls: send numpy\.asarray"),
        ("text", r"send text\.encode\(\)"),
        ({"a": 1}, "values need content_type application/json or application/cbor"),
    ],
)
def test_what_is_no_memory_for_others_is_refused(value, says):
    with pytest.raises(ChronetixError, match=says):
        codec.of(codec.OCTETS).encode(value, "r")


@given(st.binary(), st.sampled_from([codec.JSON, codec.CBOR, codec.ARROW, codec.NPY]))
def test_any_bytes_decode_or_are_refused(data, content_type):
    with contextlib.suppress(ChronetixError):
        codec.of(content_type).decode(data)


@pytest.mark.parametrize("content_type", [codec.JSON, codec.CBOR, codec.OCTETS, codec.ARROW, codec.NPY, "image/png"])
def test_what_has_no_form_is_refused_by_name(content_type):
    with pytest.raises(ChronetixError) as caught:
        codec.of(content_type).encode(object(), "route r")
    assert caught.value.name == "payload-unencodable"
    assert "route r" in caught.value.message


@pytest.mark.parametrize(
    ("given_type", "canonical"),
    [
        ("application/arrow+ipc", codec.ARROW),
        ("Application/JSON; charset=utf-8", codec.JSON),
        ("", codec.JSON),
        ("image/png", "image/png"),
    ],
)
def test_spellings_of_a_type_are_one(given_type, canonical):
    assert codec.canonical(given_type) == canonical


@pytest.mark.parametrize("content_type", [codec.JSON, codec.CBOR, codec.NPY, codec.ARROW, codec.OCTETS])
def test_records_are_looked_at_where_a_route_does_not_carry_bytes(content_type):
    class Source:
        def on_tick(self, tick, ctx):
            ctx.send_many(ctx.params["records"], ctx.params["size"])

    value = {codec.NPY: np.arange(3), codec.ARROW: table(), codec.OCTETS: b"12"}.get(content_type, [1, 2])
    record = codec.of(content_type).encode(value)
    params = {"records": 3 * record, "size": len(record)}
    assert len(run(Source, params=params, ticks=1, content_type=content_type).sent) == 3
    params["records"] = 2 * record + b"\xff" * len(record)
    if content_type == codec.OCTETS:
        assert len(run(Source, params=params, ticks=1, content_type=content_type).sent) == 3
        return
    with pytest.raises(ChronetixError) as caught:
        run(Source, params=params, ticks=1, content_type=content_type)
    assert caught.value.name == "payload-unencodable"
    assert "on route collector" in caught.value.message


class TestNumpyOfAFrame:
    def test_is_the_array_that_was_sent_on_cbor(self):
        def read(frame):
            array = frame.numpy()
            return [str(array.dtype), array.shape, array.tolist(), frame.numpy(array.dtype).tolist()]

        sent = np.arange(6, dtype="<i2").reshape(2, 3).T
        read_again = run(read, [sent], content_type=codec.CBOR).sent
        assert read_again == [["int16", [3, 2], sent.tolist(), sent.tolist()]]

    @pytest.mark.parametrize(
        ("content_type", "value", "says"),
        [
            (codec.CBOR, {"a": 1}, "carries application/cbor: a dict, and no array; frame.value"),
            (codec.JSON, [1, 2], "carries application/json: frame.value"),
            (codec.ARROW, pa.table({"a": [1]}), "carries application/arrow-ipc: frame.value"),
        ],
    )
    def test_is_refused_with_a_cure_where_a_frame_is_no_array_and_so_is_that_of_a_batch(
        self, content_type, value, says
    ):
        def read(frame):
            with pytest.raises(TypeError, match=f"a frame of route feed {says}"):
                frame.numpy()

        class Batches:
            def on_batch(self, batch, ctx):
                with pytest.raises(TypeError, match="each frame of route feed is encoded by itself"):
                    batch.numpy()

        run(read, [value], content_type=content_type, sends=False)
        run(Batches, [value], content_type=content_type, sends=False)
