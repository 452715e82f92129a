"""Parts of documents that are made from the code: each stands between ``<!-- name -->`` and ``<!-- end -->``.

A test compares such a part with what the code says. With CHRONETIX_DRAW=1 the part is drawn anew instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"

_PART = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_LITERAL = re.compile(r"``([^`]+)``")


def shows(page: Path, parts: Mapping[str, str]) -> None:
    """The page has exactly these parts, as they are."""
    text = page.read_text("utf-8")
    assert sorted(found[1] for found in _PART.findall(text)) == sorted(parts), f"{page.name} has other parts"
    drawn = _PART.sub(lambda at: f"{at[1]}{parts[at[2]].strip()}\n{at[3]}", text)
    if os.environ.get("CHRONETIX_DRAW"):
        page.write_text(drawn, "utf-8")
    else:
        assert text == drawn, f"what {page.name} shows has changed: make reference"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def cell(text: str) -> str:
    """Text in one cell."""
    return re.sub(r"\s*\n\s*", " ", text.strip()).replace("|", "\\|")


def prose(docstring: str) -> str:
    """A docstring as Markdown: roles and double backquotes become code."""
    return _LITERAL.sub(r"`\1`", _ROLE.sub(r"`\1`", docstring))


def number(value: float) -> str:
    """A bound as people write it."""
    if value == int(value) and value > 1 << 20 and (int(value) + 1) & int(value) == 0:
        return f"2^{(int(value) + 1).bit_length() - 1} - 1"
    return f"{value:,.0f}".replace(",", " ") if value == int(value) else f"{value:.3g}"
