"""A source that never ends, slowly, and a sink that maps memory to be written and executed, as a Wasm JIT does."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from typing import Any


def ticks(ctx: Any) -> Iterator[dict[str, int]]:
    number = 0
    while True:
        yield {"n": number}
        number += 1
        time.sleep(0.01)


class Sink:
    def on_start(self, ctx: Any) -> None:
        with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
            code[0] = 0xC3

    def on_frame(self, frame: Any, ctx: Any) -> None:
        frame.value()
