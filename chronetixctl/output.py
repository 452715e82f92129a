"""How chronetixctl prints: data on stdout as table, JSON or YAML; messages on stderr.

Rules: every format shows the same value; a stream is printed as one JSON object a line, or one YAML document for each
item. On a terminal `ls` cuts its last column to the width; no table is cut in a pipe. Control characters in text from
flows and plugins are escaped, so that no flow controls the terminal.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from chronetix.protocol.json_text import json_text

FORMATS = ("table", "json", "yaml")

MIN_LAST = 8
"""Terminal cells that are left for the last column, however narrow the terminal is."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_CONTROL_BUT_COLOUR = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0a-\x1a\x1c-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_STATE_COLOURS = {
    "running": "green",
    "started": "green",
    "failed": "red",
    "starting": "yellow",
    "returning": "yellow",
    "waiting": "yellow",
    "draining": "yellow",
    "stopped": "bright_black",
    "finished": "bright_black",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its heading, and whether its cells are aligned to the right."""

    head: str
    right: bool = False


def show(value: Any, fmt: str, table: Callable[[], str]) -> None:
    """Print one value to stdout in the format ``fmt``; ``table`` returns the text for the format ``table``."""
    if fmt == "json":
        click.echo(json_text(value, indent=2))
    elif fmt == "yaml":
        click.echo(to_yaml(value), nl=False)
    elif text := table():
        click.echo(text)


def show_item(value: Any, fmt: str, line: Callable[[], str]) -> None:
    """Print one item of a stream to stdout and flush it at once; ``line`` returns its text for the format ``table``."""
    if fmt == "json":
        click.echo(json_text(value))
    elif fmt == "yaml":
        click.echo("---\n" + to_yaml(value), nl=False)
    else:
        click.echo(line())
    sys.stdout.flush()


def say(message: str) -> None:
    """Print a message to stderr."""
    click.echo(message, err=True)


def to_yaml(value: Any) -> str:
    """Return ``value`` as YAML text, keys in their order."""
    import yaml

    plain = json.loads(json_text(value))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def printable(value: Any) -> str:
    """Return ``value`` as text on one line, with control characters shown as escapes."""
    return _CONTROL.sub(lambda match: repr(match.group())[1:-1], str(value))


def printable_line(text: str) -> str:
    """Return a line of a plugin's output with its colours kept and all other control characters shown as escapes."""
    return _CONTROL_BUT_COLOUR.sub(lambda match: repr(match.group())[1:-1], text)


_STATE_NAMES = {"waiting": "waiting for attach"}
"""States whose names say more to people than to programs."""


def state(name: str) -> str:
    """Return the name of a state, styled in its colour."""
    colour = _STATE_COLOURS.get(name)
    name = _STATE_NAMES.get(name, name)
    return click.style(name, fg=colour) if colour else printable(name)


def first_line(value: Any) -> str:
    """Return the first line of ``value`` as text, with control characters shown as escapes."""
    return printable(next(iter(str(value).splitlines()), ""))


def paragraph(value: Any) -> str:
    """Return a text of one or more lines. Lines behind the first begin with ``|``, so that none can be mistaken for a
    message of chronetixctl."""
    first, *rest = str(value).splitlines() or [""]
    return "\n".join([printable(first), *(f"  | {printable_line(line)}" for line in rest)])


def table(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> str:
    """Return the text of a table: aligned columns below their headings; cells may hold colours."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([width(column.head), *(width(row[index]) for row in cells)]) for index, column in enumerate(columns)]
    head = [click.style(column.head, bold=True) if column.head else "" for column in columns]
    lines = []
    for row in [head, *cells]:
        padded = [
            " " * (size - width(cell)) + cell if column.right else cell + " " * (size - width(cell))
            for column, size, cell in zip(columns, widths, row, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def fitting(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> str:
    """Return the text of a table whose last column is cut to the terminal's width; it is whole in a pipe."""
    text = table(columns, rows)
    if not sys.stdout.isatty():
        return text
    most = shutil.get_terminal_size().columns
    excess = max(map(width, text.splitlines())) - most
    if excess <= 0:
        return text
    room = max(max(width(str(row[-1] or "")) for row in rows) - excess, MIN_LAST)
    return table(columns, [(*row[:-1], shortened(str(row[-1] or ""), room)) for row in rows])


def shortened(text: str, room: int) -> str:
    """Return ``text``, cut to ``room`` terminal cells with an ellipsis if it is longer."""
    if width(text) <= room:
        return text
    while width(text) >= room:
        text = text[:-1]
    return text + "…"


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    text = str(value)
    return _CONTROL_BUT_COLOUR.sub(lambda match: repr(match.group())[1:-1], text)


def width(text: str) -> int:
    """Return how many terminal cells ``text`` takes, without its colour codes."""
    bare = click.unstyle(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in bare
    )


def duration(ns: int | float) -> str:
    """Return a span of time in a unit that suits it: 740ns, 12.3us, 4.1ms, 12s, 3m05s, 2h07m, 4d03h."""
    if ns < 0:
        return "0s"
    for limit, unit, size in ((1_000, "ns", 1), (1_000_000, "us", 1_000), (1_000_000_000, "ms", 1_000_000)):
        if ns < limit:
            return f"{ns / size:.3g}{unit}" if ns / size < 999.5 else f"{ns / size:.0f}{unit}"
    seconds = int(ns // 1_000_000_000)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02}h"


def size(count: int | float) -> str:
    """Return a number of bytes in binary units: 512B, 1.5KiB, 40.0MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}TiB"


def clock(unix_ns: int) -> str:
    """Return the local time of day with milliseconds."""
    from datetime import datetime

    return datetime.fromtimestamp(unix_ns / 1e9).strftime("%H:%M:%S.%f")[:-3]


def moment(unix_ns: int) -> str:
    """Return the local date and time to the second, with its zone."""
    from datetime import datetime

    return datetime.fromtimestamp(unix_ns / 1e9).astimezone().isoformat(sep=" ", timespec="seconds")
