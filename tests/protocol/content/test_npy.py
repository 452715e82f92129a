"""One array a frame, as a NumPy file: shape, dtype and order travel, what is hostile is refused, numpy reads it."""

from __future__ import annotations

import array
import ctypes
import io
import pickle
import subprocess
import sys

import numpy as np
import pandas
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from chronetix.protocol.content import npy
from chronetix.protocol.content.natural import Unfit

RECORD = np.dtype([("x", "<f4"), ("at", "<i8"), ("rgb", "u1", (3,)), ("in", [("a", ">u2")])])

dtypes = arrays.scalar_dtypes() | arrays.array_dtypes() | st.just(RECORD)


class Subclass(np.ndarray):
    """As matrices and memory maps are."""


every_array = arrays.arrays(
    dtypes.filter(lambda t: t.itemsize), arrays.array_shapes(min_dims=0, min_side=0, max_side=4)
)


@given(every_array, st.sampled_from("CFA"), st.booleans())
def test_every_array_comes_back_as_it_was(value, order, backwards):
    value = np.array(value, order=order)
    if backwards and value.ndim:
        value = value[::-1]
    data = npy.dumps(value)
    read = npy.load(data)
    assert read.dtype == value.dtype
    assert read.shape == value.shape
    assert read.tobytes() == value.tobytes()
    assert not read.flags.writeable
    npy.check(data)


@given(every_array.filter(lambda value: value.dtype.names is None))
def test_a_frame_is_a_file_that_numpy_reads_and_the_other_way_round(value):
    assert np.load(io.BytesIO(npy.dumps(value))).tobytes() == value.tobytes()
    file = io.BytesIO()
    np.save(file, value)
    read = npy.load(file.getvalue())
    assert (read.dtype, read.shape, read.tobytes()) == (value.dtype, value.shape, value.tobytes())


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_a_file_is_read(version):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(5.0), version)
    assert npy.load(file.getvalue()).tolist() == [0, 1, 2, 3, 4]


def test_data_begin_at_a_line_and_are_in_place():
    memory = bytearray(npy.dumps(np.arange(100, dtype="u1")))
    header = npy.read_header(memoryview(memory))
    assert header.start % npy.LINE == 0
    read = npy.load(memory)
    memory[header.start] = 99
    assert read[0] == 99, "it is a view"


def test_order_travels():
    value = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    read = npy.load(npy.dumps(value))
    assert read.flags.f_contiguous
    assert not read.flags.c_contiguous
    assert np.array_equal(read, value)


def test_plain_fields_may_stand_beside_one_array():
    picture = np.arange(12, dtype="u2").reshape(3, 4)
    value = {"camera": 3, "picture": picture, "where": {"x": np.float32(1.5)}, "tags": ["a"]}
    data = npy.dumps(value)
    read = npy.load(data)
    assert np.array_equal(read.pop("picture"), picture)
    assert read == {"camera": 3, "where": {"x": 1.5}, "tags": ["a"]}
    assert np.array_equal(npy.load_array(data), picture)
    assert np.array_equal(np.load(io.BytesIO(data)), picture), "numpy does not mind what stands behind"


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (np.float32(1.5), np.array(1.5, "f4")),
        (array.array("h", [1, 2]), np.array([1, 2], "i2")),
        (memoryview(np.ones((2, 2))), np.ones((2, 2))),
        (np.rec.array([(1, True)], [("a", "i4"), ("mask", "?")]), np.array([(1, True)], [("a", "i4"), ("mask", "?")])),
        (np.ones((2, 1)).view(Subclass), np.ones((2, 1))),
        (np.array(5, ">i4"), np.array(5, ">i4")),
        (pa.Tensor.from_numpy(np.ones((2, 2))), np.ones((2, 2))),
    ],
)
def test_what_is_an_array_in_all_but_name_is_one(value, becomes):
    read = npy.load(npy.dumps(value))
    assert (read.dtype, read.tolist()) == (becomes.dtype, becomes.tolist())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array([object()]), "would have to be pickled"),
        (np.zeros(2, [("a", "O")]), "would have to be pickled"),
        (np.ma.array([1, 2], mask=[0, 1]), "lose its mask"),
        ({"a": np.ma.array([1])}, "lose its mask"),
        (pandas.Series([1]), r"a Series would lose its names, labels or nulls: send numpy\.asarray"),
        (pandas.DataFrame({"a": [1]}), "arrow-ipc and send a table"),
        (pa.array([1, None]), "would lose"),
        (pa.table({"a": [1]}), "would lose"),
        (ctypes.pointer(ctypes.c_int(1)), "pointers"),
        ((ctypes.c_char_p * 1)(b"text"), "pointers"),
        ([1, 2], r"send numpy\.asarray"),
        ("text", r"send numpy\.asarray"),
        ({"a": 1}, "the map has no array"),
        ({"a": np.ones(1), "b": np.ones(1)}, r"the map has 2 arrays \(a, b\)"),
        ({"a": np.ones(1), 1: 2}, "text for keys"),
        ({"a": np.ones(1), "b": object()}, "no form in it"),
        (np.zeros(3, "V0"), "does not travel"),
        (np.zeros(1, [(f"{'f' * 100}{n}", "u1") for n in range(100)]), "the description of its dtype"),
    ],
)
def test_what_does_not_travel_is_refused_with_a_cure(value, says):
    with pytest.raises(Unfit, match=says):
        npy.dumps(value)


