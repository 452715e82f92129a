"""A flow whose map prints more for each frame than a pipe holds, in any language, while its daemon is killed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chronetixctl.client import Client
from tests.e2e.growing import await_written
from tests.e2e.surviving import Flow, kill, pids

ALONE = 20
"""How many frames come while there is no daemon."""


def last(flow: Flow) -> int:
    """The number that the ledger got last."""
    return flow.numbers()[-1][0]


def goes_on(flow: Flow) -> None:
    """Wait until ALONE further frames have come."""
    wanted = last(flow) + ALONE
    await_written(flow.ledger, lambda: last(flow) >= wanted)


def goes_on_without_a_daemon(flow: Flow, start: Callable[[], Any]) -> None:
    """The workers go on without a daemon and come back to the next one, which tells what is lost and reads on."""
    daemon = start()
    with Client.connect(daemon.socket) as client:
        before = flow.submit(client)
    for _ in range(2):
        kill(daemon)
        goes_on(flow)
        daemon = start()
        with Client.connect(daemon.socket) as client:
            assert pids(client) == before, "no worker was started anew"
            before_it = last(flow)
            for record in client.stream("logs", flow="f", node="map", level="warning", follow=True):
                if "printed to stdout while no daemon was there are lost" in record["line"]:
                    break
            for record in client.stream("logs", flow="f", node="map", tail=0, follow=True):
                if record["line"][:100].isdigit() and int(record["line"][:100]) > before_it:
                    break
            flow.grows(client)
    with Client.connect(daemon.socket) as client:
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()
    assert not [number for number, marked in flow.numbers() if marked], "none was repeated"
