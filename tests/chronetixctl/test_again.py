"""A daemon that is being replaced is waited for; one that does not answer is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chronetix.protocol.errors import error
from chronetixctl.again import UPGRADING, Asking, follow


class Replaced:
    """A session whose daemon is replaced after its first answer, and a client of it."""

    def __init__(self) -> None:
        self.waited: list[bool] = []
        self.asked: list[dict[str, Any]] = []

    def connect(self, *, again: bool = False) -> Any:
        self.waited.append(again)
        return self

    def stream(self, _verb: str, **arguments: Any) -> Iterator[int]:
        self.asked.append(arguments)
        yield len(self.asked)
        if len(self.asked) == 1:
            raise error(UPGRADING, after=7)

    def call(self, _verb: str, **_arguments: Any) -> str:
        if len(self.waited) == 1:
            raise error(UPGRADING)
        return "there"

    def __enter__(self) -> Replaced:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open."""


def test_who_follows_waits_for_the_next_image_and_goes_on_where_it_was() -> None:
    session: Any = Replaced()
    assert list(follow(session, "events", {"flow": "f", "tail": 10})) == [1, 2]
    assert session.waited == [False, True]
    assert session.asked == [{"flow": "f", "tail": 10}, {"flow": "f", "after": 7, "tail": None}]


def test_who_asks_waits_for_the_next_image_and_asks_it() -> None:
    session: Any = Replaced()
    with Asking(session) as asking:
        assert asking.call("version") == "there"
    assert session.waited == [False, True]
