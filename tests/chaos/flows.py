"""The flows that a storm runs, and what each of them guarantees for the frames that its sinks write into ledgers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Map = dict[str, Any]
PLUGINS = Path(__file__).parent / "plugins"
RESTART = {"policy": "transient", "max": 1000, "window_ms": 1000, "backoff_ms": 1, "backoff_max_ms": 100}


@dataclass(frozen=True)
class Promise:
    """The guarantee of one route into a sink. With ``gaps`` numbers may be missing; with ``round_missing`` every tenth
    number is."""

    node: str
    route: str
    gaps: bool = False
    round_missing: bool = False


@dataclass(frozen=True)
class FlowKind:
    """One flow of the storm. ``nodes`` maps names to entries of plugins/weathered.py."""

    name: str
    nodes: dict[str, str]
    edges: tuple[Map, ...]
    promises: tuple[Promise, ...]
    top: Map = field(default_factory=dict)
    fields: dict[str, Map] = field(default_factory=dict)

    @property
    def replays(self) -> bool:
        """Whether its source begins with its first item again in each incarnation."""
        return "replays" in self.nodes.values()

    @property
    def survives(self) -> bool:
        """Whether the flow survives the loss of its daemon."""
        return self.top.get("on_daemon_loss") == "survive"

    def ledger(self, folder: Path, node: str) -> Path:
        """Return the file into which ``node`` writes what it receives."""
        return folder / f"{self.name}.{node}.ledger"

    def contract(self, folder: Path) -> Map:
        """Return the contract that is submitted."""
        manifests = [
            {
                "plugin_id": node,
                "node_id": node,
                "version": "1.0.0",
                "artifact": {"kind": "Python", "uri": f"python://weathered.py:{entry}"},
                "params": {"ledger": str(self.ledger(folder, node))},
                "restart": RESTART,
                **self.fields.get(node, {}),
            }
            for node, entry in self.nodes.items()
        ]
        return {"manifests": manifests, "routes": [dict(edge) for edge in self.edges], "schemas": [], **self.top}


def _edge(source: str, target: str, **more: Any) -> Map:
    route = {"from": source, "to": target, "plane": "data", "topic": f"{source}/{target}", "buffer": 16}
    return route | {"content_type": "application/octet-stream"} | more


SURVIVE = {"on_daemon_loss": "survive"}

FLOWS = {
    kind.name: kind
    for kind in (
        FlowKind(
            "line",
            {"source": "numbers", "map": "forward", "sink": "Ledger"},
            (_edge("source", "map"), _edge("map", "sink", buffer=4)),
            (Promise("sink", "map-sink"),),
            SURVIVE,
        ),
        FlowKind(
            "replay",
            {"source": "replays", "map": "forward", "sink": "Ledger"},
            (_edge("source", "map"), _edge("map", "sink")),
            (Promise("sink", "map-sink"),),
        ),
        FlowKind(
            "diamond",
            {"source": "grown", "left": "forward", "right": "forward", "sink": "Ledger"},
            (
                _edge("source", "left", buffer=8),
                _edge("source", "right", buffer=2),
                _edge("left", "sink"),
                _edge("right", "sink", buffer=32),
            ),
            (Promise("sink", "left-sink"), Promise("sink", "right-sink")),
            {"strategy": "rest_for_one"},
        ),
        FlowKind(
            "lossy",
            {"source": "prints", "latest": "Ledger", "newest": "Ledger"},
            (_edge("source", "latest", policy="latest", buffer=4), _edge("source", "newest", policy="drop_newest")),
            (Promise("latest", "source-latest", gaps=True), Promise("newest", "source-newest", gaps=True)),
            SURVIVE,
        ),
        FlowKind(
            "asking",
            {"source": "asks", "confirms": "Confirms", "sink": "Ledger"},
            (_edge("source", "sink"),),
            (Promise("sink", "source-sink"),),
            SURVIVE,
            {"confirms": {"bus_subscriptions": [{"pattern": "confirm"}]}},
        ),
        FlowKind(
            "letters",
            {"source": "numbers", "map": "picky", "sink": "Ledger", "letters": "Letters"},
            (_edge("source", "map"), _edge("map", "sink")),
            (Promise("sink", "map-sink", round_missing=True),),
            {"dead_letter": "failed"},
            {"map": {"qos": {"retry": 1}}, "letters": {"bus_subscriptions": [{"pattern": "failed"}]}},
        ),
    )
}


def everyone() -> Iterator[tuple[str, str]]:
    """Return every node of every flow."""
    return ((kind.name, node) for kind in FLOWS.values() for node in kind.nodes)
