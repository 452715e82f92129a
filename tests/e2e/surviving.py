"""A flow that is to outlive its daemon, with a ledger that tells whether it has lost a frame."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Any

from chronetixctl.client import Client
from chronetixd.linux.proc import stat
from tests.e2e.growing import await_written

Map = dict[str, Any]
PLUGINS = Path(__file__).parent / "plugins"
TRANSIENT = {"policy": "transient", "max": 100, "backoff_ms": 1}
NODES = ("source", "map", "sink")


class Flow:
    """source → map → sink with a ledger that outlives everything."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "ledger"

    def raw(self, restart: Any = TRANSIENT, loss: str = "survive") -> Map:
        entries = {"source": "paced", "map": "forward", "sink": "Ledger"}
        manifests = [
            {
                "plugin_id": node,
                "node_id": node,
                "version": "1.0.0",
                "artifact": {"kind": "Python", "uri": f"python://restarts.py:{entry}"},
                "params": {"ledger": str(self.ledger)},
                "restart": restart,
            }
            for node, entry in entries.items()
        ]
        routes = [
            {
                "from": source,
                "to": target,
                "plane": "data",
                "topic": f"{source}/{target}",
                "content_type": "application/octet-stream",
                "buffer": 16,
            }
            for source, target in (("source", "map"), ("map", "sink"))
        ]
        return {"manifests": manifests, "routes": routes, "schemas": [], "on_daemon_loss": loss}

    def submit(self, client: Client, **more: Any) -> dict[str, int]:
        """Its pids, once it runs and frames have arrived."""
        client.call("submit", flow=self.raw(**more), name="f", base_dir=str(PLUGINS), wait="running")
        self.grows(client)
        return pids(client)

    def numbers(self) -> list[tuple[int, bool]]:
        lines = [line.split() for line in self.ledger.read_text().splitlines()]
        return [(int(number), marked == "1") for _, _, number, marked in lines]

    def grows(self, client: Client) -> None:
        """Wait until further frames have come."""
        before = self.size()
        await_written(self.ledger, lambda: self.size() > before, client)

    def size(self) -> int:
        return self.ledger.stat().st_size if self.ledger.exists() else 0

    def check(self) -> None:
        """None lost, order kept, and what came twice is marked."""
        seen = 0
        for number, marked in self.numbers():
            assert number <= seen + 1, f"{number} follows {seen}: lost"
            assert marked or number == seen + 1, f"{number} came again unmarked"
            seen = max(seen, number)
        assert seen


SLOW_TO_COME = """
import os, time

while os.path.exists({hold!r}):
    time.sleep(0.005)

from restarts import Ledger, paced
"""


class Pair(Flow):
    """source → sink, whose workers do not get to making memory while :attr:`hold` is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.hold = folder / "hold"
        self.folder = folder
        (folder / "restarts.py").write_text((PLUGINS / "restarts.py").read_text())
        (folder / "slow.py").write_text(SLOW_TO_COME.format(hold=str(self.hold)))

    def raw(self, restart: Any = TRANSIENT, loss: str = "survive") -> Map:
        flow = super().raw(restart, loss)
        source, _, sink = flow["manifests"]
        for manifest in (source, sink):
            manifest["artifact"]["uri"] = manifest["artifact"]["uri"].replace("restarts.py", "slow.py")
        route = flow["routes"][0] | {"to": "sink", "topic": "source/sink"}
        return flow | {"manifests": [source, sink], "routes": [route]}

    def submit(self, client: Client, **more: Any) -> dict[str, int]:
        client.call("submit", flow=self.raw(**more), name="f", base_dir=str(self.folder), wait="running")
        self.grows(client)
        return pids(client)

    def orphan(self, client: Client) -> int:
        """Kill the source when it has a successor that has not made its memory, and all that it sent is drained: the
        successor's pid."""
        before = pids(client)["source"]
        self.hold.touch()
        os.kill(before, signal.SIGKILL)
        successor = succeeded(client, "source", before)
        while True:
            (route,) = client.call("describe", flow="f")["routes"]
            if route["stats"] is None or route["stats"]["committed"] == route["stats"]["returned"]:
                return successor


def pids(client: Client) -> dict[str, int]:
    return {node["node"]: node["pid"] for node in client.call("describe", flow="f")["nodes"]}


def lives(pid: int) -> bool:
    """It is there, and not only because whoever it was left to has not reaped it yet."""
    found = stat(pid)
    return found is not None and found.state != "Z"


def events(client: Client) -> list[Map]:
    return list(client.stream("events", flow="f"))


def happens(client: Client, kind: str, node: str = "") -> Map:
    """The first event of that kind that the daemon tells of."""
    for event in client.stream("events", flow="f", follow=True):
        if (event["kind"], event["node"] if node else "") == (kind, node):
            return dict(event)
    raise AssertionError("the events have ended")


def succeeded(client: Client, node: str, former: int) -> int:
    """The pid of the process that follows ``former``, once it is born."""
    for event in client.stream("events", flow="f", follow=True):
        if (event["kind"], event["node"]) == ("worker-spawned", node) and event["data"]["worker"] != former:
            return int(event["data"]["worker"])
    raise AssertionError("the events have ended")


def kill(daemon: Any) -> None:
    daemon.process.kill()
    daemon.process.wait()


def end(pid: int) -> None:
    """Kill a process that is not ours, and wait for its end; it may have died with its daemon."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    select.select([fd], [], [])
    os.close(fd)
