"""Calls that survive an upgrade of the daemon: the client connects again and repeats the call.

Rules: only calls without effects are repeated. A stream goes on after its last item, whose position the error
``daemon-upgrading`` carries as ``after``; a stream whose error carries no position ends with that error.
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
    """Yield the items that ``verb`` streams, across upgrades of the daemon. Raises ChronetixError."""
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
    """A client that connects anew after each upgrade of the daemon. A context manager."""

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
        """Call ``verb`` and return its value, repeating the call after an upgrade of the daemon. Raises
        ChronetixError."""
        while True:
            try:
                return self.client.call(verb, **arguments)
            except ChronetixError as reason:
                if reason.name != UPGRADING:
                    raise
            self.again()

    def again(self) -> None:
        """Close the connection and connect to the daemon that answers now. Raises ChronetixError."""
        self.client.close()
        self.client = self._session.connect(again=True)
