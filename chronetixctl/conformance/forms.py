"""The forms in which a program is checked, and how a check ends that does not pass."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Form(StrEnum):
    """Which ends of routes the program is given."""

    SINK = "sink"
    MAP = "map"
    SOURCE = "source"

    @property
    def inputs(self) -> int:
        """How many inputs it has, if the check asks for no others."""
        return int(self is not Form.SOURCE)

    @property
    def outputs(self) -> int:
        """How many outputs it has, if the check asks for no others."""
        return int(self is not Form.SINK)


TAKES: Final = (Form.SINK, Form.MAP)
SENDS: Final = (Form.MAP, Form.SOURCE)
EVERY: Final = (Form.SINK, Form.MAP, Form.SOURCE)


class Failed(Exception):
    """The program did not do what the check expects."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected: {expected}; came: {came}")
        self.expected = expected
        self.came = came


class NotChecked(Exception):
    """The check cannot be made with this program as it was started, for the reason given."""
