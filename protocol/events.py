"""The catalogue of events that a daemon records, each kind with its meaning and data.

``events.json`` is the one source: the daemon emits only kinds that are in it, and docs/events.md shows it. A kind is
never given another meaning; further kinds, and further data, may be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec


class Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of event. ``about``: whether its events name a flow, a flow and a node, or neither; ``level``: its level
    in the daemon's own log; ``data``: the meaning of each field."""

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
