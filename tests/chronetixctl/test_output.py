"""What people read, to the letter: units at their edges, columns and the side that they are aligned to."""

from __future__ import annotations

import click
import pytest

from chronetix.protocol.json_text import json_text
from chronetixctl import output
from chronetixctl.output import Column

US, MS, S = 1_000, 1_000_000, 1_000_000_000
MINUTE, HOUR, DAY = 60 * S, 3600 * S, 86400 * S


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (-1, "0s"),
        (0, "0ns"),
        (999, "999ns"),
        (US, "1us"),
        (12_340, "12.3us"),
        (999_499, "999us"),
        (999_500, "1000us"),
        (MS - 1, "1000us"),
        (MS, "1ms"),
        (4_120_000, "4.12ms"),
        (S - 1, "1000ms"),
        (S, "1s"),
        (MINUTE - 1, "59s"),
        (MINUTE, "1m00s"),
        (MINUTE + 5 * S, "1m05s"),
        (HOUR - 1, "59m59s"),
        (HOUR, "1h00m"),
        (2 * HOUR + 7 * MINUTE + 59 * S, "2h07m"),
        (DAY - 1, "23h59m"),
        (DAY, "1d00h"),
        (4 * DAY + 3 * HOUR + 59 * MINUTE, "4d03h"),
    ],
)
def test_a_span_has_the_unit_that_it_reaches(ns: int, text: str) -> None:
    assert output.duration(ns) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0KiB"),
        (1536, "1.5KiB"),
        ((1 << 20) - 1, "1024.0KiB"),
        (1 << 20, "1.0MiB"),
        (1 << 30, "1.0GiB"),
        (1 << 40, "1.0TiB"),
        (1 << 50, "1024.0TiB"),
    ],
)
def test_bytes_have_the_binary_unit_that_they_reach(count: int, text: str) -> None:
    assert output.size(count) == text


def test_a_table_aligns_each_column_to_its_side_by_what_is_seen() -> None:
    columns = [Column("NAME"), Column("N", right=True), Column("END")]
    rows = [("ab", 7, click.style("x", fg="red")), ("日本", 12345, None), ("e\u0301", "", "")]
    assert click.unstyle(output.table(columns, rows)).splitlines() == [
        "NAME      N  END",
        "ab        7  x",
        "日本  12345  -",
        "e\u0301         -  -",
    ]


def test_without_rows_a_table_is_its_head() -> None:
    assert click.unstyle(output.table([Column("A"), Column("B", right=True)], [])) == "A  B"


@pytest.mark.parametrize("sign", ["\x00", "\x08", "\n", "\x1b", "\x1f", "\x7f", "\x9f", "\u2028", "\u202e", "\u2069"])
def test_what_moves_the_cursor_is_shown_as_its_escape(sign: str) -> None:
    escape = repr(sign)[1:-1]
    assert output.printable(f"a{sign}b") == f"a{escape}b"
    assert output.printable_line(f"a{sign}b") == f"a{escape}b"
    (line,) = output.table([Column("")], [(f"a{sign}b",)]).splitlines()[1:]
    assert line == f"a{escape}b"


@pytest.mark.parametrize("sign", ["\t", " ", "~", "\xa0", "\u2027", "\u202f", "\u2065", "\u206a"])
def test_what_stands_just_beside_it_is_not(sign: str) -> None:
    assert output.printable(f"a{sign}b") == output.printable_line(f"a{sign}b") == f"a{sign}b"


def test_colours_stay_in_lines_and_cells_alone() -> None:
    red = "\x1b[31mred\x1b[0m"
    assert output.printable_line(red) == red
    assert red in output.table([Column("")], [(red,)])
    assert output.printable(red) == r"\x1b[31mred\x1b[0m"


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("running", "green"),
        ("started", "green"),
        ("failed", "red"),
        ("starting", "yellow"),
        ("returning", "yellow"),
        ("draining", "yellow"),
        ("stopped", "bright_black"),
        ("finished", "bright_black"),
    ],
)
def test_each_state_has_its_colour(name: str, colour: str) -> None:
    assert output.state(name) == click.style(name, fg=colour)
    assert output.state(name + "?") == name + "?"


def test_lines_behind_the_first_are_set_off() -> None:
    assert output.paragraph("one\ntwo\nthree") == "one\n  | two\n  | three"
    assert output.paragraph("") == output.first_line("") == ""
    assert output.first_line("one\ntwo") == "one"


def test_bytes_are_text_where_they_are_some_else_hex() -> None:
    assert json_text({"a": "ä".encode(), "b": b"\xff\x00"}) == '{"a": "ä", "b": "ff00"}'
    assert output.to_yaml({"b": 1, "a": "ä"}) == "b: 1\na: ä\n"


def test_moments_are_local_and_say_so(utc: None) -> None:
    at = 1_000_000_000 * S + 250 * MS
    assert output.clock(at) == "01:46:40.250"
    assert output.moment(at) == "2001-09-09 01:46:40+00:00"


class Screen:
    """Stands for stdout on a terminal, or in a pipe."""

    def __init__(self, terminal: bool) -> None:
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("columns", "terminal", "last"),
    [
        (20, True, "12345678901234"),
        (19, True, "123456789012…"),
        (10, True, "1234567…"),
        (10, False, "12345678901234"),
    ],
)
def test_the_last_column_of_a_table_fits_the_terminal_and_is_whole_in_a_pipe(
    columns: int, terminal: bool, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(output.sys, "stdout", Screen(terminal))
    text = output.fitting([Column("FLOW"), Column("WHY")], [("a", "12345678901234"), ("b", "")])
    assert [click.unstyle(line).split()[-1] for line in text.splitlines()] == ["WHY", last, "-"]


@pytest.mark.parametrize(("text", "room", "shown"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("日本語", 5, "日本…")])
def test_a_text_is_shortened_by_terminal_cells(text: str, room: int, shown: str) -> None:
    assert output.shortened(text, room) == shown
