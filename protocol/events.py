"""The catalogue of events: what a daemon tells whoever follows it, each kind with its meaning and data.

``events.json`` is the one source: the daemon emits nothing that is not in it, and docs/events.md shows it. A kind is
never given another meaning; further ones, and further data, may be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec


class Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of event. ``about``: whose name it carries, that of a flow, of a flow and its node, or none; ``level``:
    at which it is in the daemon's own log; ``data``: what its fields mean."""

    kind: str
    about: Literal["flow", "node", "daemon"]
    level: Literal["debug", "info", "warning"]
    meaning: str
    data: dict[str, str] = {}


def _read_catalogue() -> dict[str, Kind]:
    text = Path(__file__).with_name("events.json").read_bytes()
    return {each.kind: each for each in msgspec.json.decode(text, type=list[Kind])}


CATALOGUE: Final[Mapping[str, Kind]] = _read_catalogue()
"""Every kind by its name: flows, workers, nodes, roll-outs and frames, then the daemon's own."""
