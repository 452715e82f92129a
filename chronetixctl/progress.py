"""One line on a terminal's stderr that follows a call's progress; nothing when stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from chronetixctl import output


class Progress:
    """``text`` makes a line of an item. ``flow`` is the flow's name, once the daemon has told it."""

    def __init__(self, text: Callable[[dict[str, Any]], str]) -> None:
        self._text = text
        self._stream = sys.stderr
        self.flow = ""
        self._shown = False
        self._wanted = self._stream.isatty()

    def show(self, item: Any) -> None:
        """Show one progress item."""
        if not isinstance(item, dict):
            return
        self.flow = str(item.get("flow") or "")
        if not self._wanted:
            return
        self._stream.write(f"\r\x1b[K{output.printable(self._text(item))}")
        self._stream.flush()
        self._shown = True

    def end(self) -> None:
        """Take the line away. Idempotent."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
