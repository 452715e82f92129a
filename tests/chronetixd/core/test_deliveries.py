"""What the event bus counts for a node."""

from __future__ import annotations

from chronetixd.core.deliveries import MAX_TOPICS, OTHERS, Deliveries


def test_topics_are_counted_apart_and_those_without_a_message_are_shown() -> None:
    deliveries = Deliveries()
    deliveries.of("a").delivered += 2
    deliveries.of("b").dropped += 3
    deliveries.of("a").dropped += 1
    assert deliveries.figures(["quiet", "a"]) == [
        {"topic": "quiet", "delivered": 0, "dropped": 0},
        {"topic": "a", "delivered": 2, "dropped": 1},
        {"topic": "b", "delivered": 0, "dropped": 3},
    ]
    assert deliveries.dropped == 4


def test_topics_beyond_the_limit_are_counted_together() -> None:
    deliveries = Deliveries()
    for number in range(MAX_TOPICS + 7):
        deliveries.of(f"t{number}").dropped += 1
    assert deliveries.by_topic[f"t{MAX_TOPICS - 1}"].dropped == 1
    assert deliveries.by_topic[OTHERS].dropped == 7
    assert len(deliveries.by_topic) == MAX_TOPICS + 1
    assert deliveries.dropped == MAX_TOPICS + 7