def file_of(header: bytes, data: bytes = bytes(64), version: bytes = b"\x01\x00") -> bytes:
    width = 2 if version[0] == 1 else 4
    return npy.MAGIC + version + len(header).to_bytes(width, "little") + header + data


GOOD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        npy.MAGIC,
        file_of(GOOD)[:20],
        file_of(GOOD, bytes(23)),
        file_of(GOOD, version=b"\x01\x01"),
        file_of(GOOD, version=b"\x04\x00"),
        file_of(GOOD.replace(b"<f4", b"|O")),
        file_of(GOOD.replace(b"'<f4'", b"[('a', '|O')]")),
        file_of(GOOD.replace(b"'<f4'", b"[('a', [('b', 'O')])]")),
        file_of(GOOD.replace(b"'<f4'", b"('<f4', (2,))")),
        file_of(GOOD.replace(b"<f4", b"<f3")),
        file_of(GOOD.replace(b"<f4", b"f4,f4")),
        file_of(GOOD.replace(b"<f4", b"|V0")),
        file_of(GOOD.replace(b"(2, 3)", b"(-2, -3)")),
        file_of(GOOD.replace(b"(2, 3)", b"[2, 3]")),
        file_of(GOOD.replace(b"(2, 3)", b"(True, 3)")),
        file_of(GOOD.replace(b"(2, 3)", b"(2.0, 3)")),
        file_of(GOOD.replace(b"(2, 3)", b"(4611686018427387904, 4)")),
        file_of(GOOD.replace(b"(2, 3)", b"(" + b"1, " * 65 + b")")),
        file_of(GOOD.replace(b"(2, 3)", b"(0, 99999999999999999999999)")),
        file_of(GOOD.replace(b"(2, 3)", b"(" + b"9" * 5000 + b",)")),
        file_of(GOOD.replace(b"False", b"0")),
        file_of(GOOD.replace(b"False", b"__import__('os')")),
        file_of(GOOD.replace(b"}", b"'more': 1}")),
        file_of(GOOD.replace(b"'shape': (2, 3), ", b"")),
        file_of(b"(" * 9000),
        file_of(b"\xff" * 50, version=b"\x03\x00"),
        file_of(b" " * 20_000, version=b"\x02\x00"),
        file_of(GOOD, bytes(24) + b"\x01"),
        file_of(GOOD, bytes(24) + bytes.fromhex("826161a0") + b"\x00"),
        file_of(GOOD, bytes(24) + bytes.fromhex("826161a1616101")),
        pickle.dumps(np.ones(3)),
    ],
    ids=range(32),
)
def test_what_is_hostile_is_refused(data):
    for read in (npy.load, npy.check):
        with pytest.raises((ValueError, TypeError)):
            read(data)


@given(st.binary(max_size=200).map(lambda text: file_of(text)) | st.binary())
def test_any_bytes_are_read_or_refused(data):
    try:
        npy.load(data)
    except (ValueError, TypeError):
        return


@given(st.binary(min_size=1, max_size=4), st.integers(0, len(GOOD)), st.integers(0, 8))
def test_a_header_that_was_changed_is_read_or_refused(other, at, over):
    try:
        read = npy.load(file_of(GOOD[:at] + other + GOOD[at + over :]))
    except ValueError:
        return
    assert not read.dtype.hasobject
    assert read.nbytes <= 64


def test_headers_are_remembered_within_bounds():
    for length in range(3 * npy.REMEMBERED):
        assert len(npy.load(npy.dumps(np.zeros(length, "u1")))) == length
        assert len(npy._headers) <= npy.REMEMBERED
        assert len(npy._written) <= npy.REMEMBERED


def test_without_numpy_everything_is_imported_and_arrays_say_what_is_missing():
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "import chronetix, chronetix.testing, chronetix.client, chronetixd.main, chronetixctl\n"
        "from chronetix import Context, Frame, serve, Encoded\n"
        "from chronetix.protocol.content import npy\n"
        "from chronetix.testing import run\n"
        "assert run(lambda frame: frame.value(), [{'a': 1}]).sent == [{'a': 1}]\n"
        f"print(npy.read_header(memoryview({file_of(GOOD)!r})))\n"
        f"try: npy.load({file_of(GOOD)!r})\n"
        "except TypeError as reason: print(reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "Header(descr='<f4', shape=(2, 3), by_columns=False, start=69)",
        "numpy is not installed: pip install 'chronetix[numpy]'",
    ], done.stderr
