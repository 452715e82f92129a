"""The C code beside cbor2, in pieces, without memory, and under the sanitizers."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chronetix.protocol import cbor
from tests.protocol import oracle
from tests.protocol.test_cbor import documents, same
from tests.shm.sanitize import ADDRESS, compile_c, package_beside, sanitized_environment

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "native"
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")

heads = st.builds(
    lambda major, low, rest: bytes([major << 5 | low]) + rest,
    st.integers(0, 7),
    st.integers(0, 31),
    st.binary(max_size=9),
)


def in_pieces(data: bytes, budget: int) -> Any:
    document = cbor.Decoder(data)
    while not document.step(budget):
        pass
    return document.take()


class TestBesideCbor2:
    @given(documents)
    def test_the_same_bytes_are_written(self, document: Any) -> None:
        assert cbor.dumps(document) == cbor2.dumps(document)

    @given(st.lists(heads, max_size=6).map(b"".join) | documents.map(cbor2.dumps) | st.binary(max_size=40))
    @example(bytes.fromhex("f90001"))
    @example(bytes.fromhex("f98400"))
    @example(bytes.fromhex("fa7f800000"))
    @example(bytes.fromhex("3bffffffffffffffff"))
    @example(bytes.fromhex("f818"))
    @example(bytes.fromhex("fc"))
    @example(bytes.fromhex("5c00"))
    def test_the_same_bytes_are_read_and_refused(self, data: bytes) -> None:
        try:
            expected = oracle.loads(data)
        except oracle.Refused:
            with pytest.raises(cbor.CborError):
                cbor.loads(data)
        else:
            assert same(cbor.loads(data), expected)

    @given(documents, st.data())
    def test_a_document_with_a_byte_changed_is_read_or_refused_alike(self, document: Any, data: st.DataObject) -> None:
        changed = bytearray(cbor2.dumps(document))
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        self.test_the_same_bytes_are_read_and_refused.hypothesis.inner_test(self, bytes(changed))  # type: ignore[attr-defined]

    @pytest.mark.parametrize("half", range(0, 1 << 16, 997))
    def test_every_kind_of_half_float_is_read(self, half: int) -> None:
        expected = struct.unpack(">e", struct.pack(">H", half))[0]
        assert same(cbor.loads(b"\xf9" + struct.pack(">H", half)), expected)


class TestInPieces:
    @given(documents, st.integers(1, 9))
    def test_a_document_is_the_same_however_often_it_is_left(self, document: Any, budget: int) -> None:
        assert same(in_pieces(cbor.dumps(document), budget), document)
        writing = cbor.Encoder(document, 1 << 30)
        while not writing.step(budget):
            pass
        assert writing.take() == cbor.frame(document, 1 << 30)

    @given(st.binary(max_size=40), st.integers(1, 3))
    def test_what_is_refused_is_refused_in_pieces_too(self, data: bytes, budget: int) -> None:
        def refusal(read: Callable[[], Any]) -> str:
            try:
                read()
            except cbor.CborError as reason:
                return str(reason)
            return ""

        assert refusal(lambda: in_pieces(data, budget)) == refusal(lambda: cbor.loads(data))

    def test_a_step_does_no_more_than_it_may(self) -> None:
        document = cbor.Decoder(cbor.dumps([[]] * 10_000))
        assert not document.step(100)
        assert document.spent == 100

    def test_a_long_string_counts_as_many_items(self) -> None:
        document = cbor.Decoder(cbor.dumps(bytes(1 << 20)))
        assert document.step(1)
        assert document.spent > 1000

    def test_a_document_that_changes_while_it_is_written_is_refused(self) -> None:
        value = [1, 2, 3]
        writing = cbor.Encoder({"a": value}, 1000)
        assert not writing.step(3)
        value.clear()
        with pytest.raises(cbor.CborError, match="changed while"):
            writing.step(100)

    def test_a_frame_ends_at_its_limit(self) -> None:
        assert len(cbor.frame(bytes(95), 97)) == 4 + 97
        with pytest.raises(cbor.CborError, match="at most 96 fit"):
            cbor.frame(bytes(95), 96)

    def test_what_has_no_place_is_given_to_the_hook_once(self) -> None:
        writing = cbor.Encoder([{1, 2}], 100, sorted)
        assert writing.step(100)
        assert writing.take()[4:] == cbor.dumps([[1, 2]])
        with pytest.raises(cbor.CborError, match="set has no place"):
            cbor.Encoder([{1}], 100, lambda value: value).step(100)


class TestLimits:
    @pytest.mark.parametrize(
        ("head", "most"),
        [(b"\x9a\x00\x00\x03\xe8", 1000), (b"\xba\x00\x00\x01\xf4", 1000), (b"\x9a\x00\x00\x03\xe7", 999)],
    )
    def test_items_are_counted_where_they_are_announced(self, head: bytes, most: int) -> None:
        with pytest.raises(cbor.CborError, match=f"more than {most} items"):
            cbor.loads(head + b"\x60" * 2000, most)

    def test_lists_that_claim_each_others_bytes_are_refused_by_their_heads(self) -> None:
        claims = b"\x9a\x00\x0f\x00\x00" * 60
        with pytest.raises(cbor.CborError, match="end of stream"):
            cbor.loads(claims + bytes(0x0F0010))


class TestTakingApart:
    @given(documents, st.integers(1, 9))
    def test_it_ends(self, document: Any, budget: int) -> None:
        pile = [in_pieces(cbor.dumps(document), 1000)]
        while not cbor.dismantle(pile, budget):
            pass
        assert pile == []

    def test_what_somebody_else_has_stays_as_it_is(self) -> None:
        shared = {"k": [1, [2]]}
        pile: list[Any] = [[[], shared, [shared]]]
        assert cbor.dismantle(pile, 1000)
        assert shared == {"k": [1, [2]]}

    def test_leavings_are_what_was_made(self) -> None:
        document = cbor.Decoder(cbor.dumps([[1, 2], [3, [4]]]))
        document.step(6)
        pile = document.leavings()
        assert pile
        assert cbor.dismantle(pile, 1000)
        with pytest.raises(ValueError, match="read to its end"):
            document.step(1)


@needs_compiler
@pytest.mark.timeout(300)
def test_whichever_allocation_fails_it_is_raised_and_nothing_is_left(tmp_path: Path) -> None:
    library = tmp_path / "starved.so"
    compile_c(["gcc", "-std=c11", "-O2", "-shared", "-fPIC", HERE / "starved.c", "-o", library])
    env = os.environ | {"LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, HERE / "starve.py"], env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_compiler
@pytest.mark.timeout(600)
def test_the_extension_does_no_harm_to_itself(tmp_path: Path) -> None:
    package = package_beside(tmp_path, "protocol")
    flags = ["-shared", "-fPIC", "-std=c11", *ADDRESS, "-fvisibility=hidden", "-D_GNU_SOURCE"]
    include = f"-I{sysconfig.get_paths()['include']}"
    sources = sorted((ROOT / "protocol" / "native").glob("*.c"))
    compile_c(["gcc", *flags, "-DPy_LIMITED_API=0x030B0000", include, *sources, "-o", package / "_cbor.abi3.so"])
    env = sanitized_environment(tmp_path)
    ended = subprocess.run([sys.executable, HERE / "harass.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-6000:]
    assert ended.stdout.strip() == f"{package}/_cbor.abi3.so"
