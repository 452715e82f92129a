"""Finds the name that was probably meant, for unknown enum values, endpoints, verbs and misspelt fields.

The cost is bounded: a peer's word is cut to MAX_WORD characters and compared with at most MAX_CANDIDATES names, so that
no peer can make this process compare for minutes.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Final

MAX_WORD: Final = 64
MAX_CANDIDATES: Final = 512


def nearest(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the candidate most like ``word``, without regard to case, or None if none is near.

    A candidate that begins with ``word`` (of at least three letters) is near. ``cutoff`` is a ratio of difflib, 0 … 1.
    """
    folded = word[:MAX_WORD].casefold()
    known = {name.casefold()[:MAX_WORD]: name for name in islice(candidates, MAX_CANDIDATES)}
    if folded in known:
        return known[folded]
    begun = sorted(name for name in known if len(folded) >= 3 and name.startswith(folded))
    matches = begun or get_close_matches(folded, known, n=1, cutoff=cutoff)
    return known[matches[0]] if matches else None


def did_you_mean(word: str, candidates: Iterable[str], otherwise: str = "") -> str:
    """Return ``did you mean "…"?`` with the nearest candidate, else ``otherwise``."""
    name = nearest(word, candidates)
    return f'did you mean "{name}"?' if name is not None else otherwise
