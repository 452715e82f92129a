"""A feed keeps the last records, gives them back, and shows new ones to whoever follows."""

from __future__ import annotations

from chronetixd.records.feed import Feed


def test_the_oldest_make_room_and_are_counted() -> None:
    feed: Feed[int] = Feed(3)
    for n in range(5):
        feed.append(n)
    assert feed.recent(lambda n: True) == [2, 3, 4]
    assert (feed.appended, feed.forgotten) == (5, 2)


def test_recent_gives_the_last_that_are_wanted() -> None:
    feed: Feed[int] = Feed(10)
    for n in range(6):
        feed.append(n)
    assert feed.recent(lambda n: n % 2 == 0, 2) == [2, 4]
    assert feed.recent(lambda n: True, 0) == []


def test_a_follower_sees_what_comes_until_it_leaves() -> None:
    feed: Feed[int] = Feed(10)
    seen: list[int] = []
    feed.append(1)
    leave = feed.follow(seen.append)
    feed.append(2)
    leave()
    leave()
    feed.append(3)
    assert seen == [2]


def test_a_follower_may_leave_while_it_is_called() -> None:
    feed: Feed[int] = Feed(10)
    seen: list[int] = []
    leave = feed.follow(lambda n: (seen.append(n), leave())[0])
    feed.append(1)
    feed.append(2)
    assert seen == [1]


def test_large_records_make_more_room() -> None:
    feed: Feed[str] = Feed(100, budget=10)
    for record in ("aaaa", "bbbb", "cccc"):
        feed.append(record, len(record))
    assert feed.recent(lambda record: True) == ["bbbb", "cccc"]
    feed.append("d" * 11, 11)
    assert feed.recent(lambda record: True) == []
