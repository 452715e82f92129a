"""Numbers through a map into a ledger that outlives everything: a line for each, and whether it was marked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

LEDGER = "/var/lib/chronetix/ledger"


def numbers(ctx: Any) -> Iterator[bytes]:
    n = ctx.resume_after
    while True:
        n += 1
        yield n.to_bytes(8, "little")
        time.sleep(0.0002)


def forward(frame: Any, ctx: Any) -> bytes:
    return bytes(frame)


class Ledger:
    def __init__(self) -> None:
        self.file = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def on_frame(self, frame: Any, ctx: Any) -> None:
        os.write(self.file, b"%d %d\n" % (int.from_bytes(bytes(frame), "little"), frame.redelivered))

    def on_stop(self, ctx: Any) -> None:
        os.close(self.file)
