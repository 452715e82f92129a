"""What all state machines here share: a bounded history, and the error for an event that a state forbids.

A table has a cell for every state and event. An empty cell means that the event is illegal: it raises and changes
nothing. The error carries the object's history, so that a report tells how the object came to its state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

HISTORY_LENGTH = 32
"""Transitions kept for one object: enough to see a whole life, few enough for thousands of objects."""


class IllegalEvent(Exception):
    """``event`` is not allowed in ``state``. The object is unchanged; ``history`` lists the transitions that led to its
    state."""

    def __init__(self, thing: str, state: str, event: str, history: tuple[str, ...]) -> None:
        super().__init__(f"{thing} cannot take {event!r} while {state}; its history: {' '.join(history) or 'none'}")
        self.thing = thing
        self.state = state
        self.event = event
        self.history = history


class History:
    """The last transitions of one object, as ``event>state``."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._entries: deque[str] = deque(entries, maxlen=HISTORY_LENGTH)

    def add(self, event: str, state: str) -> None:
        """Note that ``event`` led to ``state``."""
        self._entries.append(f"{event}>{state}")

    def entries(self) -> tuple[str, ...]:
        """Return the kept transitions, oldest first."""
        return tuple(self._entries)
