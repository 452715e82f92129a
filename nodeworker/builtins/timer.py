"""builtin://chronetix/system/timer: publishes each tick of its timers on the node's control routes, and sends it to
its data routes.

A tick is JSON: ``{"timer": id, "sequence": n, "due_ns": CLOCK_MONOTONIC, "unix_ns": now, "missed": n}``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from chronetix.nodeworker.api.context import Context
from chronetix.protocol.messages import Tick

PARAMS: Final[Mapping[str, str]] = {}


class TimerSource:
    """Sends each tick of its timers to its data routes, and publishes it on its control routes, as a map
    ``{"timer": id, "sequence": n, "due_ns": CLOCK_MONOTONIC, "unix_ns": now, "missed": n}``. One node may have several
    timers; ``timer`` tells their ticks apart."""

    def on_tick(self, tick: Tick, ctx: Context) -> dict[str, Any]:
        """The tick as it travels."""
        value = {
            "timer": tick.id,
            "sequence": tick.sequence,
            "due_ns": tick.due_ns,
            "unix_ns": time.time_ns(),
            "missed": tick.missed,
        }
        if ctx.outputs and ctx.publications:
            ctx.publish(None, value)
        return value
