"""What the bus could not deliver is counted, wherever it was dropped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

PLUGIN = """
import os

class Slow:
    taken = 0

    def on_message(self, message, ctx):
        if not self.taken:
            os.close(os.open(ctx.params["gate"], os.O_RDONLY))  # until somebody opens its other end
        self.taken += 1

    def on_stop(self, ctx):
        return self.taken
"""
MESSAGES = 40


def test_every_message_is_taken_or_counted_as_dropped(submit: Any, client: Any, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(PLUGIN)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    node = submit.node("slow", "x:x", params={"gate": str(gate)}, bus_subscriptions=[{"pattern": "t"}])
    node["artifact"]["uri"] = "python://slow.py:Slow"
    flow = {"manifests": [node], "routes": [], "schemas": []}
    client.call("submit", flow=flow, name="f", base_dir=str(tmp_path), wait="running")
    for _ in range(MESSAGES):
        client.call("publish", flow="f", topic="t", payload=bytes(1 << 20))
    os.close(os.open(gate, os.O_WRONLY))
    assert client.call("stop", flow="f")["state"] == "stopped"
    (node,) = client.call("describe", flow="f")["nodes"]
    (told,) = client.call("describe", flow="f")["subscriptions"]
    assert told["dropped"] > 0
    assert told["delivered"] == node["result"]
    assert told["delivered"] + told["dropped"] == MESSAGES
