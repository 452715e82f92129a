"""Messages of the event bus, counted by topic for one node over all its incarnations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_TOPICS = 4096
"""Topics that one node has counts for. Messages of any further topic are counted together, under ``OTHERS``."""

OTHERS = ""
"""No topic has this name."""


@dataclass(slots=True)
class Count:
    """Messages of one topic. A message is delivered when it is queued for the node, and dropped when too many bytes
    wait in that queue."""

    delivered: int = 0
    """Messages that the daemon has queued for the node."""
    dropped: int = 0
    """Messages that were dropped because too many bytes waited in the node's queue."""


@dataclass(slots=True)
class Deliveries:
    """The counts of one node by the names of the topics."""

    by_topic: dict[str, Count] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """Messages of all topics that were dropped."""
        return sum(count.dropped for count in self.by_topic.values())

    def of(self, topic: str) -> Count:
        """Return the count that a message of ``topic`` belongs to."""
        count = self.by_topic.get(topic)
        if count is None:
            if len(self.by_topic) >= MAX_TOPICS:
                topic = OTHERS
            count = self.by_topic.setdefault(topic, Count())
        return count

    def figures(self, subscribed: list[str]) -> list[dict[str, Any]]:
        """Return one map for each topic that has a count or is in ``subscribed``."""
        none = Count()
        topics = dict.fromkeys([*subscribed, *self.by_topic])
        counts = {topic: self.by_topic.get(topic, none) for topic in topics}
        return [
            {"topic": topic, "delivered": count.delivered, "dropped": count.dropped} for topic, count in counts.items()
        ]
