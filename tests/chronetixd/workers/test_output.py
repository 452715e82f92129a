"""What workers print is cut into lines within bounds."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetixd.records.log_record import CUT, MAX_LINE
from chronetixd.workers.output import MAX_TAIL_LINE, TAIL_LINES, LineCutter, Output


@given(st.lists(st.text(st.characters(exclude_characters="\n\r"), max_size=20)), st.data())
def test_lines_come_out_as_they_were_however_they_are_cut(lines: list[str], data: st.DataObject) -> None:
    raw = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    cutter, got = LineCutter(), []
    while raw:
        size = data.draw(st.integers(1, len(raw)))
        got += cutter.feed(raw[:size])
        raw = raw[size:]
    assert got + cutter.end() == [line.encode("utf-8", "replace").decode() for line in lines]
    assert cutter.cut == 0


@given(st.lists(st.binary(max_size=50)))
def test_any_bytes_give_text(chunks: list[bytes]) -> None:
    cutter = LineCutter()
    for chunk in chunks:
        assert all("\n" not in line for line in cutter.feed(chunk))


def test_a_long_line_that_has_no_end_says_that_it_was_cut_too() -> None:
    cutter = LineCutter()
    assert cutter.feed(b"x" * (MAX_LINE + 1)) == []
    assert cutter.end() == ["x" * MAX_LINE + CUT]


def test_a_long_line_is_cut_counted_and_does_not_touch_the_next() -> None:
    cutter = LineCutter()
    got = [line for _ in range(10) for line in cutter.feed(b"x" * MAX_LINE)] + cutter.feed(b"y\nnext\n")
    assert got == ["x" * MAX_LINE + CUT, "next"]
    assert cutter.cut == 1


def test_the_last_line_needs_no_end_and_the_tail_is_bounded(loop: Any) -> None:
    read, write = os.pipe()
    lines: list[str] = []
    output = Output(loop, read, lines.append, lambda: None)
    os.write(write, b"".join(b"%d\n" % n for n in range(100)) + b"the end")
    os.close(write)
    output.finish()
    assert lines == [*map(str, range(100)), "the end"]
    assert list(output.tail) == lines[-TAIL_LINES:]


def test_finishing_does_not_wait_for_a_grandchild_that_holds_the_pipe(loop: Any) -> None:
    read, write = os.pipe()
    lines: list[str] = []
    output = Output(loop, read, lines.append, lambda: None)
    os.write(write, b"said\n")
    output.finish()
    os.close(write)
    assert lines == ["said"]


def test_finishing_does_not_read_on_while_somebody_goes_on_writing(loop: Any) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    lines: list[str] = []

    def refill(line: str) -> None:
        lines.append(line)
        if len(lines) < 100:
            os.write(write, b"more\n")

    output = Output(loop, read, refill, lambda: None)
    os.write(write, b"said\n")
    output.finish()
    os.close(write)
    assert lines == ["said"]


@pytest.mark.parametrize("size", [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1])
@pytest.mark.parametrize("piece", [1 << 20, MAX_LINE, 4000])
def test_a_line_of_just_the_limit_is_whole(size: int, piece: int) -> None:
    """However it comes: at once, with its end in a piece of its own, in many."""
    raw = b"x" * size + b"\nnext\n"
    cutter, got = LineCutter(), []
    for at in range(0, len(raw), piece):
        got += cutter.feed(raw[at : at + piece])
    assert got == ["x" * min(size, MAX_LINE) + CUT * (size > MAX_LINE), "next"]
    assert cutter.cut == (size > MAX_LINE)


@pytest.mark.parametrize("size", [MAX_TAIL_LINE - 1, MAX_TAIL_LINE, MAX_TAIL_LINE + 1])
def test_the_tail_has_of_each_line_as_much_as_the_limit(loop: Any, size: int) -> None:
    read, write = os.pipe()
    lines: list[str] = []
    output = Output(loop, read, lines.append, lambda: None)
    os.write(write, b"\n".join([b"y" * size] * (TAIL_LINES + 1)))
    os.close(write)
    output.finish()
    assert lines == ["y" * size] * (TAIL_LINES + 1)
    assert list(output.tail) == ["y" * min(size, MAX_TAIL_LINE)] * TAIL_LINES
