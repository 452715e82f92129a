"""The library's CBOR: golden bytes, the same verdicts as protocol/cbor.py on whatever comes, and the sanitizers."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol import cbor
from tests.sdk.c.build import HERE, ROOT, library, needs_libcbor, program

pytestmark = needs_libcbor

VECTORS = json.loads((ROOT / "protocol" / "vectors.json").read_text())
Again = Callable[[bytes], "bytes | str"]


class Writer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.POINTER(ctypes.c_uint8)),
        ("size", ctypes.c_size_t),
        ("room", ctypes.c_size_t),
        ("failed", ctypes.c_bool),
    )


def bodies(frames: bytes) -> list[bytes]:
    """The items of whole frames."""
    found = []
    while len(frames) >= 4:
        size = int.from_bytes(frames[:4], "big")
        found.append(frames[4 : 4 + size])
        frames = frames[4 + size :]
    return found


def folder_of(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    shared = tmp_path_factory.getbasetemp()
    return library(shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared, kind)


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Again:
    """Decodes an item and encodes it again; the reason as text if it is refused."""
    loaded = ctypes.CDLL(str(folder_of(tmp_path_factory, "plain") / "libchronetix.so"))
    loaded.chx_decode.restype = ctypes.c_void_p
    loaded.chx_decode.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    loaded.chx_write_value.argtypes = [ctypes.POINTER(Writer), ctypes.c_void_p]
    loaded.chx_free_value.argtypes = [ctypes.c_void_p]
    loaded.chx_free_writer.argtypes = [ctypes.POINTER(Writer)]

    def encode_again(data: bytes) -> bytes | str:
        why = ctypes.create_string_buffer(128)
        value = loaded.chx_decode(data, len(data), why, 128)
        if not value:
            return why.value.decode()
        writer = Writer()
        loaded.chx_write_value(ctypes.byref(writer), value)
        made = ctypes.string_at(writer.data, writer.size)
        loaded.chx_free_writer(ctypes.byref(writer))
        loaded.chx_free_value(value)
        return made

    return encode_again


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda vector: vector["name"])
def test_the_golden_frames_are_read_and_written_byte_for_byte(vector: dict[str, Any], again: Again) -> None:
    items = bodies(bytes.fromhex(vector["hex"]))
    assert items
    assert [again(item) for item in items] == items


@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda vector: vector["name"])
def test_other_bytes_that_mean_the_same_are_accepted(vector: dict[str, Any], again: Again) -> None:
    for item in bodies(bytes.fromhex(vector["hex"])):
        made = again(item)
        assert isinstance(made, bytes)
        assert cbor.loads(made) == cbor.loads(item)


BROKEN = [each for each in VECTORS["refused"] if each["error"] == "malformed-cbor"]


@pytest.mark.parametrize("vector", BROKEN, ids=lambda vector: vector["name"])
def test_broken_frames_are_refused_with_a_reason(vector: dict[str, Any], again: Again) -> None:
    made = again(bodies(bytes.fromhex(vector["hex"]))[-1])
    assert isinstance(made, str)
    assert made


leaves = (
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner, max_size=40))


def with_another_byte(good: bytes, at: int, byte: int) -> bytes:
    at %= len(good)
    return good[:at] + bytes([byte]) + good[at + 1 :]


changed = st.builds(with_another_byte, values.map(cbor.dumps), st.integers(0, 1 << 20), st.integers(0, 255))


@given(value=values)
def test_any_value_comes_back_as_it_was(value: Any, again: Again) -> None:
    made = again(cbor.dumps(value))
    assert isinstance(made, bytes)
    assert cbor.loads(made) == value


@given(data=st.binary(max_size=60) | changed)
def test_both_decoders_agree_on_any_bytes(data: bytes, again: Again) -> None:
    try:
        expected: Any = cbor.dumps(cbor.loads(data))
    except ValueError:
        expected = None
    made = again(data)
    assert isinstance(made, bytes) == (expected is not None), (made, expected)
    if isinstance(made, bytes):
        assert cbor.dumps(cbor.loads(made)) == expected


@pytest.mark.parametrize("depth", [64, 65])
def test_nesting_has_the_limit_of_the_protocol(depth: int, again: Again) -> None:
    made = again(b"\x81" * (depth - 1) + b"\x80")
    assert isinstance(made, bytes) == (depth == 64)


def test_a_frame_has_at_most_as_many_items_as_the_protocol_says(again: Again) -> None:
    most = 1_048_575
    assert isinstance(again(b"\x9a" + most.to_bytes(4, "big") + b"\x00" * most), bytes)
    assert "items" in str(again(b"\x9a" + (most + 1).to_bytes(4, "big") + b"\x00" * (most + 1)))


def test_changed_frames_harm_nothing_under_the_sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = folder_of(tmp_path_factory, "address")
    fuzzer = program(made, "address", HERE / "programs" / "fuzz.c", "-DALONE")
    frames = b"".join(bytes.fromhex(vector["hex"]) for vector in VECTORS["good"])
    ended = subprocess.run([fuzzer, "40", "7"], input=frames, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()
