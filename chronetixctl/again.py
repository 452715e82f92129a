"""Calls that outlive an upgrade of the daemon: they are asked again, and what follows something goes on where it was.

Only for calls that look: what has an effect is not asked twice. What cannot say where it was ends with the error.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any

from chronetix.protocol.errors import ChronetixError

if TYPE_CHECKING:
    from chronetixctl.app import Session

UPGRADING = "daemon-upgrading"


def follow(session: Session, verb: str, arguments: dict[str, Any]) -> Generator[Any, None, None]:
    """What ``verb`` streams. Raises ChronetixError."""
    again = False
    while True:
        try:
            with session.connect(again=again) as client, closing(client.stream(verb, **arguments)) as items:
                yield from items
                return
        except ChronetixError as reason:
            after = reason.details.get("after")
            if reason.name != UPGRADING or after is None:
                raise
        arguments, again = {**arguments, "after": after, "tail": None}, True


class Asking:
    """One connection after the other. A context manager."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.client = session.connect()

    def __enter__(self) -> Asking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    def call(self, verb: str, **arguments: Any) -> Any:
        """The value of ``verb``. Raises ChronetixError."""
        while True:
            try:
                return self.client.call(verb, **arguments)
            except ChronetixError as reason:
                if reason.name != UPGRADING:
                    raise
            self.again()

    def again(self) -> None:
        """Connect to the daemon that answers now. Raises ChronetixError."""
        self.client.close()
        self.client = self._session.connect(again=True)
