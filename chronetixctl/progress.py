"""Shows a call's progress in one line of stderr, if stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from chronetixctl import output


class Progress:
    """The progress line of one call. ``text`` makes the line of an item. ``flow`` is the flow's name, empty until the
    daemon has sent an item that names it."""

    def __init__(self, text: Callable[[dict[str, Any]], str]) -> None:
        self._text = text
        self._stream = sys.stderr
        self.flow = ""
        self._shown = False
        self._wanted = self._stream.isatty()

    def show(self, item: Any) -> None:
        """Replace the line by the one for this item; an item that is no map is ignored."""
        if not isinstance(item, dict):
            return
        self.flow = str(item.get("flow") or "")
        if not self._wanted:
            return
        self._stream.write(f"\r\x1b[K{output.printable(self._text(item))}")
        self._stream.flush()
        self._shown = True

    def end(self) -> None:
        """Clear the line. Idempotent."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
