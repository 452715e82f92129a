"""A worker in Python that is whatever it is given ends for: a sink, a map that returns each frame, or a source of the
kit's sequence."""

from __future__ import annotations

from typing import Any

import chronetix


class Tested:
    """Takes frames, returns them on its outputs if it has any, and sends the sequence if it has no inputs."""

    def __init__(self, ctx: chronetix.Context) -> None:
        if not ctx.inputs:
            self.produce = self._sequence

    def on_frame(self, frame: Any, ctx: Any) -> Any:
        return frame if ctx.outputs else None

    def _sequence(self, ctx: Any) -> Any:
        size = ctx.params.get("size", 8)
        number = 0
        while not ctx.stopping:
            number += 1
            yield (number.to_bytes(8, "little") * (size // 8 + 1))[:size]


if __name__ == "__main__":
    chronetix.serve(Tested)
